"""What stands against one user, read where writes go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.hashers import UNUSABLE_PASSWORD_PREFIX
from django.db.models import Exists, F, OuterRef, Q, QuerySet, Subquery
from django.utils import timezone

from pwexpire.conf import conf
from pwexpire.constants import REQUIRE_ORDER
from pwexpire.exceptions import InvalidRequest
from pwexpire.feed import feed
from pwexpire.models import (
    Demand,
    EnforcementState,
    Exclusion,
    ExpiryBatch,
    PasswordRecord,
    Require,
    SessionAction,
)
from pwexpire.policy import Policy
from pwexpire.retries import retried
from pwexpire.services.judging import NO_PASSWORD, Judgement, Open, Rules, cause, pick, weigh
from pwexpire.users import is_recorded


@dataclass(frozen=True, kw_only=True)
class PasswordStatus:
    """The answer of ``password_status``. Times are aware datetimes or ``None`` if there is none.

    ``grace_logins``: how many more logins an aged password is good for, ``None`` where it has not
    aged out. ``policy``, ``rule``: which policy was asked, and under which key it was found.
    ``batch``: primary key of the ``ExpiryBatch`` behind it, ``actor``: of whoever asked for it.
    """

    must_change: bool
    require: str | None
    reason: str | None
    since: datetime | None
    expires_at: datetime | None
    warn: bool
    changed_at: datetime | None
    note: str
    grace_logins: int | None = None
    policy: Policy
    rule: str
    batch: int | None = None
    actor: Any = None


def check_saved(user: Any) -> None:
    if not isinstance(user, get_user_model()) or user.pk is None or user._state.adding:
        raise InvalidRequest(f"{user!r} is not a saved user: save it first, or pass its user.")


def read_state() -> EnforcementState:
    """The state row; made at first use where ``migrate`` could not make it (a flushed database)."""
    state, _ = EnforcementState.objects.using(feed.using).get_or_create(
        pk=1, defaults={"created_at": timezone.now()}
    )
    return state


def read_counter() -> int:
    rows = EnforcementState.objects.using(feed.using).values_list("counter", flat=True)
    return rows.first() or 0


def active_batches() -> QuerySet[ExpiryBatch]:
    return ExpiryBatch.objects.using(feed.using).filter(
        number__isnull=False, cancelled_at__isnull=True
    )


def active_demands(**filters: Any) -> QuerySet[Demand]:
    return Demand.objects.using(feed.using).filter(
        batch__number__isnull=False, batch__cancelled_at__isnull=True, **filters
    )


def open_demand(least: str = Require.CHANGE) -> Q:
    """A condition on users: a demand is open against them, whether they can meet it or not.

    ``least``: one that wants at least that much.
    """
    require = REQUIRE_ORDER[REQUIRE_ORDER.index(least) :]
    # The end of sessions is a demand as well, of nothing.
    asks = Q(batch__holds=True) | Q(batch__require=Require.WARN)
    in_force = {
        "batch__number__isnull": False,
        "batch__cancelled_at": None,
        "batch__require__in": require,
    }
    mine = Exists(Demand.objects.filter(asks, user=OuterRef("pk"), **in_force))
    met = PasswordRecord.objects.filter(
        user=OuterRef(OuterRef("pk")), satisfied__gte=OuterRef("number")
    )
    out = Exclusion.objects.filter(user=OuterRef(OuterRef("pk")), batch=OuterRef("pk"))
    everyone = active_batches().filter(everyone=True, require__in=require)
    if not everyone.exists():  # most of the time, and the other question is dear
        return Q(mine)
    return Q(mine) | Q(Exists(everyone.filter(~Exists(met), ~Exists(out))))


def usable_password() -> Q:
    """A condition on users, the same as ``has_password()``."""
    return ~Q(password__startswith=UNUSABLE_PASSWORD_PREFIX) & ~Q(password__in=NO_PASSWORD)


RECORDED = (
    "changed_at",
    "assumed",
    "given_at",
    "given_new",
    "given_by_id",
    "grace_used",
    "failed_changes",
)


def read_rules() -> Rules:
    return Rules(
        now=timezone.now(),
        read_came=lambda: read_state().created_at,
        chosen_for=conf.policy,
        applies_to=conf.applies_to,
        second_factor=conf.second_factor,
        assume_joined=conf.assume_joined,
        reconsider=conf.reconsider,
    )


def judge(user: Any) -> Judgement:
    """One query; more if something is demanded, or for the day pwexpire came."""
    return judge_now(user)[1]


def judge_now(user: Any) -> tuple[int, Judgement]:
    """Return the counter and what stands against ``user``, both as of the same moment."""
    if not is_recorded(user):
        return read_counter(), Judgement()
    counter = EnforcementState.objects.using(feed.using).values("counter")
    mine = active_demands(user=OuterRef("pk")).order_by("-batch__number").values("batch__number")
    everyone = _on_everyone(OuterRef(OuterRef("pk"))).order_by("-number").values("number")
    ending = SessionAction.END
    row = (
        get_user_model()
        ._base_manager.using(feed.using)
        .filter(pk=user.pk)
        .values_list(
            *[f"pwexpire_record__{name}" for name in RECORDED],
            "pwexpire_record__satisfied",
            "pwexpire_record__ended",
            Subquery(mine.filter(batch__holds=True)[:1]),
            Subquery(everyone.filter(holds=True, cancelled_at__isnull=True)[:1]),
            Subquery(mine.filter(batch__sessions=ending)[:1]),
            Subquery(everyone.filter(sessions=ending)[:1]),
            Subquery(counter[:1]),
        )
        .first()
    )
    if row is None:
        return read_counter(), Judgement()
    known = zip(RECORDED, row, strict=False)
    record = PasswordRecord(**{name: value for name, value in known if value is not None})
    satisfied, ended, one, all_of_us, one_end, all_end, number = (
        value or 0 for value in row[len(RECORDED) :]
    )
    demand, rules = max(one, all_of_us), read_rules()
    return number, weigh(
        rules,
        user,
        record,
        demand=demand if demand > satisfied else 0,
        find_open=lambda policy: _strictest(user, satisfied, policy, rules.now),
        ended=max(ended, one_end, all_end),
    )


def _on_everyone(user: Any) -> QuerySet[ExpiryBatch]:
    """Batches on everyone that do not leave ``user`` (a primary key, or a reference to it) out."""
    excluded = Exclusion.objects.filter(batch=OuterRef("pk"), user=user)
    return ExpiryBatch.objects.using(feed.using).filter(
        ~Exists(excluded), everyone=True, number__isnull=False
    )


def _strictest(
    user: Any, satisfied: int, policy: Policy, now: datetime, *, holds: bool = True
) -> Open | None:
    """Of the open demands on this user; without ``holds`` of the warnings."""
    kept: dict[str, Any] = {
        "cancelled_at__isnull": True,
        "holds": holds,
        "number__gt": satisfied,
    }
    if not holds:
        kept["require"] = Require.WARN
    mine = ExpiryBatch.objects.using(feed.using).filter(demands__user=user.pk, **kept)
    return pick([*mine, *_on_everyone(user.pk).filter(**kept)], policy, now)


def take_grace(user: Any, limit: int) -> bool:
    """One of the logins that an aged password is good for; false if there is none left."""
    records = PasswordRecord.objects.using(feed.using)
    records.get_or_create(user_id=user.pk)
    mine = records.filter(pk=user.pk, grace_used__lt=limit)
    return bool(mine.update(grace_used=F("grace_used") + 1))


def count_would_hold(pk: Any) -> None:
    """Note that a session of this user would have been held, if anybody were."""
    records = PasswordRecord.objects.using(feed.using)
    record, _ = records.get_or_create(user_id=pk)
    mine = records.filter(pk=record.pk)
    count = partial(mine.update, would_hold=F("would_hold") + 1, would_hold_at=timezone.now())
    retried(count, using=feed.using)


def lowest_open(user: Any, requires: Sequence[str]) -> int | None:
    """The lowest number of the open demands of these kinds."""
    if not requires:
        return None
    satisfied = _satisfied(user)
    kept = {
        "cancelled_at__isnull": True,
        "holds": True,
        "number__gt": satisfied,
        "require__in": requires,
    }
    mine = ExpiryBatch.objects.using(feed.using).filter(demands__user=user.pk, **kept)
    numbers = [
        *mine.values_list("number", flat=True),
        *_on_everyone(user.pk).filter(**kept).values_list("number", flat=True),
    ]
    return min((number for number in numbers if number), default=None)


def open_demands(pks: list[Any]) -> dict[Any, int]:
    """Primary key -> number of the highest open demand, in at most four queries."""
    found: dict[Any, int] = {}
    rows = active_demands(user__in=pks, batch__holds=True).values_list("user_id", "batch__number")
    for pk, number in rows:
        found[pk] = max(found.get(pk, 0), number or 0)
    batches = active_batches().filter(everyone=True, holds=True).values_list("pk", "number")
    everyone = {batch: number or 0 for batch, number in batches}
    if everyone:
        records = PasswordRecord.objects.using(feed.using).filter(user__in=pks)
        satisfied = dict(records.values_list("user_id", "satisfied"))
        excluded = set(
            Exclusion.objects.using(feed.using)
            .filter(user__in=pks, batch__in=list(everyone))
            .values_list("user_id", "batch_id")
        )
        for pk in pks:
            for batch, number in everyone.items():
                if number > satisfied.get(pk, 0) and (pk, batch) not in excluded:
                    found[pk] = max(found.get(pk, 0), number)
    return found


def password_status(user: Any) -> PasswordStatus:
    """Whether ``user`` has to change the password now, why and since when.

    Raises ``InvalidRequest`` for an unsaved user.
    """
    check_saved(user)
    judged = judge(user)
    told = judged.opened
    if told is None and judged.applies and not judged.held:
        policy, now = judged.chosen.policy, timezone.now()
        told = _strictest(user, _satisfied(user), policy, now, holds=False)
    why = cause(judged, told)
    warned = told is not None and not judged.held
    return PasswordStatus(
        must_change=judged.held,
        require=judged.require or (Require.WARN.value if warned else None),
        reason=why.reason,
        since=why.since,
        expires_at=judged.expires_at,
        warn=(judged.warn or warned) and not judged.held,
        changed_at=judged.changed_at,
        note=told.note if told is not None else "",
        grace_logins=judged.grace if judged.aged else None,
        policy=judged.chosen.policy,
        rule=judged.chosen.rule,
        batch=told.batch if told is not None else None,
        actor=why.by,
    )


def _satisfied(user: Any) -> int:
    records = PasswordRecord.objects.using(feed.using).filter(pk=user.pk)
    return records.values_list("satisfied", flat=True).first() or 0

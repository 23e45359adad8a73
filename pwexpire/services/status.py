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
    Reason,
    Require,
    SessionAction,
)
from pwexpire.policy import Chosen, Decision, Policy, decide
from pwexpire.retries import retried

NOTHING_CHOSEN = Chosen(Policy())


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


@dataclass(frozen=True, kw_only=True)
class Open:
    """The strictest of the demands that are open against a user."""

    require: str
    reason: str
    since: datetime
    note: str
    batch: int
    actor: Any


@dataclass(frozen=True, kw_only=True)
class Given:
    """A password that somebody else chose: since when, by whom, and how it has to go."""

    since: datetime
    by: Any
    require: str


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """``demand``: number of the open demand, 0 if none. ``ended``: older stamps are flushed.

    ``ages``: until when that counts as it is, by the clock. ``grace``: logins that are left.
    ``given``: the password is one that somebody else chose, and has to go.
    """

    demand: int = 0
    ended: int = 0
    aged: bool = False
    ages: float | None = None
    expires_at: datetime | None = None
    warn: bool = False
    changed_at: datetime | None = None
    opened: Open | None = None
    chosen: Chosen = NOTHING_CHOSEN
    grace: int = 0
    given: Given | None = None

    @property
    def held(self) -> bool:
        ages = self.aged and self.chosen.policy.require != Require.WARN
        return bool(self.demand or self.given or ages)

    @property
    def held_by_age_alone(self) -> bool:
        return self.held and not self.demand and self.given is None

    @property
    def require(self) -> str | None:
        """The strictest of what is demanded; ``None`` if nothing is."""
        asked = [self.opened.require] if self.opened else []
        asked += [self.given.require] if self.given else []
        asked += [self.chosen.policy.require] if self.aged else []
        return max(asked, key=REQUIRE_ORDER.index, default=None)

    @property
    def locked(self) -> bool:
        """The old password is worth nothing."""
        return self.require in (Require.RESET, Require.DENY)


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
    """A condition on users, the same as ``has_usable_password()``."""
    return ~Q(password__startswith=UNUSABLE_PASSWORD_PREFIX)


def judge(user: Any) -> Judgement:
    """One query; one more if something is demanded, or for the day pwexpire came."""
    mine = active_demands(user=OuterRef("pk")).order_by("-batch__number").values("batch__number")
    everyone = _on_everyone(OuterRef(OuterRef("pk"))).order_by("-number").values("number")
    ending = SessionAction.END
    row = (
        get_user_model()
        ._base_manager.using(feed.using)
        .filter(pk=user.pk)
        .values_list(
            "pwexpire_record__changed_at",
            "pwexpire_record__assumed",
            "pwexpire_record__given_at",
            "pwexpire_record__given_new",
            "pwexpire_record__given_by",
            "pwexpire_record__grace_used",
            "pwexpire_record__satisfied",
            "pwexpire_record__ended",
            Subquery(mine.filter(batch__holds=True)[:1]),
            Subquery(everyone.filter(holds=True, cancelled_at__isnull=True)[:1]),
            Subquery(mine.filter(batch__sessions=ending)[:1]),
            Subquery(everyone.filter(sessions=ending)[:1]),
        )
        .first()
    )
    if row is None:
        return Judgement()
    changed_at: datetime | None = row[0]
    assumed, given_at, given_new, given_by = row[1:5]
    used, satisfied, ended, one, all_of_us, one_end, all_end = (value or 0 for value in row[5:])
    ended = max(ended, one_end, all_end)
    applies = conf.applies_to
    now = timezone.now()
    again = [now + conf.reconsider] if conf.reconsider else []
    if not user.has_usable_password() or (applies is not None and not applies(user)):
        until = again[0].timestamp() if again else None
        return Judgement(ended=ended, changed_at=changed_at, ages=until)
    demand = max(one, all_of_us)
    chosen_for = conf.policy
    chosen = chosen_for(user) if chosen_for is not None else NOTHING_CHOSEN
    if given_at is None and (changed_at is None or assumed) and chosen.policy.change_on_first_use:
        given_at, given_new = _imported(user), True
    given = None
    if given_at is not None and chosen.policy.wants_own(new=given_new):
        lifetime = chosen.policy.temporary_for
        dead = lifetime is not None and now >= given_at + lifetime
        wanted = Require.RESET if dead else Require.CHANGE
        given = Given(since=given_at, by=given_by, require=wanted.value)
    opened = None
    if demand > satisfied:
        opened = strictest(user, satisfied, chosen.policy, now)
    else:
        demand = 0
    if chosen.policy.max_age is None:
        decision = Decision(must_change=False, expires_at=None, warn=False)
    else:
        second = conf.second_factor if chosen.policy.single_factor_only else None
        decision = decide(
            chosen.policy,
            changed_at=changed_at or assumed_change(user),
            now=now,
            second_factor=second is not None and second(user),
        )
    expires_at = decision.expires_at
    warns = decision.must_change and chosen.policy.require == Require.WARN
    ages = [expires_at, *again] if expires_at and not warns else again
    return Judgement(
        demand=demand,
        ended=ended,
        aged=decision.must_change,
        ages=min(ages).timestamp() if ages else None,
        expires_at=expires_at,
        warn=decision.warn or warns,
        changed_at=changed_at,
        given=given,
        opened=opened,
        chosen=chosen,
        grace=max(0, chosen.policy.grace_logins - used),
    )


def _imported(user: Any) -> datetime | None:
    """Since when a user is there whom Django did not see coming (``bulk_create``); else ``None``.

    Whoever is saved after pwexpire came has a record with a change in it.
    """
    joined: datetime | None = getattr(user, "date_joined", None)
    return joined if joined is not None and joined > read_state().created_at else None


def _on_everyone(user: Any) -> QuerySet[ExpiryBatch]:
    """Batches on everyone that do not leave ``user`` (a primary key, or a reference to it) out."""
    excluded = Exclusion.objects.filter(batch=OuterRef("pk"), user=user)
    return ExpiryBatch.objects.using(feed.using).filter(
        ~Exists(excluded), everyone=True, number__isnull=False
    )


def strictest(
    user: Any, satisfied: int, policy: Policy, now: datetime, *, holds: bool = True
) -> Open | None:
    """What the strictest open demand wants; the newest of several.

    A password that was given by somebody else is worth nothing after ``Policy.temporary_for``.
    """
    fields = ("require", "number", "reason", "activated_at", "note", "pk", "actor_id")
    kept: dict[str, Any] = {
        "cancelled_at__isnull": True,
        "holds": holds,
        "number__gt": satisfied,
    }
    if not holds:
        kept["require"] = Require.WARN
    mine = ExpiryBatch.objects.using(feed.using).filter(demands__user=user.pk, **kept)
    rows = [*mine.values_list(*fields), *_on_everyone(user.pk).filter(**kept).values_list(*fields)]
    found: list[tuple[int, int, Open]] = []
    for require, number, reason, since, note, batch, actor in rows:
        if reason == Reason.FIRST_USE and policy.temporary_for and require == Require.CHANGE:
            require = Require.RESET if now >= since + policy.temporary_for else require
        one = Open(require=require, reason=reason, since=since, note=note, batch=batch, actor=actor)
        found.append((REQUIRE_ORDER.index(require), number, one))
    return max(found, key=lambda one: one[:2])[2] if found else None


def judge_now(user: Any) -> tuple[int, Judgement]:
    """The counter, read before the record is."""
    return read_counter(), judge(user)


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


def assumed_change(user: Any) -> datetime:
    """A password whose last change nobody saw counts from the day pwexpire came, or he joined."""
    joined: datetime | None = getattr(user, "date_joined", None) if conf.assume_joined else None
    return joined or read_state().created_at


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
    opened, aged = judged.opened, judged.aged
    warned = None
    if opened is None and not judged.held and user.has_usable_password():
        satisfied = _satisfied(user)
        warned = strictest(user, satisfied, judged.chosen.policy, timezone.now(), holds=False)
    told = opened or warned
    reason = since = None
    if told is not None:
        reason, since = told.reason, told.since
    elif judged.given is not None:
        reason, since = Reason.FIRST_USE.value, judged.given.since
    elif aged:
        reason, since = Reason.AGE.value, judged.expires_at
    return PasswordStatus(
        must_change=judged.held,
        require=judged.require or (Require.WARN.value if warned else None),
        reason=reason,
        since=since,
        expires_at=judged.expires_at,
        warn=(judged.warn or warned is not None) and not judged.held,
        changed_at=judged.changed_at,
        note=told.note if told is not None else "",
        grace_logins=judged.grace if aged else None,
        policy=judged.chosen.policy,
        rule=judged.chosen.rule,
        batch=told.batch if told is not None else None,
        actor=told.actor if told is not None else judged.given and judged.given.by,
    )


def _satisfied(user: Any) -> int:
    records = PasswordRecord.objects.using(feed.using).filter(pk=user.pk)
    return records.values_list("satisfied", flat=True).first() or 0

"""What stands against one user, read where writes go."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.hashers import UNUSABLE_PASSWORD_PREFIX
from django.db.models import Exists, OuterRef, Q, QuerySet, Subquery
from django.utils import timezone

from pwexpire.conf import conf
from pwexpire.exceptions import InvalidRequest
from pwexpire.feed import feed
from pwexpire.models import (
    Demand,
    EnforcementState,
    Exclusion,
    ExpiryBatch,
    PasswordRecord,
    SessionAction,
)
from pwexpire.policy import decide


@dataclass(frozen=True, kw_only=True)
class PasswordStatus:
    """The answer of ``password_status``. Times are aware datetimes or ``None`` if there is none."""

    must_change: bool
    require: str | None
    reason: str | None
    since: datetime | None
    expires_at: datetime | None
    warn: bool
    changed_at: datetime | None
    note: str


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """``demand``: number of the open demand, 0 if none. ``ended``: older stamps are flushed."""

    demand: int = 0
    ended: int = 0
    aged: bool = False
    ages: float | None = None
    expires_at: datetime | None = None
    warn: bool = False
    changed_at: datetime | None = None

    @property
    def held(self) -> bool:
        return bool(self.demand or self.aged)


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


def open_demand() -> Q:
    """A condition on users: a demand is open against them, whether they can meet it or not."""
    in_force = {"batch__number__isnull": False, "batch__cancelled_at": None, "batch__holds": True}
    mine = Exists(Demand.objects.filter(user=OuterRef("pk"), **in_force))
    met = PasswordRecord.objects.filter(
        user=OuterRef(OuterRef("pk")), satisfied__gte=OuterRef("number")
    )
    out = Exclusion.objects.filter(user=OuterRef(OuterRef("pk")), batch=OuterRef("pk"))
    everyone = active_batches().filter(everyone=True)
    if not everyone.exists():  # most of the time, and the other question is dear
        return Q(mine)
    return Q(mine) | Q(Exists(everyone.filter(~Exists(met), ~Exists(out))))


def usable_password() -> Q:
    """A condition on users, the same as ``has_usable_password()``."""
    return ~Q(password__startswith=UNUSABLE_PASSWORD_PREFIX)


def judge(user: Any) -> Judgement:
    """One query, and one more for the day pwexpire came if a policy asks and no change is known."""
    mine = active_demands(user=OuterRef("pk")).order_by("-batch__number").values("batch__number")
    excluded = Exclusion.objects.filter(batch=OuterRef("pk"), user=OuterRef(OuterRef("pk")))
    everyone = (
        ExpiryBatch.objects.using(feed.using)
        .filter(~Exists(excluded), everyone=True, number__isnull=False)
        .order_by("-number")
        .values("number")
    )
    ending = SessionAction.END
    row = (
        get_user_model()
        ._base_manager.using(feed.using)
        .filter(pk=user.pk)
        .values_list(
            "pwexpire_record__satisfied",
            "pwexpire_record__ended",
            "pwexpire_record__changed_at",
            Subquery(mine.filter(batch__holds=True)[:1]),
            Subquery(everyone.filter(cancelled_at__isnull=True)[:1]),
            Subquery(mine.filter(batch__sessions=ending)[:1]),
            Subquery(everyone.filter(sessions=ending)[:1]),
        )
        .first()
    )
    if row is None:
        return Judgement()
    changed_at: datetime | None = row[2]
    satisfied, ended, one, all_of_us, one_end, all_end = (
        value or 0 for value in (*row[:2], *row[3:])
    )
    ended = max(ended, one_end, all_end)
    if not user.has_usable_password():
        return Judgement(ended=ended, changed_at=changed_at)
    demand = max(one, all_of_us)
    policy_for = conf.policy
    if policy_for is None:
        return Judgement(
            demand=demand if demand > satisfied else 0, ended=ended, changed_at=changed_at
        )
    decision = decide(
        policy_for(user), changed_at=changed_at or assumed_change(user), now=timezone.now()
    )
    return Judgement(
        demand=demand if demand > satisfied else 0,
        ended=ended,
        aged=decision.must_change,
        ages=decision.expires_at.timestamp() if decision.expires_at else None,
        expires_at=decision.expires_at,
        warn=decision.warn,
        changed_at=changed_at,
    )


def judge_now(user: Any) -> tuple[int, Judgement]:
    """The counter, read before the record is."""
    return read_counter(), judge(user)


def assumed_change(user: Any) -> datetime:
    """A password whose last change nobody saw counts from the day pwexpire came, or he joined."""
    joined: datetime | None = getattr(user, "date_joined", None) if conf.assume_joined else None
    return joined or read_state().created_at


def open_demands(pks: list[Any]) -> dict[Any, int]:
    """Primary key -> number of the highest open demand, in at most four queries."""
    found: dict[Any, int] = {}
    rows = active_demands(user__in=pks, batch__holds=True).values_list("user_id", "batch__number")
    for pk, number in rows:
        found[pk] = max(found.get(pk, 0), number or 0)
    batches = active_batches().filter(everyone=True).values_list("pk", "number")
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
    batch = None
    reason: str | None
    require: str | None
    since: datetime | None
    if judged.demand:
        batch = ExpiryBatch.objects.using(feed.using).filter(number=judged.demand).first()
    if batch is not None:
        reason, since, require = batch.reason, batch.activated_at, batch.require
    elif judged.aged:
        reason, since, require = "age", judged.expires_at, "change"
    else:
        reason = since = require = None
    return PasswordStatus(
        must_change=judged.held,
        require=require,
        reason=reason,
        since=since,
        expires_at=judged.expires_at,
        warn=judged.warn and not judged.held,
        changed_at=judged.changed_at,
        note=batch.note if batch is not None else "",
    )

"""Who has to change the password now, and why: one user, or a page of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any

from django.contrib.auth import get_user_model
from django.db.models import F, OuterRef, QuerySet, Subquery, prefetch_related_objects
from django.utils import timezone

from pwexpire.compiled import ASKED, Compiled
from pwexpire.conf import conf
from pwexpire.demand_view import read_counter as read_counter_of
from pwexpire.exceptions import InvalidRequest
from pwexpire.feed import feed
from pwexpire.models import (
    EnforcementState,
    ExpiryBatch,
    PasswordRecord,
    Require,
    SessionAction,
)
from pwexpire.policy import Policy, choose_by_names
from pwexpire.retries import retried
from pwexpire.services.demands import (
    all_users,
    find_open_batches,
    open_batches,
    wanting_by_name,
    wanting_with_everyone,
)
from pwexpire.services.password_state import (
    OpenDemand,
    PasswordState,
    Rules,
    find_cause,
    find_password_state,
    pick_strictest,
)
from pwexpire.users import is_recorded


@dataclass(frozen=True, kw_only=True)
class PasswordStatus:
    """The answer of ``password_status``. Times are aware datetimes or ``None`` if there is none.

    ``grace_logins``: how many more logins an aged password is good for, ``None`` where it has not
    aged out. ``policy``, ``rule``: which policy was asked, and under which key it was found.
    ``batch``: primary key of the ``ExpiryBatch`` behind it, ``actor``: of the user who asked for
    it.
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
    return read_counter_of(feed.using)


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


def _select_verdict() -> QuerySet[Any, Any]:
    """Return the query of all that is judged of one user, and the counter of the same moment."""
    counter = EnforcementState.objects.using(feed.using).values("counter")
    mine = wanting_by_name(OuterRef("pk")).order_by("-number").values("number")
    everyone = wanting_with_everyone(OuterRef(OuterRef("pk"))).order_by("-number").values("number")
    return (
        all_users()
        .filter(pk=ASKED)
        .values_list(
            *[f"pwexpire_record__{name}" for name in RECORDED],
            "pwexpire_record__satisfied",
            "pwexpire_record__ended",
            Subquery(mine.filter(holds=True)[:1]),
            Subquery(everyone.filter(holds=True, cancelled_at__isnull=True)[:1]),
            Subquery(mine.filter(sessions=SessionAction.END)[:1]),
            Subquery(everyone.filter(sessions=SessionAction.END)[:1]),
            Subquery(counter[:1]),
        )
    )


VERDICT = Compiled(_select_verdict)


def read_password_state(user: Any) -> PasswordState:
    """One query; more if something is demanded, or for the day pwexpire came."""
    return read_counter_and_state(user)[1]


def read_counter_and_state(user: Any) -> tuple[int, PasswordState]:
    """Return the counter and what stands against ``user``, both as of the same moment."""
    if not is_recorded(user):
        return read_counter(), PasswordState()
    rows = VERDICT.rows(feed.using, user.pk)
    if not rows:
        return read_counter(), PasswordState()
    (row,) = rows
    known = zip(RECORDED, row, strict=False)
    record = PasswordRecord(**{name: value for name, value in known if value is not None})
    satisfied, ended, by_name, all_of_us, one_end, all_end, number = (
        value or 0 for value in row[len(RECORDED) :]
    )
    demand, rules = max(by_name, all_of_us), read_rules()
    return number, find_password_state(
        rules,
        user,
        record,
        demand=demand if demand > satisfied else 0,
        find_open=lambda policy: pick_strictest(_holding(open_batches(user.pk)), policy, rules.now),
        ended=max(ended, one_end, all_end),
    )


def judge_users(
    users: Sequence[Any], rules: Rules
) -> list[tuple[Any, PasswordRecord, PasswordState, OpenDemand | None]]:
    """Judge a page of users: each with their record, and with the demand that they are told of.

    What is read is read for all of them at once; where sessions end is not asked.
    """
    records = read_records(users)
    rules = rules_of_page(users, rules)
    satisfied = {pk: record.satisfied for pk, record in records.items()}
    opened = find_open_batches([user.pk for user in users], satisfied)
    password_state = []
    for user in users:
        record, batches = records.get(user.pk) or PasswordRecord(), opened.get(user.pk, [])
        one = _judge_by(rules, user, record, _holding(batches))
        password_state.append((user, record, one, _find_told(one, batches, rules.now)))
    return password_state


def read_records(users: Sequence[Any]) -> dict[Any, PasswordRecord]:
    """Return primary key -> record; ``select_related("pwexpire_record")`` has read it already."""
    prefetch_related_objects(users, "pwexpire_record")
    found = ((user.pk, getattr(user, "pwexpire_record", None)) for user in users)
    return {pk: record for pk, record in found if record is not None}


def rules_of_page(users: Sequence[Any], rules: Rules) -> Rules:
    """Return ``rules`` that ask for the groups of ``users`` once, if anything depends on them."""
    fields = {field.name for field in get_user_model()._meta.get_fields()}
    if conf.reconsider is None or "groups" not in fields:
        return rules
    policies = conf.rules
    if policies is None or rules.applies_to is not None or rules.second_factor is not None:
        # A callable of the site may ask the user for them.
        prefetch_related_objects(users, "groups")
        return rules
    # Names are enough for rules, and few users differ in them: no object for each membership.
    named = all_users().filter(pk__in=[user.pk for user in users], groups__isnull=False)
    names: dict[Any, list[str]] = defaultdict(list)
    for pk, name in named.values_list("pk", "groups__name"):
        names[pk].append(name)
    chosen_for = choose_by_names(policies, names)
    return replace(rules, chosen_for=chosen_for, read_came=lambda: rules.came)


def _judge_by(
    rules: Rules, user: Any, record: PasswordRecord, holding: list[ExpiryBatch]
) -> PasswordState:
    return find_password_state(
        rules,
        user,
        record,
        demand=max((batch.number or 0 for batch in holding), default=0),
        find_open=lambda policy: pick_strictest(holding, policy, rules.now),
    )


def _holding(batches: list[ExpiryBatch]) -> list[ExpiryBatch]:
    return [batch for batch in batches if batch.holds]


def _find_told(
    password_state: PasswordState, batches: list[ExpiryBatch], now: datetime
) -> OpenDemand | None:
    """Return the demand that the user is told of: an open one, or a warning."""
    if password_state.opened is not None or password_state.held or not password_state.applies:
        return password_state.opened
    warnings = [one for one in batches if not one.holds and one.require == Require.WARN]
    return pick_strictest(warnings, password_state.chosen.policy, now)


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


def password_status(user: Any) -> PasswordStatus:
    """Whether ``user`` has to change the password now, why and since when.

    Raises ``InvalidRequest`` for an unsaved user.
    """
    check_saved(user)
    password_state = read_password_state(user)
    batches = [] if password_state.held or not password_state.applies else open_batches(user.pk)
    return _describe(password_state, _find_told(password_state, batches, timezone.now()))


def _describe(password_state: PasswordState, shown: OpenDemand | None) -> PasswordStatus:
    why = find_cause(password_state, shown)
    warned = shown is not None and not password_state.held
    return PasswordStatus(
        must_change=password_state.held,
        require=password_state.require or (Require.WARN.value if warned else None),
        reason=why.reason,
        since=why.since,
        expires_at=password_state.expires_at,
        warn=(password_state.warn or warned) and not password_state.held,
        changed_at=password_state.changed_at,
        note=shown.note if shown is not None else "",
        grace_logins=password_state.grace if password_state.aged else None,
        policy=password_state.chosen.policy,
        rule=password_state.chosen.rule,
        batch=shown.batch if shown is not None else None,
        actor=why.by,
    )

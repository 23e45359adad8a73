"""What is known of every password, for those who have to prove it: a page of users at a time.

The rules are those of ``services.status.judge``, which reads one user where writes go; here what
they need is read for all users of a page at once.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple

from django.contrib.auth import get_user_model
from django.core.exceptions import FieldDoesNotExist
from django.db.models import Count, prefetch_related_objects
from django.utils import timezone

from pwexpire.conf import PolicyFor, Predicate, conf
from pwexpire.constants import REQUIRE_ORDER
from pwexpire.feed import feed
from pwexpire.models import Exclusion, ExpiryBatch, PasswordRecord, Reason, Require
from pwexpire.policy import Chosen, Decision, Policy, decide
from pwexpire.retries import retried
from pwexpire.services.selection import Selection, all_users
from pwexpire.services.status import (
    NOTHING_CHOSEN,
    Given,
    Judgement,
    Open,
    active_batches,
    active_demands,
    read_state,
    usable_password,
)

PAGE = 1_000
STATES = ("ok", "warned", "expired", "grace", "locked", "not_applicable")


class Evidence(NamedTuple):
    """One row of the report. Times are aware datetimes, or ``None`` if there is none.

    ``user``, ``password_enabled``, ``password_last_changed``, ``password_next_rotation``: as in the
    credential report of AWS IAM. ``pwdReset``: as in draft-behera-ldap-password-policy, the
    password was given by somebody else and has to be changed.
    ``password_last_changed_assumed``: from when the age is counted where nobody saw the change.
    ``state``: one of ``STATES``. ``by``: the name of whoever asked for the change, or gave the
    password. ``would_hold``: how often a session was counted while nobody was held.
    """

    user: str
    user_id: Any
    is_active: bool
    password_enabled: bool
    password_last_changed: datetime | None
    password_last_changed_assumed: datetime | None
    password_next_rotation: datetime | None
    policy: str
    rule: str
    state: str
    require: str | None
    reason: str | None
    since: datetime | None
    by: str | None
    batch: int | None
    grace_logins_used: int
    grace_logins_left: int
    pwdReset: bool
    lockout_at: datetime | None
    would_hold: int
    would_hold_at: datetime | None


class BatchEvidence(NamedTuple):
    """One row of the report on batches. ``open_demands``: users whom it still wants."""

    batch: int
    number: int | None
    state: str
    selection: str
    everyone: bool
    reason: str
    require: str
    sessions: str
    by: str | None
    note: str
    created_at: datetime
    activated_at: datetime | None
    cancelled_at: datetime | None
    users_expired: int | None
    users_already_expired: int | None
    users_not_applicable: int | None
    sessions_flagged: int | None
    sessions_ended: int | None
    open_demands: int


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The settings and the time, read once for many users."""

    now: datetime
    came: datetime
    chosen_for: PolicyFor | None
    applies_to: Predicate | None
    second_factor: Predicate | None
    assume_joined: bool

    @classmethod
    def read(cls) -> Rules:
        return cls(
            now=timezone.now(),
            came=read_state().created_at,
            chosen_for=conf.policy,
            applies_to=conf.applies_to,
            second_factor=conf.second_factor,
            assume_joined=conf.assume_joined,
        )

    def apply(self, user: Any) -> bool:
        if not user.has_usable_password():
            return False
        return self.applies_to is None or bool(self.applies_to(user))

    def choose(self, user: Any) -> Chosen:
        return NOTHING_CHOSEN if self.chosen_for is None else self.chosen_for(user)

    def excuses(self, user: Any, policy: Policy) -> bool:
        """Whether there is a second factor beside a password that ages by itself only."""
        asks = policy.single_factor_only and self.second_factor is not None
        return asks and bool(self.second_factor(user))  # type: ignore[misc]

    def assumed_change(self, user: Any) -> datetime:
        joined: datetime | None = getattr(user, "date_joined", None) if self.assume_joined else None
        return joined or self.came

    def imported(self, user: Any) -> datetime | None:
        joined: datetime | None = getattr(user, "date_joined", None)
        return joined if joined is not None and joined > self.came else None


def pages(selection: Selection, size: int = PAGE) -> Iterator[list[Any]]:
    """The selected users in the order of their keys."""
    after = ""
    while part := selection.part(after, size):
        users, after = part
        yield list(users.order_by("pk"))


def with_groups(users: Sequence[Any]) -> Sequence[Any]:
    """Read together, if the policy depends on the user."""
    if conf.reconsider is not None and _has_groups():
        prefetch_related_objects(users, "groups")
    return users


def _has_groups() -> bool:
    try:
        return bool(get_user_model()._meta.get_field("groups"))
    except FieldDoesNotExist:
        return False


def records_of(users: Sequence[Any]) -> dict[Any, PasswordRecord]:
    found = PasswordRecord.objects.using(feed.using).filter(pk__in=[user.pk for user in users])
    return {record.pk: record for record in found}


def rows(selection: Selection) -> Iterator[Evidence]:
    """A row for each selected user, with as many of them in memory as make a page."""
    for users in pages(selection):
        yield from retried(partial(evaluate, users), using=feed.using)


def evaluate(users: Sequence[Any]) -> list[Evidence]:
    """A row for each of ``users``, in at most eight statements whatever their number.

    What callables of the site ask of the database (``PWEXPIRE_POLICY``, ``PWEXPIRE_APPLIES_TO``,
    ``PWEXPIRE_SECOND_FACTOR``) comes on top.
    """
    users = with_groups(users)
    wanted = wanted_by(users)
    rules, records = Rules.read(), records_of(users)
    found = [
        (user, record, *look(rules, user, record, wanted[user.pk]))
        for user in users
        for record in [records.get(user.pk) or PasswordRecord()]
    ]
    names = usernames(_actor(judged, told) for *_, judged, told in found)
    return [_row(rules, *one, names) for one in found]


def wanted_by(users: Sequence[Any]) -> dict[Any, list[ExpiryBatch]]:
    """Primary key -> the batches in force that want this user, met ones among those on everyone."""
    pks = [user.pk for user in users]
    pairs = list(active_demands(user__in=pks).values_list("user_id", "batch_id"))
    named = ExpiryBatch.objects.using(feed.using).filter(pk__in={batch for _, batch in pairs})
    batches = {batch.pk: batch for batch in named}
    found: dict[Any, list[ExpiryBatch]] = defaultdict(list)
    for pk, batch in pairs:
        if batch in batches:
            found[pk].append(batches[batch])
    everyone = list(active_batches().filter(everyone=True))
    if everyone:
        out = Exclusion.objects.using(feed.using).filter(user__in=pks, batch__in=everyone)
        excluded = set(out.values_list("user_id", "batch_id"))
        for pk in pks:
            found[pk] += [batch for batch in everyone if (pk, batch.pk) not in excluded]
    return found


def _strictest(batches: Iterable[ExpiryBatch], policy: Policy, now: datetime) -> Open | None:
    found: list[tuple[int, int, Open]] = []
    for batch in batches:
        require, since = str(batch.require), batch.activated_at
        assert since is not None and batch.number is not None
        temporary = batch.reason == Reason.FIRST_USE and require == Require.CHANGE
        if temporary and policy.temporary_for and now >= since + policy.temporary_for:
            require = Require.RESET.value
        one = Open(
            require=require,
            reason=batch.reason,
            since=since,
            note=batch.note,
            batch=batch.pk,
            actor=batch.actor_id,
        )
        found.append((REQUIRE_ORDER.index(require), batch.number, one))
    return max(found, key=lambda one: one[:2])[2] if found else None


def look(
    rules: Rules, user: Any, record: PasswordRecord, wanted: Sequence[ExpiryBatch]
) -> tuple[Judgement, Open | None]:
    """The judgement, and the demand that is told to the user: an open one, or a warning."""
    unmet = [batch for batch in wanted if (batch.number or 0) > record.satisfied]
    judged = _judge(rules, user, record, [batch for batch in unmet if batch.holds])
    told = judged.opened
    if told is None and not judged.held and user.has_usable_password():
        warnings = [one for one in unmet if not one.holds and one.require == Require.WARN]
        told = _strictest(warnings, judged.chosen.policy, rules.now)
    return judged, told


def _judge(
    rules: Rules, user: Any, record: PasswordRecord, open_batches: Sequence[ExpiryBatch]
) -> Judgement:
    changed_at = record.changed_at
    if not rules.apply(user):
        return Judgement(changed_at=changed_at)
    chosen = rules.choose(user)
    policy = chosen.policy
    decision = Decision(must_change=False, expires_at=None, warn=False)
    if policy.max_age is not None:
        decision = decide(
            policy,
            changed_at=changed_at or rules.assumed_change(user),
            now=rules.now,
            second_factor=rules.excuses(user, policy),
        )
    warns = decision.must_change and policy.require == Require.WARN
    return Judgement(
        demand=max((batch.number or 0 for batch in open_batches), default=0),
        aged=decision.must_change,
        expires_at=decision.expires_at,
        warn=decision.warn or warns,
        changed_at=changed_at,
        opened=_strictest(open_batches, policy, rules.now),
        chosen=chosen,
        grace=max(0, policy.grace_logins - record.grace_used),
        given=_given(rules, user, record, policy),
    )


def _given(rules: Rules, user: Any, record: PasswordRecord, policy: Policy) -> Given | None:
    since, new = record.given_at, record.given_new
    unseen = record.changed_at is None or record.assumed
    if since is None and unseen and policy.change_on_first_use:
        since, new = rules.imported(user), True
    if since is None or not policy.wants_own(new=new):
        return None
    dead = policy.temporary_for is not None and rules.now >= since + policy.temporary_for
    require = Require.RESET if dead else Require.CHANGE
    return Given(since=since, by=record.given_by_id, require=require.value)


def _actor(judged: Judgement, told: Open | None) -> Any:
    if told is not None:
        return told.actor
    return judged.given.by if judged.given is not None else None


def usernames(pks: Iterable[Any]) -> dict[Any, str]:
    """Primary key -> name of the users that are still there."""
    wanted = {pk for pk in pks if pk is not None}
    if not wanted:
        return {}
    name = get_user_model().USERNAME_FIELD
    return dict(all_users().filter(pk__in=wanted).values_list("pk", name))


def _state(applies: bool, judged: Judgement, told: Open | None) -> str:
    if not applies:
        return "not_applicable"
    if judged.held_by_age_alone and judged.grace:
        return "grace"
    if judged.held:
        return "locked" if judged.locked else "expired"
    return "warned" if judged.warn or told is not None else "ok"


def _reason(judged: Judgement, told: Open | None) -> tuple[str | None, datetime | None]:
    if told is not None:
        return told.reason, told.since
    if judged.given is not None:
        return Reason.FIRST_USE.value, judged.given.since
    return (Reason.AGE.value, judged.expires_at) if judged.aged else (None, None)


def _row(
    rules: Rules,
    user: Any,
    record: PasswordRecord,
    judged: Judgement,
    told: Open | None,
    names: dict[Any, str],
) -> Evidence:
    applies = rules.apply(user)
    reason, since = _reason(judged, told)
    seen = record.changed_at is not None and not record.assumed
    counted = record.changed_at or rules.assumed_change(user)
    return Evidence(
        user=str(user.get_username()),
        user_id=user.pk,
        is_active=bool(getattr(user, "is_active", True)),
        password_enabled=bool(user.has_usable_password()),
        password_last_changed=record.changed_at if seen else None,
        password_last_changed_assumed=None if seen or not applies else counted,
        password_next_rotation=judged.expires_at,
        policy=judged.chosen.policy.name,
        rule=judged.chosen.rule,
        state=_state(applies, judged, told),
        require=judged.require or (None if told is None else told.require),
        reason=reason,
        since=since,
        by=names.get(_actor(judged, told)),
        batch=None if told is None else told.batch,
        grace_logins_used=record.grace_used,
        grace_logins_left=judged.grace,
        pwdReset=judged.given is not None,
        lockout_at=record.lockout_at,
        would_hold=record.would_hold,
        would_hold_at=record.would_hold_at,
    )


AGES = (0, 30, 60, 90, 180, 365)
DAYS_LEFT = (0, 1, 7, 14, 30, 60, 90, 180, 365)


def total(found: Iterable[Evidence]) -> dict[str, dict[str, int]]:
    """How many users there are of each kind; ages and what is left of them in days."""
    now = timezone.now()
    counts: dict[str, Counter[str]] = {
        "users": Counter(all=0),
        "state": Counter(dict.fromkeys(STATES, 0)),
        "reason": Counter(),
        "policy": Counter(),
        "age": Counter(_labels(AGES)),
        "days_left": Counter({"aged out": 0, **_labels(DAYS_LEFT), "never": 0}),
    }
    for row in found:
        counts["users"]["all"] += 1
        counts["state"][row.state] += 1
        if row.state == "not_applicable":
            continue
        if row.reason is not None:
            counts["reason"][row.reason] += 1
        counts["policy"][row.policy or row.rule] += 1
        since = row.password_last_changed or row.password_last_changed_assumed
        assert since is not None
        counts["age"][_label(AGES, max(0, (now - since).days))] += 1
        until = row.password_next_rotation
        if until is None:
            counts["days_left"]["never"] += 1
        elif until <= now:
            counts["days_left"]["aged out"] += 1
        else:
            counts["days_left"][_label(DAYS_LEFT, (until - now).days)] += 1
    return {name: dict(one) for name, one in counts.items()}


def _labels(starts: Sequence[int]) -> dict[str, int]:
    return {_label(starts, start): 0 for start in starts}


def _label(starts: Sequence[int], days: int) -> str:
    at = max(number for number, start in enumerate(starts) if days >= start)
    if at == len(starts) - 1:
        return f"{starts[at]} and more"
    first, last = starts[at], starts[at + 1] - 1
    return str(first) if first == last else f"{first} to {last}"


def batch_rows() -> Iterator[BatchEvidence]:
    """A row for each batch that is kept, the oldest first."""
    batches = ExpiryBatch.objects.using(feed.using).order_by("pk")
    after = 0
    while page := list(batches.filter(pk__gt=after)[:PAGE]):
        yield from retried(partial(_batch_page, page), using=feed.using)
        after = page[-1].pk


def _batch_page(page: Sequence[ExpiryBatch]) -> list[BatchEvidence]:
    names = usernames(batch.actor_id for batch in page)
    counted = active_demands(batch__in=page).values("batch").annotate(count=Count("pk"))
    left = dict(counted.values_list("batch", "count"))
    for batch in page:
        if batch.everyone and batch.number is not None and batch.cancelled_at is None:
            left[batch.pk] = _wanted_of_everyone(batch)
    return [_batch_row(batch, names.get(batch.actor_id), left.get(batch.pk, 0)) for batch in page]


def _wanted_of_everyone(batch: ExpiryBatch) -> int:
    users = all_users().filter(usable_password())
    users = users.exclude(pwexpire_record__satisfied__gte=batch.number)
    return users.exclude(pwexpire_exclusions__batch=batch).count()


def _batch_row(batch: ExpiryBatch, by: str | None, left: int) -> BatchEvidence:
    return BatchEvidence(
        batch=batch.pk,
        number=batch.number,
        state=str(batch.state),
        selection=batch.selection,
        everyone=batch.everyone,
        reason=str(batch.reason),
        require=str(batch.require),
        sessions=str(batch.sessions),
        by=by,
        note=batch.note,
        created_at=batch.created_at,
        activated_at=batch.activated_at,
        cancelled_at=batch.cancelled_at,
        users_expired=batch.users_expired,
        users_already_expired=batch.users_already_expired,
        users_not_applicable=batch.users_not_applicable,
        sessions_flagged=batch.sessions_flagged,
        sessions_ended=batch.sessions_ended,
        open_demands=left,
    )

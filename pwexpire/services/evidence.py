"""What is known of every password, for those who have to prove it: a page of users at a time.

What the rules need is read for all users of a page at once; they are those of one user.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple

from django.contrib.auth import get_user_model
from django.core.exceptions import FieldDoesNotExist
from django.db.models import Count, QuerySet, prefetch_related_objects
from django.utils import timezone

from pwexpire.conf import conf
from pwexpire.feed import feed
from pwexpire.models import BatchState, Exclusion, ExpiryBatch, PasswordRecord, Require
from pwexpire.retries import retried
from pwexpire.services.judging import Judgement, Open, Rules, cause, has_password, pick, weigh
from pwexpire.services.selection import Selection, all_users
from pwexpire.services.status import (
    active_batches,
    active_demands,
    read_rules,
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
    rules, records = read_rules(), records_of(users)
    found = [
        (user, record, *look(rules, user, record, wanted[user.pk]))
        for user in users
        for record in [records.get(user.pk) or PasswordRecord()]
    ]
    names = usernames(cause(judged, told).by for *_, judged, told in found)
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


def look(
    rules: Rules, user: Any, record: PasswordRecord, wanted: Sequence[ExpiryBatch]
) -> tuple[Judgement, Open | None]:
    """The judgement, and the demand that is told to the user: an open one, or a warning."""
    unmet = [batch for batch in wanted if (batch.number or 0) > record.satisfied]
    holding = [batch for batch in unmet if batch.holds]
    judged = weigh(
        rules,
        user,
        record,
        demand=max((batch.number or 0 for batch in holding), default=0),
        find_open=lambda policy: pick(holding, policy, rules.now),
    )
    told = judged.opened
    if told is None and judged.applies and not judged.held:
        warnings = [one for one in unmet if not one.holds and one.require == Require.WARN]
        told = pick(warnings, judged.chosen.policy, rules.now)
    return judged, told


def usernames(pks: Iterable[Any]) -> dict[Any, str]:
    """Primary key -> name of the users that are still there."""
    wanted = {pk for pk in pks if pk is not None}
    if not wanted:
        return {}
    name = get_user_model().USERNAME_FIELD
    return dict(all_users().filter(pk__in=wanted).values_list("pk", name))


def _state(judged: Judgement, told: Open | None) -> str:
    if not judged.applies:
        return "not_applicable"
    if judged.held_by_age_alone and judged.grace:
        return "grace"
    if judged.held:
        return "locked" if judged.locked else "expired"
    return "warned" if judged.warn or told is not None else "ok"


def _row(
    rules: Rules,
    user: Any,
    record: PasswordRecord,
    judged: Judgement,
    told: Open | None,
    names: dict[Any, str],
) -> Evidence:
    why = cause(judged, told)
    seen = record.changed_at is not None and not record.assumed
    counted = record.changed_at or rules.assumed_change(user)
    return Evidence(
        user=str(user.get_username()),
        user_id=user.pk,
        is_active=bool(getattr(user, "is_active", True)),
        password_enabled=has_password(user),
        password_last_changed=record.changed_at if seen else None,
        password_last_changed_assumed=None if seen or not judged.applies else counted,
        password_next_rotation=judged.expires_at,
        policy=judged.chosen.policy.name,
        rule=judged.chosen.rule,
        state=_state(judged, told),
        require=judged.require or (None if told is None else told.require),
        reason=why.reason,
        since=why.since,
        by=names.get(why.by),
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
            left[batch.pk] = wanted_of_everyone(batch).count()
    return [_batch_row(batch, names.get(batch.actor_id), left.get(batch.pk, 0)) for batch in page]


def wanted_of_everyone(batch: ExpiryBatch) -> QuerySet[Any]:
    """The users against whom a batch on everyone is open."""
    users = all_users().filter(usable_password())
    users = users.exclude(pwexpire_record__satisfied__gte=batch.number)
    return users.exclude(pwexpire_exclusions__batch=batch)


def _batch_row(batch: ExpiryBatch, by: str | None, left: int) -> BatchEvidence:
    finished = batch.state == BatchState.DONE and not left
    return BatchEvidence(
        batch=batch.pk,
        number=batch.number,
        state=str(BatchState.FINISHED if finished else batch.state),
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

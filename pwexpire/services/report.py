"""What is known of every password, for those who have to prove it: a page of users at a time.

What the rules need is read for all users of a page at once; they are those of one user.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple

from django.contrib.auth import get_user_model

from pwexpire.feed import feed
from pwexpire.models import PasswordRecord
from pwexpire.retries import retried
from pwexpire.services.demands import all_users
from pwexpire.services.password_state import (
    OpenDemand,
    PasswordState,
    Rules,
    find_cause,
    has_password,
)
from pwexpire.services.selection import Selection
from pwexpire.services.status import judge_users, read_rules

PAGE = 1_000
STATES = ("ok", "warned", "expired", "grace", "locked", "not_applicable")


class UserRow(NamedTuple):
    """One row of the report. Times are aware datetimes, or ``None`` if there is none.

    ``user``, ``password_enabled``, ``password_last_changed``, ``password_next_rotation``: as in the
    credential report of AWS IAM. ``pwdReset``: as in draft-behera-ldap-password-policy, the
    password was given by somebody else and has to be changed.
    ``password_last_changed_assumed``: from when the age is counted where nobody saw the change.
    ``state``: one of ``STATES``. ``by``: the name of the user who asked for the change, or gave the
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


def rows(selection: Selection) -> Iterator[UserRow]:
    """A row for each selected user, with as many of them in memory as make a page."""
    for users in selection.pages(PAGE):
        yield from retried(partial(evaluate, users), using=feed.using)


def evaluate(users: Sequence[Any]) -> list[UserRow]:
    """A row for each of ``users``, in at most eight statements whatever their number.

    What callables of the site ask of the database (``PWEXPIRE_POLICY``, ``PWEXPIRE_APPLIES_TO``,
    ``PWEXPIRE_SECOND_FACTOR``) comes on top.
    """
    rules = read_rules()
    found = judge_users(users, rules)
    names = usernames(find_cause(password_state, shown).by for *_, password_state, shown in found)
    return [_row(rules, *one, names) for one in found]


def usernames(pks: Iterable[Any]) -> dict[Any, str]:
    """Primary key -> name of the users that are still there."""
    wanted = {pk for pk in pks if pk is not None}
    if not wanted:
        return {}
    name = get_user_model().USERNAME_FIELD
    return dict(all_users().filter(pk__in=wanted).values_list("pk", name))


def _state(password_state: PasswordState, shown: OpenDemand | None) -> str:
    if not password_state.applies:
        return "not_applicable"
    if password_state.held_by_age_alone and password_state.grace:
        return "grace"
    if password_state.held:
        return "locked" if password_state.locked else "expired"
    return "warned" if password_state.warn or shown is not None else "ok"


def _row(
    rules: Rules,
    user: Any,
    record: PasswordRecord,
    password_state: PasswordState,
    shown: OpenDemand | None,
    names: dict[Any, str],
) -> UserRow:
    why = find_cause(password_state, shown)
    seen = record.changed_at is not None and not record.assumed
    counted = record.changed_at or rules.assumed_change(user)
    return UserRow(
        user=str(user.get_username()),
        user_id=user.pk,
        is_active=bool(getattr(user, "is_active", True)),
        password_enabled=has_password(user),
        password_last_changed=record.changed_at if seen else None,
        password_last_changed_assumed=None if seen or not password_state.applies else counted,
        password_next_rotation=password_state.expires_at,
        policy=password_state.chosen.policy.name,
        rule=password_state.chosen.rule,
        state=_state(password_state, shown),
        require=password_state.require or (None if shown is None else shown.require),
        reason=why.reason,
        since=why.since,
        by=names.get(why.by),
        batch=None if shown is None else shown.batch,
        grace_logins_used=record.grace_used,
        grace_logins_left=password_state.grace,
        pwdReset=password_state.given is not None,
        lockout_at=record.lockout_at,
        would_hold=record.would_hold,
        would_hold_at=record.would_hold_at,
    )

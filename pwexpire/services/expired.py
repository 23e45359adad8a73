"""Who has to change the password, of many users: a condition for the admin, counts and batches.

It says what ``read_password_state`` says of one user. With one policy for all it is SQL. Where a
callable or a rule decides by the user, only Python can ask it, so SQL finds who may be held and
each is judged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from django.contrib.auth import get_user_model
from django.db.models import Count, Q, QuerySet

from pwexpire.conf import conf
from pwexpire.constants import REQUIRE_ORDER
from pwexpire.models import ExpiryBatch, Require
from pwexpire.policy import Policy
from pwexpire.services.demands import (
    Between,
    all_users,
    demands_in_force,
    open_demand_on_password,
    usable_password,
    users_wanted_by,
)
from pwexpire.services.password_state import OpenDemand, PasswordState, Rules
from pwexpire.services.selection import Selection
from pwexpire.services.status import judge_users, read_rules

NOBODY = Q(pk__in=[])
Asked = Callable[[PasswordState, OpenDemand | None], bool]


def is_applicable(users: QuerySet[Any]) -> Q:
    """Return a condition on ``users``: something can be demanded of them at all."""
    usable = usable_password()
    if conf.applies_to is None:
        return usable
    return _ask_each(users, NOBODY, usable, lambda password_state, shown: password_state.applies)


def is_expired(
    users: QuerySet[Any], least: str = Require.CHANGE, between: Between | None = None
) -> Q:
    """Return a condition on ``users``: they have to change the password now.

    ``least``: in a way that is at least as strict; with ``WARN`` a warning is enough.
    ``between``: as in ``open_demand``.
    """
    if least == Require.WARN:
        return is_expired(users, between=between) | is_warned(users, between)
    usable, demanded, rules = (
        usable_password(),
        open_demand_on_password(least, between),
        read_rules(),
    )

    def asks(password_state: PasswordState, shown: OpenDemand | None) -> bool:
        return password_state.held and _reaches(password_state.require or Require.CHANGE, least)

    itself = _by_each_policy(rules, lambda policy: _holds_by_itself(policy, rules, least))
    return _ask_each(users, demanded, demanded | usable & itself, asks)


def count_expired(
    users: QuerySet[Any], between: Between, least: str = Require.CHANGE
) -> tuple[int, int, int]:
    """Return how many ``users`` there are, are applicable, and are applicable and expired."""
    applicable = is_applicable(users)
    found = users.aggregate(seen=Count("pk"), asked=Count("pk", filter=applicable))
    # A statement of its own: inside an aggregate it would be a loop over the users, not a join.
    expired = users.filter(applicable & is_expired(users, least, between)).count()
    return found["seen"], found["asked"], expired


def find_open_users(batch: ExpiryBatch) -> QuerySet[Any]:
    """Return the users against whom ``batch`` is open, and of whom something can be demanded."""
    users = users_wanted_by(batch)
    return users.filter(is_applicable(users))


def count_open(batches: Sequence[ExpiryBatch]) -> dict[int, int]:
    """Return primary key -> number of users against whom each batch is open."""
    by_name = demands_in_force(batch__in=batches)
    users = all_users().filter(pk__in=by_name.values("user"))
    by_name = by_name.filter(user__in=users.filter(is_applicable(users)).values("pk"))
    counted = by_name.values("batch").annotate(count=Count("pk"))
    left = dict(counted.values_list("batch", "count"))
    for batch in batches:
        if batch.everyone and batch.number is not None and batch.cancelled_at is None:
            left[batch.pk] = find_open_users(batch).count()
    return left


def is_warned(users: QuerySet[Any], between: Between | None = None) -> Q:
    """Return a condition on ``users``: they are warned, and not expired."""
    usable, demanded = usable_password(), open_demand_on_password(Require.WARN, between)
    rules = read_rules()

    def asks(password_state: PasswordState, shown: OpenDemand | None) -> bool:
        return not password_state.held and (password_state.warn or shown is not None)

    itself = _by_each_policy(rules, lambda policy: _warns_by_itself(policy, rules))
    warned = _ask_each(users, demanded, demanded | usable & itself, asks)
    return warned & ~is_expired(users, between=between)


def may_be_warned_of_age() -> Q:
    """Return a condition on users that is true of all whose password ages out soon, and of few."""
    rules = read_rules()
    return _by_each_policy(rules, lambda policy: _warns_by_itself(policy, rules))


def _ask_each(users: QuerySet[Any], certain: Q, possible: Q, asks: Asked) -> Q:
    """``certain``: on whom SQL knows the answer is yes, unless ``PWEXPIRE_APPLIES_TO`` says no."""
    if conf.reconsider is None:  # one policy for all
        return possible
    if conf.applies_to is not None:
        certain = NOBODY
    yes: set[Any] = set()
    no: set[Any] = set()
    rules = read_rules()
    for page in Selection(users.filter(possible).exclude(certain)).pages():
        for user, _, password_state, shown in judge_users(page, rules):
            (yes if asks(password_state, shown) else no).add(user.pk)
    # The shorter list: a database takes so many keys in a statement and no more.
    if len(yes) <= len(no):
        return certain | Q(pk__in=yes)
    return possible & ~Q(pk__in=no)


def _by_each_policy(rules: Rules, condition: Callable[[Policy], Q]) -> Q:
    """Return on whom any policy of the site may have an effect by itself."""
    if rules.chosen_for is None:
        return NOBODY
    if conf.rules is None:  # a callable knows
        return ~NOBODY
    found = NOBODY
    for policy in conf.policies:
        found |= condition(policy)
    return found


def _reaches(require: str, least: str) -> bool:
    return REQUIRE_ORDER.index(require) >= REQUIRE_ORDER.index(least)


def _holds_by_itself(policy: Policy, rules: Rules, least: str) -> Q:
    """As ``decide`` and ``password_state`` say: an age, or a password that somebody else chose."""
    found = NOBODY
    if policy.max_age is not None and policy.require != Require.WARN:
        if _reaches(policy.require, least):
            found |= _changed_before(rules, rules.now - policy.max_age)
    if least == Require.CHANGE:
        found |= _is_given(policy, rules, None)
    elif least == Require.RESET and policy.temporary_for is not None:
        found |= _is_given(policy, rules, rules.now - policy.temporary_for)
    return found


def _warns_by_itself(policy: Policy, rules: Rules) -> Q:
    if policy.max_age is None:
        return NOBODY
    if policy.warn_steps:
        return _changed_before(rules, rules.now - policy.max_age + policy.warn_steps[0])
    if policy.require == Require.WARN:
        return _changed_before(rules, rules.now - policy.max_age)
    return NOBODY


def _changed_before(rules: Rules, then: datetime) -> Q:
    """As ``Rules.assumed_change`` says of a change that nobody saw."""
    unseen = Q(pwexpire_record__changed_at=None)
    came = ~NOBODY if rules.came <= then else NOBODY
    if rules.assume_joined and _has_joined():
        unseen &= Q(date_joined__lte=then) | (Q(date_joined=None) & came)
    else:
        unseen &= came
    return Q(pwexpire_record__changed_at__lte=then) | unseen


def _is_given(policy: Policy, rules: Rules, then: datetime | None) -> Q:
    """Somebody else chose the password, by ``then``, and the policy wants it to go."""
    found = NOBODY
    given = Q(pwexpire_record__given_at__isnull=False)
    if then is not None:
        given &= Q(pwexpire_record__given_at__lte=then)
    if policy.change_after_admin_reset:
        found |= given & Q(pwexpire_record__given_new=False)
    if policy.change_on_first_use:
        found |= given & Q(pwexpire_record__given_new=True)
        if _has_joined():
            unseen = Q(pwexpire_record__changed_at=None) | Q(pwexpire_record__assumed=True)
            imported = Q(date_joined__gt=rules.came)
            if then is not None:
                imported &= Q(date_joined__lte=then)
            found |= Q(pwexpire_record__given_at=None) & unseen & imported
    return found


def _has_joined() -> bool:
    return "date_joined" in {field.name for field in get_user_model()._meta.concrete_fields}

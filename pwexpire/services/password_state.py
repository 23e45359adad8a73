"""What the rules say of one password. Pure but for what callables of the site ask.

``services.status`` reads the facts of one user where writes go, ``services.report`` those of a
page of users; both are weighed here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import date, datetime, time, timedelta
from functools import cached_property
from typing import Any

from pwexpire.conf import PolicyFor
from pwexpire.constants import REQUIRE_ORDER
from pwexpire.loading import Predicate
from pwexpire.models import ExpiryBatch, PasswordRecord, Reason, Require
from pwexpire.policy import UNREADABLE, Age, Chosen, Decision, Policy, decide, evaluate_age

NOTHING_CHOSEN = Chosen(Policy())
# How soon a policy that could not be read is asked for again.
DOUBT = timedelta(minutes=1)


# What stands in the column of a user who has no password: nothing, or as in /etc/shadow.
NO_PASSWORD = ("", "*")


def has_password(user: Any) -> bool:
    """Whether an old password of ``user`` can be right; else no change page is a way out.

    Django takes an empty column for a password. A hash of an algorithm that is not known stays one:
    another backend may know it, and a reset link replaces it.
    """
    return bool(user.has_usable_password()) and user.password not in NO_PASSWORD


@dataclass(frozen=True, kw_only=True)
class OpenDemand:
    """The strictest of the demands that are open against a user."""

    require: str
    reason: str
    since: datetime
    note: str
    batch: int
    actor: Any


@dataclass(frozen=True, kw_only=True)
class GivenPassword:
    """A password that somebody else chose: since when, by whom, and how it has to go."""

    since: datetime
    by: Any
    require: str


@dataclass(frozen=True, kw_only=True)
class PasswordState:
    """``demand``: number of the open demand, 0 if none. ``ended``: older stamps are flushed.

    ``ages``: until when that counts as it is, by the clock. ``grace``: logins that are left, and
    ``grace_ages`` until when one of them is good: a further rule may hold the user before.
    ``given``: the password is one that somebody else chose, and has to go. ``applies``: whether
    anything can be demanded of this user at all. ``failed_changes``: wrong old passwords so far.
    ``in_doubt``: a policy that is meant for this user cannot be read.
    """

    applies: bool = True
    in_doubt: bool = False
    demand: int = 0
    ended: int = 0
    aged: bool = False
    ages: float | None = None
    expires_at: datetime | None = None
    warn: bool = False
    changed_at: datetime | None = None
    failed_changes: int = 0
    opened: OpenDemand | None = None
    chosen: Chosen = NOTHING_CHOSEN
    grace: int = 0
    grace_ages: float | None = None
    given: GivenPassword | None = None

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
        """The old password is withdrawn."""
        return self.require in (Require.RESET, Require.DENY)

    @property
    def withdrawn(self) -> bool:
        """The same, and no grace login is left for which it is still good."""
        return self.locked and not (self.held_by_age_alone and self.grace)


@dataclass(frozen=True)
class Cause:
    """Why, since when, and by whom (a primary key) something is demanded or warned of."""

    reason: str | None = None
    since: datetime | None = None
    by: Any = None


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The settings and the time, read once for one user or for many."""

    now: datetime
    read_came: Callable[[], datetime]
    chosen_for: PolicyFor | None
    applies_to: Predicate | None
    second_factor: Predicate | None
    assume_joined: bool
    reconsider: timedelta | None

    @cached_property
    def came(self) -> datetime:
        """The day on which pwexpire came; asked for where it matters only."""
        return self.read_came()

    def apply(self, user: Any) -> bool:
        if not has_password(user):
            return False
        return self.applies_to is None or bool(self.applies_to(user))

    def choose(self, user: Any) -> Chosen:
        return NOTHING_CHOSEN if self.chosen_for is None else self.chosen_for(user)

    def decide(self, user: Any, policy: Policy, changed_at: datetime | None) -> Decision:
        if policy.max_age is None:
            return Decision(must_change=False, expires_at=None, warn=False)
        return decide(
            policy,
            changed_at=changed_at or self.assumed_change(user),
            now=self.now,
            second_factor=self.excuses(user, policy),
        )

    def excuses(self, user: Any, policy: Policy) -> bool:
        """Whether there is a second factor beside a password that ages by itself only."""
        asks = policy.single_factor_only and self.second_factor is not None
        return asks and bool(self.second_factor(user))  # type: ignore[misc]

    def assumed_change(self, user: Any) -> datetime:
        """A change that nobody saw counts from the day pwexpire came, or the user joined."""
        joined = self._joined_at(user) if self.assume_joined else None
        return joined or self.came

    def imported(self, user: Any) -> datetime | None:
        """Since when a user is there whom Django did not see coming (``bulk_create``), or ``None``.

        Users who are saved after pwexpire came have a record with a change in it.
        """
        joined = self._joined_at(user)
        return joined if joined is not None and joined > self.came else None

    def _joined_at(self, user: Any) -> datetime | None:
        """A user model of a site's own may know the day only: it counts from its beginning."""
        joined = getattr(user, "date_joined", None)
        if isinstance(joined, date) and not isinstance(joined, datetime):
            joined = datetime.combine(joined, time.min, self.now.tzinfo)
        return joined if isinstance(joined, datetime) else None


def find_password_state(
    rules: Rules,
    user: Any,
    record: PasswordRecord,
    *,
    demand: int,
    find_open: Callable[[Policy], OpenDemand | None],
    ended: int = 0,
) -> PasswordState:
    """``demand``: the highest number that is not met, 0 if there is none.

    ``find_open``: the strictest of these demands; asked for if there are any.
    """
    again = [] if rules.reconsider is None else [rules.now + rules.reconsider]
    # A date that is still to come is of a clock that was wrong: it must not count for years.
    changed_at = record.changed_at
    # A clock was wrong. A backfill puts off what it assumes, and means it.
    if changed_at is not None and not record.assumed:
        changed_at = min(changed_at, rules.now)
    if not rules.apply(user):
        return PasswordState(
            applies=False,
            ended=ended,
            changed_at=changed_at,
            failed_changes=record.failed_changes,
            ages=_earliest(again),
        )
    chosen = rules.choose(user)
    each = chosen.each
    in_doubt = any(one is UNREADABLE for _, one in each)
    again += [rules.now + DOUBT] if in_doubt else []
    decisions = [rules.decide(user, one, changed_at) for _, one in each]
    age = evaluate_age(chosen.policy, chosen.rule, each, decisions)
    policy = age.policy
    return PasswordState(
        in_doubt=in_doubt,
        demand=demand,
        ended=ended,
        aged=age.aged,
        ages=_earliest([*age.next_times, *again]),
        expires_at=age.expires_at,
        warn=age.warn,
        changed_at=changed_at,
        failed_changes=record.failed_changes,
        opened=find_open(policy) if demand else None,
        chosen=_with_age(chosen, age),
        grace=max(0, policy.grace_logins - record.grace_used),
        grace_ages=age.next_hold.timestamp() if age.next_hold else None,
        given=_given(rules, user, record, policy),
    )


def _with_age(chosen: Chosen, age: Age) -> Chosen:
    if age.policy is chosen.policy and age.rule == chosen.rule:
        return chosen
    return replace(chosen, policy=age.policy, rule=age.rule)


def _earliest(times: list[datetime]) -> float | None:
    return min(times).timestamp() if times else None


def _given(rules: Rules, user: Any, record: PasswordRecord, policy: Policy) -> GivenPassword | None:
    since, new = record.given_at, record.given_new
    unseen = record.changed_at is None or record.assumed
    if since is None and unseen and policy.change_on_first_use:
        since, new = rules.imported(user), True
    if since is None or not policy.wants_own(new=new):
        return None
    require = Require.RESET if _is_over(policy, since, rules.now) else Require.CHANGE
    return GivenPassword(since=since, by=record.given_by_id, require=require.value)


def _is_over(policy: Policy, since: datetime, now: datetime) -> bool:
    return policy.temporary_for is not None and now >= since + policy.temporary_for


def pick_strictest(
    batches: Iterable[ExpiryBatch], policy: Policy, now: datetime
) -> OpenDemand | None:
    """The strictest of these batches; the newest of several.

    A password that was given by somebody else is withdrawn after ``Policy.temporary_for``.
    """
    found: list[tuple[int, int, OpenDemand]] = []
    for batch in batches:
        require, since = str(batch.require), batch.activated_at
        assert since is not None and batch.number is not None
        temporary = batch.reason == Reason.FIRST_USE and require == Require.CHANGE
        if temporary and _is_over(policy, since, now):
            require = Require.RESET.value
        one = OpenDemand(
            require=require,
            reason=batch.reason,
            since=since,
            note=batch.note,
            batch=batch.pk,
            actor=batch.actor_id,
        )
        found.append((REQUIRE_ORDER.index(require), batch.number, one))
    return max(found, key=lambda one: one[:2])[2] if found else None


def find_cause(password_state: PasswordState, shown: OpenDemand | None) -> Cause:
    """``shown``: the open demand, or a warning."""
    if shown is not None:
        return Cause(shown.reason, shown.since, shown.actor)
    if password_state.given is not None:
        return Cause(Reason.FIRST_USE.value, password_state.given.since, password_state.given.by)
    return Cause(Reason.AGE.value, password_state.expires_at) if password_state.aged else Cause()

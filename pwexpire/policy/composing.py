"""What several policies come to that are meant for the same user: the strictest of each demand."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from pwexpire.constants import REQUIRE_ORDER
from pwexpire.policy.rules import Decision, Policy


@dataclass(frozen=True, kw_only=True)
class Age:
    """What every policy says of the age of one password.

    ``policy``, ``rule``: which one comes first, with the strictest ``require`` and the fewest
    ``grace_logins`` of those that hold the user now. ``next_times``: when anything of this changes,
    ``next_hold``: when a further policy begins to hold the user.
    """

    policy: Policy
    rule: str
    aged: bool = False
    warn: bool = False
    expires_at: datetime | None = None
    next_times: list[datetime] = field(default_factory=list)
    next_hold: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class _Aging:
    """One policy that gives this password an end."""

    rule: str
    policy: Policy
    expires_at: datetime
    is_over: bool

    warns: bool

    @property
    def only_warns(self) -> bool:
        return self.policy.require == "warn"

    @property
    def holds_now(self) -> bool:
        return self.is_over and not self.only_warns

    @property
    def will_hold(self) -> bool:
        return not self.is_over and not self.only_warns

    @property
    def is_warning(self) -> bool:
        return self.is_over and self.only_warns


def combine(first: Policy, policies: Sequence[Policy]) -> Policy:
    """``first``, with the strictest of all ``policies`` in what does not depend on the age."""
    return _replace_fields(
        first,
        history=max(one.history for one in policies),
        min_age=_pick_interval(max, [one.min_age for one in policies]),
        change_on_first_use=any(one.change_on_first_use for one in policies),
        change_after_admin_reset=any(one.change_after_admin_reset for one in policies),
        temporary_for=_pick_interval(min, [one.temporary_for for one in policies]),
    )


def _pick_interval(pick: Any, values: list[timedelta | None]) -> timedelta | None:
    found: timedelta | None = pick((one for one in values if one is not None), default=None)
    return found


def _replace_fields(policy: Policy, **values: Any) -> Policy:
    # Not dataclasses.replace(): a min_age that is longer than the max_age of another rule is a
    # mistake in one policy, but not of two, and must not be an exception at login.
    made = copy(policy)
    for name, value in values.items():
        object.__setattr__(made, name, value)
    return made


def evaluate_age(
    combined: Policy, rule: str, each: Sequence[tuple[str, Policy]], decisions: Sequence[Decision]
) -> Age:
    """``combined``: what counts of ``each`` beside the age; ``rule``: where no age counts.

    ``decisions``: of each policy, in the same order.
    """
    aging = _list_aging(each, decisions)
    if not aging:
        return Age(policy=combined, rule=rule)
    first, same = _find_first(aging)
    coming = [one.expires_at for one in aging if one.will_hold]
    return Age(
        policy=combined if len(each) == 1 else _apply_age(combined, first, same, aging),
        rule=first.rule,
        aged=first.is_over,
        warn=any(one.warns or one.is_warning for one in aging),
        expires_at=first.expires_at,
        next_times=[one.expires_at for one in aging if not one.is_warning],
        next_hold=min(coming, default=None),
    )


def _list_aging(each: Sequence[tuple[str, Policy]], decisions: Sequence[Decision]) -> list[_Aging]:
    return [
        _Aging(
            rule=key,
            policy=policy,
            expires_at=made.expires_at,
            is_over=made.must_change,
            warns=made.warn,
        )
        for (key, policy), made in zip(each, decisions, strict=True)
        if made.expires_at is not None
    ]


def _find_first(aging: list[_Aging]) -> tuple[_Aging, list[_Aging]]:
    """The policy that counts first, and all that count at the same time as it.

    One that holds the user now comes before one that will, and that before one that only warns.
    """
    # A warning that is out must not hide the day from which another policy holds the user.
    out = 3 if any(one.will_hold for one in aging) else 1

    def order(one: _Aging) -> tuple[Any, ...]:
        kind = 2 if not one.is_over else 0 if one.holds_now else out
        return kind, one.expires_at, -REQUIRE_ORDER.index(one.policy.require), one.rule

    first = min(aging, key=order)
    return first, [one for one in aging if one.holds_now] or [first]


def _apply_age(combined: Policy, first: _Aging, same: list[_Aging], aging: list[_Aging]) -> Policy:
    return _replace_fields(
        combined,
        max_age=first.policy.max_age,
        single_factor_only=first.policy.single_factor_only,
        name=first.policy.name,
        require=max((one.policy.require for one in same), key=REQUIRE_ORDER.index),
        grace_logins=min(one.policy.grace_logins for one in same),
        warn_before=tuple({step for one in aging for step in one.policy.warn_steps}) or None,
    )

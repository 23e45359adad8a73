"""What is promised, as a function of what happened. Written from the words, not from the code.

It knows a policy by its fields alone, and imports nothing of what it judges.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

MILDEST_FIRST = ["warn", "change", "reset", "deny"]


class Wanted(NamedTuple):
    """``first_use``: because of one. ``batch``: of whichever expiry."""

    require: str
    since: datetime
    first_use: bool = False
    batch: int = 0


@dataclass
class Facts:
    """What happened to the password of one user.

    ``changed``: when it was last changed, by anybody. ``given``: since when it is one that somebody
    else chose, ``given_new``: for a new user. ``demands``: what is demanded and was not met.
    """

    changed: datetime
    given: datetime | None = None
    given_new: bool = False
    grace_used: int = 0
    demands: list[Wanted] = field(default_factory=list)


@dataclass
class Rules:
    policy: Any
    second_factor: bool = False


def has_aged(facts: Facts, rules: Rules, now: datetime) -> bool:
    """A password is too old after ``max_age``; PCI DSS spares those with a second factor."""
    policy = rules.policy
    if policy.max_age is None or (policy.single_factor_only and rules.second_factor):
        return False
    return now >= facts.changed + policy.max_age


def is_given(facts: Facts, rules: Rules) -> bool:
    """Somebody else chose it, and the policy wants such a password to go."""
    if facts.given is None:
        return False
    policy = rules.policy
    return policy.change_on_first_use if facts.given_new else policy.change_after_admin_reset


def asked(facts: Facts, rules: Rules, now: datetime) -> tuple[str | None, bool]:
    """How a change is demanded now, ``None`` if it is not, and whether only for the age.

    A warning demands nothing. The strictest of several counts. What was given to somebody for a
    while is worth nothing afterwards.
    """
    policy = rules.policy
    others = []
    for one in facts.demands:
        late = one.first_use and policy.temporary_for and now >= one.since + policy.temporary_for
        others.append("reset" if late and one.require == "change" else one.require)
    if is_given(facts, rules):
        assert facts.given is not None
        dead = policy.temporary_for and now >= facts.given + policy.temporary_for
        others.append("reset" if dead else "change")
    age = [policy.require] if has_aged(facts, rules, now) else []
    strict = [one for one in others + age if one != "warn"]
    only_age = not [one for one in others if one != "warn"] and bool(strict)
    return max(strict, key=MILDEST_FIRST.index, default=None), only_age


def session(facts: Facts, rules: Rules, now: datetime, *, by_hand: bool = False) -> str:
    """What a session that was open before all this meets with: ``free``, ``held`` or ``out``."""
    require, _ = asked(facts, rules, now)
    if require in ("reset", "deny"):
        return "out"
    return "held" if require or by_hand else "free"


def log_in(facts: Facts, rules: Rules, now: datetime) -> str:
    """What a login with the right password comes to: ``free``, ``held``, ``refused`` or ``grace``.

    An aged password is good for ``grace_logins`` more, if nothing else stands against it.
    """
    require, only_age = asked(facts, rules, now)
    if require and only_age and facts.grace_used < rules.policy.grace_logins:
        facts.grace_used += 1
        return "grace"
    if require in ("reset", "deny"):
        return "refused"
    return "held" if require else "free"


def changed(facts: Facts, rules: Rules, now: datetime, *, by_other: bool) -> None:
    """A real change; only somebody else, an administrator, meets what is denied.

    An age that is not met goes on from the old date.
    """
    denied = rules.policy.require == "deny" and has_aged(facts, rules, now)
    if by_other or not denied:
        facts.changed, facts.grace_used = now, 0
    facts.demands = [] if by_other else [one for one in facts.demands if one.require == "deny"]
    facts.given, facts.given_new = (now if by_other else None), False

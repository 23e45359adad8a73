"""Which of several policies is meant for a user."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from pwexpire.constants import REQUIRE_ORDER
from pwexpire.policy.rules import Policy

DEFAULT = "default"
GROUP = "group:"


@dataclass(frozen=True)
class Chosen:
    """``rule``: the key of the mapping that it was found under, ``""`` where there is one only.

    ``matched``: all the keys that are meant for this user.
    """

    policy: Policy
    rule: str = ""
    matched: tuple[str, ...] = ()


def strictness(policy: Policy) -> tuple[Any, ...]:
    """Greater is stricter: first how soon, then how, then what else."""
    never = policy.max_age is None
    return (
        not never,
        -(policy.max_age or timedelta(0)),
        not policy.single_factor_only,
        REQUIRE_ORDER.index(policy.require),
        -policy.grace_logins,
        policy.history,
        policy.min_age or timedelta(0),
        policy.change_on_first_use,
        policy.change_after_admin_reset,
        policy.temporary_for is not None,
        -(policy.temporary_for or timedelta(0)),
    )


def choose(
    rules: Mapping[str, Policy], *, staff: bool, superuser: bool, groups: Iterable[str]
) -> Chosen:
    """The strictest policy of those that match; ``default`` counts where no other does."""
    keys = [GROUP + group for group in groups]
    keys += ["superuser"] if superuser else []
    keys += ["staff"] if staff else []
    found = sorted(key for key in keys if key in rules)
    if not found and DEFAULT in rules:
        found = [DEFAULT]
    if not found:
        return Chosen(Policy())
    rule = max(found, key=lambda key: (strictness(rules[key]), key))
    return Chosen(rules[rule], rule, tuple(found))

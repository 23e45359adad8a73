"""Which of several policies is meant for a user."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any

from pwexpire.constants import REQUIRE_ORDER
from pwexpire.policy.composing import combine
from pwexpire.policy.rules import UNREADABLE, Policy

DEFAULT = "default"
GROUP = "group:"


@dataclass(frozen=True)
class Chosen:
    """``policy``: the strictest of each demand. ``rule``: the key of the mapping that its age was
    found under, ``""`` where there is one only.

    ``matched``: all the keys that are meant for this user. ``several``: their policies, where they
    are more than one.
    """

    policy: Policy
    rule: str = ""
    matched: tuple[str, ...] = ()
    several: tuple[Policy, ...] = ()

    @property
    def each(self) -> list[tuple[str, Policy]]:
        """Every rule that is weighed for itself, with its policy."""
        if not self.several:
            return [(self.rule, self.policy)]
        return list(zip(self.matched, self.several, strict=True))


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
    """All that match, as one policy; ``default`` counts where no other does."""
    keys = [GROUP + group for group in groups]
    keys += ["superuser"] * bool(superuser) + ["staff"] * bool(staff)
    found = sorted(key for key in keys if key in rules)
    # A rule that cannot be read must not take a user out of the one that counts without it.
    if DEFAULT in rules and all(rules[key] is UNREADABLE for key in found):
        found.append(DEFAULT)
    if not found:
        return Chosen(Policy())
    if len(found) == 1:
        return Chosen(rules[found[0]], found[0], (found[0],))
    rule = max(found, key=lambda key: (strictness(rules[key]), key))
    several = tuple(rules[key] for key in found)
    return Chosen(combine(rules[rule], several), rule, tuple(found), several)


def choose_for(rules: Mapping[str, Policy], user: Any) -> Chosen:
    """As ``choose``, for ``user``, whose groups are asked for only if a rule names one."""
    asks_groups = any(key.startswith(GROUP) for key in rules)
    return choose(
        rules,
        staff=getattr(user, "is_staff", False),
        superuser=getattr(user, "is_superuser", False),
        # In Python, so that groups that were fetched together are not asked for one by one.
        groups=[group.name for group in user.groups.all()] if asks_groups else (),
    )


def choose_by_names(
    rules: Mapping[str, Policy], names: Mapping[Any, Iterable[str]]
) -> Callable[[Any], Chosen]:
    """As ``choose_for``, where the names of the groups are known: primary key -> names."""

    @cache
    def find(staff: bool, superuser: bool, groups: tuple[str, ...]) -> Chosen:
        return choose(rules, staff=staff, superuser=superuser, groups=groups)

    def choose_one(user: Any) -> Chosen:
        staff, superuser = getattr(user, "is_staff", False), getattr(user, "is_superuser", False)
        return find(staff, superuser, tuple(names.get(user.pk, ())))

    return choose_one

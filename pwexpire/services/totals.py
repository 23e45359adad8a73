"""How many users there are of each kind, from the rows of the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from django.utils import timezone

from pwexpire.services.report import STATES, UserRow

AGES = (0, 30, 60, 90, 180, 365)
DAYS_LEFT = (0, 1, 7, 14, 30, 60, 90, 180, 365)


def total(found: Iterable[UserRow]) -> dict[str, dict[str, int]]:
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

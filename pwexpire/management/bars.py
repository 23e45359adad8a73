"""Counts as bars of text."""

from __future__ import annotations

from collections.abc import Mapping

WIDTH = 40


def bars(counts: Mapping[str, int]) -> list[str]:
    """A line for each: name, bar and count; the longest bar is ``WIDTH`` wide."""
    most = max(counts.values(), default=0)
    names = max((len(name) for name in counts), default=0)
    figures = len(f"{most:,}")
    lines = []
    for name, count in counts.items():
        # A count above 0 shows at least one sign, or it would look like none.
        length = max(bool(count), round(WIDTH * count / most)) if most else 0
        lines.append(f"  {name:<{names}}  {count:>{figures},}  {'#' * length}".rstrip())
    return lines

"""Few rows in which the values of certain columns meet all values of all others."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product
from random import Random


def pairs_with(
    certain: Sequence[int], columns: Sequence[Sequence[str]], seed: int
) -> list[tuple[str, ...]]:
    """``certain``: the places of those columns. Greedy: the best of a few random rows around a
    pair that is still missing.
    """
    random = Random(seed)
    places = [pair for pair in combinations(range(len(columns)), 2) if {*certain} & {*pair}]
    missing = {
        (one, two, first, second)
        for one, two in places
        for first, second in product(columns[one], columns[two])
    }
    rows = []
    while missing:
        one, two, first, second = min(missing)
        best: tuple[str, ...] = ()
        gain = -1
        for _ in range(30):
            row = [random.choice(column) for column in columns]
            row[one], row[two] = first, second
            new = sum((a, b, row[a], row[b]) in missing for a, b in places)
            if new > gain:
                best, gain = tuple(row), new
        missing -= {(a, b, best[a], best[b]) for a, b in places}
        rows.append(best)
    return rows

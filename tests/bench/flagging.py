"""Flagging many sessions, beside the obvious way, and beside the least work that there is."""

from __future__ import annotations

import statistics
import tracemalloc
from collections.abc import Callable
from functools import partial
from typing import Any

from django.db import connection

from tests.bench import ways
from tests.bench.data import site
from tests.bench.databases import databases
from tests.bench.measure import Spread, counted_queries, in_turns, say, timed

Taken = dict[str, list[float]]


def measure_flagging(sizes: dict[int, int], loop_most: int, detailed: int) -> list[dict[str, Any]]:
    """``sizes``: number of sessions -> rounds. ``loop_most``: the loop is stopped after so many."""
    _measure(min(sizes), 1, 1, detailed=False)  # imports and caches are not what is measured
    return [
        _measure(size, rounds, min(loop_most, size), detailed=size == detailed)
        for size, rounds in sizes.items()
    ]


def _measure(count: int, rounds: int, looped: int, *, detailed: bool) -> dict[str, Any]:
    indexed = site(count, count, count)
    floors = ways.FLOORS[connection.vendor]
    work: dict[str, tuple[Callable[[], None], str]] = {
        "flag": (ways.flag, indexed),
        "expire": (ways.expire, indexed),
        **{name: (floor, indexed) for name, floor in floors.items()},
        "codec": (ways.codec, indexed),
        "loop": (partial(ways.loop, looped), indexed),
    }
    if detailed:
        work["first"] = (ways.flag, site(count, count, count, indexed=False))
        work["transaction"] = (ways.loop_in_transaction, indexed)
    taken: Taken = {name: [] for name in work}
    for turn in range(rounds):
        say(f"flagging {count:,} sessions, round {turn + 1} of {rounds}")
        for name in in_turns(turn, work):
            do, kept = work[name]
            databases().restore(kept)
            taken[name].append(timed(do).wall)
            if turn == 0 and not (name == "codec" or (name == "loop" and looped < count)):
                ways.check(name, keeps_expiry=name not in ("loop", "transaction"))
    taken["loop"] = [seconds * count / looped for seconds in taken["loop"]]
    databases().restore(indexed)
    with counted_queries() as queries:
        ways.flag()
    return {
        "sessions": count,
        "looped": looped,
        **_ratios(taken, list(floors)),
        "rounds": taken,
        "flag_statements_per_1000": len(queries.seen) * 1000 / count,
    }


def _ratios(taken: Taken, floors: list[str]) -> dict[str, Any]:
    best = min(floors, key=lambda name: statistics.median(taken[name]))
    floor, between = taken[best], Spread.between
    found = {
        "floor_way": best,
        "seconds": {
            "pwexpire": Spread.of(taken["flag"]),
            "expire_passwords": Spread.of(taken["expire"]),
            "floor": Spread.of(floor),
            "loop": Spread.of(taken["loop"]),
        },
        "floors": {name: Spread.of(taken[name]) for name in floors},
        "flag_faster_than_loop": between(taken["loop"], taken["flag"]),
        "expire_faster_than_loop": between(taken["loop"], taken["expire"]),
        "floor_faster_than_loop": between(taken["loop"], floor),
        "flag_over_floor": between(taken["flag"], floor),
        "expire_over_floor": between(taken["expire"], floor),
        "codec_share_of_floor": between(taken["codec"], floor),
    }
    if "first" in taken:
        found["first_flag_faster_than_loop"] = between(taken["loop"], taken["first"])
        found["flag_faster_than_loop_in_transaction"] = between(taken["transaction"], taken["flag"])
    return found


def measure_memory(few: int, many: int) -> dict[str, Any]:
    """What Python allocates at most: it must not grow with the sessions."""
    found: dict[str, Any] = {"few": few, "many": many}
    for name, work in (("flag", ways.flag), ("expire", ways.expire)):
        peaks = []
        for count in (few, many):
            say(f"memory of {name} for {count:,} sessions")
            kept = site(count, count, count)
            databases().restore(kept)
            work()  # imports and caches are not what grows
            databases().restore(kept)
            tracemalloc.start()
            try:
                work()
                peaks.append(tracemalloc.get_traced_memory()[1] / 2**20)
            finally:
                tracemalloc.stop()
        found[f"{name}_mib"] = peaks
        found[f"{name}_ratio"] = peaks[1] / peaks[0]
    return found

"""What is measured on one database, and how much of it."""

from __future__ import annotations

import os
import platform
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Sizes:
    idle_pairs: int
    verdicts: int
    # Number of sessions -> rounds.
    flagging: dict[int, int]
    loop_most: int
    detailed: int
    memory: tuple[int, int]
    one: list[int]
    one_rounds: int
    users: int
    users_rounds: int
    everyone_rounds: int
    reach_rounds: int
    waiting_few: int
    waiting_pairs: int
    workers: int
    workers_rounds: int


FULL = Sizes(
    idle_pairs=400,
    verdicts=4_000,
    flagging={1_000: 9, 10_000: 5, 100_000: 3},
    loop_most=10_000,
    detailed=10_000,
    memory=(5_000, 20_000),
    one=[1_000, 100_000, 1_000_000],
    one_rounds=24,
    users=1_000_000,
    users_rounds=3,
    everyone_rounds=24,
    reach_rounds=7,
    waiting_few=1_000,
    waiting_pairs=40,
    workers=100_000,
    workers_rounds=5,
)
QUICK = Sizes(
    idle_pairs=40,
    verdicts=400,
    flagging={500: 5, 2_000: 3, 8_000: 3},
    loop_most=2_000,
    detailed=2_000,
    memory=(2_000, 8_000),
    one=[1_000, 10_000, 100_000],
    one_rounds=8,
    users=100_000,
    users_rounds=3,
    everyone_rounds=8,
    reach_rounds=3,
    waiting_few=1_000,
    waiting_pairs=10,
    workers=8_000,
    workers_rounds=3,
)

HUGE = replace(FULL, users=10_000_000)
SIZES = {"quick": QUICK, "full": FULL, "huge": HUGE}

NAMES = [
    "idle",
    "verdict",
    "statements",
    "flagging",
    "memory",
    "one",
    "users",
    "everyone",
    "reach",
    "feed",
    "waiting",
    "workers",
    "report",
    "operators",
]


def _idle(sizes: Sizes, troubles: dict[str, str]) -> dict[str, Any]:
    from tests.bench import idle
    from tests.bench.databases import databases

    databases().make()
    rows = idle.measure_idle(sizes.idle_pairs, 50, troubles)
    strangers = idle.measure_strangers()
    return {"requests": rows, "strangers": strangers, "lookup_us": idle.measure_lookup()}


def _verdict(sizes: Sizes) -> list[dict[str, Any]]:
    from tests.bench import verdict
    from tests.bench.databases import databases

    databases().make()
    return verdict.measure_verdict(sizes.verdicts)


def _sections(sizes: Sizes, troubles: dict[str, str], users: int) -> dict[str, Callable[[], Any]]:
    from tests.bench import (
        evidence,
        feed,
        flagging,
        operators,
        reach,
        scale,
        statements,
        waiting,
        workers,
    )

    few, many = sizes.one[0], sizes.one[-1]
    return {
        "idle": lambda: _idle(sizes, troubles),
        "verdict": lambda: _verdict(sizes),
        "statements": statements.measure_statements,
        "flagging": lambda: flagging.measure_flagging(
            sizes.flagging, sizes.loop_most, sizes.detailed
        ),
        "memory": lambda: flagging.measure_memory(*sizes.memory),
        "one": lambda: scale.measure_one(sizes.one, sizes.one_rounds),
        "users": lambda: scale.measure_users(sizes.users, sizes.users_rounds),
        "everyone": lambda: scale.measure_everyone(few, many, sizes.everyone_rounds),
        "reach": lambda: reach.measure_reach(many, sizes.reach_rounds, sizes.detailed // 2),
        "feed": lambda: feed.measure_feed(sizes.users, sizes.users_rounds),
        "waiting": lambda: waiting.measure_waiting(
            sizes.waiting_few, sizes.users, sizes.waiting_pairs
        ),
        "workers": lambda: workers.measure_workers(sizes.workers, sizes.workers_rounds),
        "report": lambda: evidence.measure_report(sizes.users),
        "operators": lambda: operators.measure_operators(users),
    }


def run(
    on: str, only: list[str], troubles: dict[str, str], *, size: str, full: list[str], users: int
) -> dict[str, Any]:
    """Everything, or the sections named in ``only``, on a database that is dropped afterwards.

    ``full``: the sections that a quick run measures at full size all the same. ``users``: how many
    the section ``operators`` has.
    """
    import django

    django.setup()
    from tests.bench.databases import databases
    from tests.bench.measure import say
    from tests.bench.targets import figures

    failed: dict[str, str] = {}
    found: dict[str, Any] = {"database": on, "failed": failed}
    seconds: dict[str, float] = {}
    try:
        databases().make()
        found["database_version"] = databases().version()
        found["versions"] = (
            f"Python {platform.python_version()}, Django {django.__version__}, "
            f"{found['database_version']}, {os.cpu_count()} cores, {size} run"
        )
        for name in only or NAMES:
            say(f"{on}: {name}")
            began = time.monotonic()
            try:
                sizes = FULL if name in full else SIZES[size]
                found[name] = _sections(sizes, troubles, users)[name]()
            except Exception as error:  # the figures of the others are not lost by it
                traceback.print_exc()
                failed[name] = f"{type(error).__name__}: {error}"
            seconds[name] = round(time.monotonic() - began, 1)
    finally:
        databases().drop_all()
    found["section_seconds"] = seconds
    found["figures"] = figures(found)
    return found

"""The sessions of one batch, flagged by one process and by two at the same time.

As a program, ``python -m tests.bench.workers BATCH`` is one of them.
"""

from __future__ import annotations

import inspect
import sys
from typing import Any


def why_not() -> str:
    """Why it cannot be measured; empty if it can."""
    from pwexpire import services

    if "defer" in inspect.signature(services.expire_passwords).parameters:
        return ""
    return "`expire_passwords` does not take `defer=True`"


def _one_round(kept: str, count: int, processes: int) -> float:
    from django.contrib.auth import get_user_model

    from pwexpire import services
    from tests.bench.children import children
    from tests.bench.databases import databases
    from tests.bench.measure import timed

    databases().restore(kept)
    batch = services.expire_passwords(get_user_model().objects.all(), defer=True)
    with children("tests.bench.workers", str(batch.pk), count=processes) as workers:
        for worker in workers:
            worker.hear()

        def work() -> None:
            for worker in workers:
                worker.tell("go")
            for worker in workers:
                worker.hear()

        taken = timed(work).wall
    batch.refresh_from_db()
    if (batch.state, batch.sessions_flagged) != ("done", count):
        raise RuntimeError(f"{batch.state}: {batch.sessions_flagged} of {count} were flagged")
    return taken


def measure_workers(count: int, rounds: int) -> dict[str, Any]:
    from tests.bench.data import site
    from tests.bench.measure import Spread, in_turns, say

    if trouble := why_not():
        return {"trouble": trouble}
    kept = site(count, count, count)
    taken: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(rounds):
        say(f"one worker and two at {count:,} sessions, round {turn + 1} of {rounds}")
        for processes in in_turns(turn, taken):
            taken[processes].append(_one_round(kept, count, processes))
    return {
        "sessions": count,
        "seconds": {str(number): Spread.of(values) for number, values in taken.items()},
        "faster": Spread.between(taken[1], taken[2]),
    }


def main() -> None:
    import django

    django.setup()
    from pwexpire import services
    from pwexpire.models import ExpiryBatch
    from pwexpire.sessionstore.registry import get_adapter

    batch = ExpiryBatch.objects.get(pk=sys.argv[1])
    store = get_adapter().store_class()
    store.decode(store.encode({}))
    print("ready", flush=True)
    sys.stdin.readline()
    services.resume_expiry(batch)
    print("done", flush=True)


if __name__ == "__main__":
    main()

"""What must not depend on how many users and sessions there are, and what may do so mildly."""

from __future__ import annotations

import json
import statistics
from functools import partial
from typing import Any

from django.contrib.auth import get_user_model
from django.utils import timezone

from pwexpire import services
from tests.bench import ways
from tests.bench.children import children
from tests.bench.data import owners, site
from tests.bench.databases import databases
from tests.bench.measure import Spread, counted_queries, in_turns, say, timed

User = get_user_model()
# Users with sessions of their own in a site of any size, for the measurements that need some.
OWN = 500
AT_ONCE = 4
FEW_SESSIONS = 1_000


def full(size: int) -> str:
    """As many users as sessions."""
    return site(size, size, OWN)


def _expire_one(pk: int) -> None:
    batch = services.expire_passwords(User.objects.get(pk=pk))
    if batch.sessions_flagged != 1:
        raise RuntimeError(f"{batch.sessions_flagged} sessions were flagged, of one user")


def measure_one(sizes: list[int], rounds: int) -> dict[str, Any]:
    """Expiring one user among few and among many, in turns; another user each time."""
    kept = {size: full(size) for size in sizes}
    taken: dict[int, list[float]] = {size: [] for size in sizes}
    for turn in range(rounds):
        for size in in_turns(turn, sizes):
            databases().use(kept[size])
            first = turn * (AT_ONCE + 1)
            warm, *pks = owners(size, OWN)[first : first + AT_ONCE + 1]
            _expire_one(warm)

            def work(pks: list[int] = pks) -> None:
                for pk in pks:
                    _expire_one(pk)

            taken[size].append(timed(work).wall / AT_ONCE)
    return {
        "sizes": sizes,
        "seconds": [Spread.of(taken[size]) for size in sizes],
        "ratios": [Spread.between(taken[size], taken[sizes[0]]) for size in sizes],
    }


def _bare() -> None:
    User.objects.update(last_login=timezone.now())


def measure_users(count: int, rounds: int) -> dict[str, Any]:
    """Expiring a ``QuerySet`` of very many, beside one statement that writes as many rows."""
    kept = site(count, FEW_SESSIONS, FEW_SESSIONS)
    work = {"expire": ways.expire, "bare": _bare}
    taken: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(rounds):
        say(f"expiring {count:,} users, round {turn + 1} of {rounds}")
        for name in in_turns(turn, work):
            databases().restore(kept)
            taken[name].append(timed(work[name]).wall)
    databases().restore(kept)
    with children("tests.bench.memory") as (child,):
        before, after = json.loads(child.hear())
    return {
        "users": count,
        "seconds": {name: Spread.of(values) for name, values in taken.items()},
        "ratio": Spread.between(taken["expire"], taken["bare"]),
        "idle_mib": before,
        "added_mib": after - before,
    }


def measure_everyone(few: int, many: int, rounds: int) -> dict[str, Any]:
    kept = {count: full(count) for count in (few, many)}
    taken: dict[int, list[float]] = {count: [] for count in kept}
    statements = {}
    for turn in range(-1, rounds):
        for count in in_turns(turn, kept):
            databases().use(kept[count])
            # The first one also makes the state row where there is none.
            batches = [services.expire_everyone()]
            if turn < 0:
                with counted_queries() as queries:
                    batches.append(services.expire_everyone())
                statements[count] = len(queries.seen)
            else:
                run = partial(lambda made: made.append(services.expire_everyone()), batches)
                taken[count].append(timed(run).wall)
            for batch in batches:
                services.cancel_expiry(batch)
    return {
        "few": few,
        "many": many,
        "ratio": Spread.between(taken[many], taken[few]),
        "milliseconds": [statistics.median(taken[count]) * 1000 for count in (few, many)],
        "statements": [statements[few], statements[many]],
    }

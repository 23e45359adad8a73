"""What a process pays for very many open demands, and what an expiry pays to spare it."""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from typing import Any
from unittest import mock

from tests.bench.memory import peak_mib

# Keys that no user of a measured site has.
OTHERS = 50_000


def measure_feed(count: int, rounds: int) -> dict[str, Any]:
    """Of ``count`` users who were expired at once, as the next processes find them."""
    from django.contrib.auth import get_user_model

    from pwexpire import services
    from pwexpire.services import batches
    from tests.bench.children import children
    from tests.bench.data import site
    from tests.bench.databases import databases
    from tests.bench.measure import say, timed
    from tests.bench.scale import FEW_SESSIONS

    build = batches.write_filter
    building: list[float] = []

    def timed_build(batch: Any) -> None:
        building.append(timed(lambda: build(batch)).wall)

    databases().restore(site(count, FEW_SESSIONS, FEW_SESSIONS))
    say(f"expiring {count:,} users, whom other processes read")
    with mock.patch.object(batches, "write_filter", timed_build):
        users = get_user_model().objects.all()
        expiry = timed(lambda: services.expire_passwords(users)).wall
    found = []
    for _ in range(rounds):
        with children("tests.bench.feed", str(count)) as (child,):
            found.append(json.loads(child.hear()))
    return {
        "users": count,
        "expiry_seconds": expiry,
        "building_share": sum(building) / expiry,
        "read_seconds": statistics.median(one["seconds"] for one in found),
        "read_cpu_seconds": statistics.median(one["cpu"] for one in found),
        "statements": found[0]["statements"],
        "view_mib": found[0]["bytes"] / 2**20,
        "added_mib": statistics.median(one["added_mib"] for one in found),
        "asked_share": found[0]["asked_share"],
        "lookup_us": statistics.median(one["lookup_us"] for one in found),
    }


def count_bytes(view: Any) -> int:
    parts = [part for _, users in view.filters for part in users.parts]
    by_name = sys.getsizeof(view.users) + sum(map(sys.getsizeof, view.users))
    return sum(map(sys.getsizeof, parts)) + by_name


def main(count: int) -> None:
    """A process that begins, and reads what is open."""
    import django

    django.setup()
    from django.db import connection

    from pwexpire.feed import feed
    from tests.bench.measure import counted_queries

    connection.introspection.table_names()  # connecting is not measured
    before, cpu, began = peak_mib(), resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    view = feed.view(feed.scope())
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    added = peak_mib() - before
    if not all(view.is_demanded_after(0, str(pk)) for pk in range(1, count + 1, 97)):
        raise RuntimeError("somebody who is expired is not known")
    began = time.perf_counter()
    asked = sum(view.is_demanded_after(0, str(count + pk)) for pk in range(1, OTHERS + 1))
    lookups = time.perf_counter() - began
    feed.reset()
    with counted_queries() as queries:
        feed.view(feed.scope())
    answer = {
        "seconds": seconds,
        "cpu": after.ru_utime + after.ru_stime - cpu.ru_utime - cpu.ru_stime,
        "added_mib": added,
        "bytes": count_bytes(view),
        "asked_share": asked / OTHERS,
        "lookup_us": lookups / OTHERS * 1e6,
        "statements": len(queries.seen),
    }
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))

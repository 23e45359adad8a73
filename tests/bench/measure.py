"""Timing, counting and the data that the measurements share."""

from __future__ import annotations

import gc
import math
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY, get_user_model
from django.contrib.auth.hashers import make_password
from django.db import connection

from pwexpire.feed import feed

DATABASE = Path(os.environ["PWEXPIRE_BENCH_FILE"])
PASSWORD = make_password("old-Password-1")
CART = [{"sku": f"item-{n}", "quantity": n, "price": "12.50"} for n in range(5)]


@dataclass
class Spread:
    """The median of the ratios of pairs, and how far it can be trusted.

    ``low`` and ``high``: the 95 % interval of the median, from the ranks of the sorted ratios; of
    fewer than six pairs the smallest and the largest.
    """

    median: float
    low: float
    high: float
    pairs: int

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        ranked, count = sorted(values), len(values)
        rank = max(0, math.floor((count - 1.96 * math.sqrt(count)) / 2))
        return cls(statistics.median(ranked), ranked[rank], ranked[-1 - rank], count)

    def text(self, digits: int = 2) -> str:
        return f"{self.median:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


@dataclass
class Queries:
    reads: int = 0
    writes: int = 0
    seen: list[str] = field(default_factory=list)

    def __call__(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        self.seen.append(sql)
        if sql.lstrip("( ").upper().startswith("SELECT"):
            self.reads += 1
        elif sql.split()[0].upper() in ("INSERT", "UPDATE", "DELETE", "REPLACE"):
            self.writes += 1
        return execute(sql, params, many, context)


@contextmanager
def counted_queries() -> Iterator[Queries]:
    queries = Queries()
    with connection.execute_wrapper(queries):
        yield queries


@dataclass
class Timer:
    wall: float = 0.0
    cpu: float = 0.0


def timed(work: Callable[[], Any]) -> Timer:
    gc.collect()
    cpu, wall = time.thread_time(), time.perf_counter()
    work()
    return Timer(wall=time.perf_counter() - wall, cpu=time.thread_time() - cpu)


def snapshot(name: str) -> Path:
    """Keep the database as it is now."""
    connection.close()
    kept = DATABASE.with_name(name)
    shutil.copyfile(DATABASE, kept)
    return kept


def restore(kept: Path) -> None:
    """Bring back the same bytes, so that each measured run meets the same data."""
    connection.close()
    shutil.copyfile(kept, DATABASE)
    feed.drop()
    get_user_model().objects.first()  # opening the file is not measured


def add_users(count: int) -> None:
    model = get_user_model()
    for start in range(0, count, 5_000):
        stop = min(start + 5_000, count)
        model.objects.bulk_create(
            model(username=f"user{n}", password=PASSWORD) for n in range(start, stop)
        )


def payload(user: Any) -> dict[str, Any]:
    """What a session of a small shop holds."""
    return {
        SESSION_KEY: str(user.pk),
        BACKEND_SESSION_KEY: "django.contrib.auth.backends.ModelBackend",
        HASH_SESSION_KEY: user.get_session_auth_hash(),
        "cart": CART,
        "language": "en",
    }


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    titles = list(head)
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)

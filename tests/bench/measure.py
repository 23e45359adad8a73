"""Timing, counting and summing up, for all measurements."""

from __future__ import annotations

import gc
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from django.db import connection


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
    def of(cls, values: Iterable[float]) -> Spread:
        ranked = sorted(values)
        count = len(ranked)
        rank = max(0, math.floor((count - 1.96 * math.sqrt(count)) / 2))
        return cls(statistics.median(ranked), ranked[rank], ranked[-1 - rank], count)

    @classmethod
    def between(cls, over: Iterable[float], under: Iterable[float]) -> Spread:
        """Of the ratios of pairs."""
        return cls.of(one / two for one, two in zip(over, under, strict=True))

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


def in_turns(turn: int, ways: Iterable[Any]) -> list[Any]:
    """Forth and back, so that no way always has the same one before it."""
    order = list(ways)
    return order[::-1] if turn % 2 else order


def say(text: str) -> None:
    """Progress, beside the figures."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    titles = list(head)
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)

"""One user is judged: what the statement costs, what Python costs beside it, and an ORM lookup."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from django.contrib.auth import get_user_model
from django.db import connection

from pwexpire.services import expire_passwords
from pwexpire.services.status import read_counter_and_state
from tests.bench.data import PASSWORD
from tests.bench.measure import in_turns


class Clock:
    """The time inside of the driver, and the number of statements."""

    def __init__(self) -> None:
        self.seconds, self.statements = 0.0, 0

    def __call__(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        began = time.perf_counter()
        try:
            return execute(sql, params, many, context)
        finally:
            self.seconds += time.perf_counter() - began
            self.statements += 1


def measure_verdict(rounds: int) -> list[dict[str, Any]]:
    users = get_user_model()._default_manager
    free, due = (users.create(username=name, password=PASSWORD) for name in ("free", "due"))
    expire_passwords(due, reason="admin")
    ways: dict[str, Callable[[], Any]] = {
        "one index lookup by the ORM": lambda: users.filter(pk=free.pk).values_list("pk").first(),
        "the verdict of a user of whom nothing is demanded": lambda: read_counter_and_state(free),
        "of a user of whom a change is": lambda: read_counter_and_state(due),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    inside: dict[str, list[float]] = {name: [] for name in ways}
    statements: dict[str, int] = {}
    for work in ways.values():
        work()
    for turn in range(2 * rounds):
        # In turns as well: the whole time without a look inside, then the time inside.
        looks = bool(turn // 2 % 2)
        for name, work in in_turns(turn, ways.items()):
            clock = Clock()
            began = time.perf_counter()
            with connection.execute_wrapper(clock) if looks else nullcontext():
                work()
            if looks:
                inside[name].append(clock.seconds * 1000)
                statements[name] = clock.statements
            else:
                taken[name].append((time.perf_counter() - began) * 1000)
    free.delete()
    due.delete()
    rows = []
    for name in ways:
        whole, database = statistics.median(taken[name]), statistics.median(inside[name])
        row = {"name": name, "statements": statements[name], "ms": whole, "database_ms": database}
        rows.append(row | {"python_ms": whole - database})
    return rows

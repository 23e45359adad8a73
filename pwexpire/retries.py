"""Deadlocks and serialization failures: the work is done again, from its beginning."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

from django.db import (
    Error,
    IntegrityError,
    OperationalError,
    ProgrammingError,
    connections,
    transaction,
)

T = TypeVar("T")

TRIES = 12
FIRST_PAUSE_SECONDS, LAST_PAUSE_SECONDS = 0.02, 1.0
# SQLSTATE of a serialization failure, a deadlock, a lock that was not had in time.
STATES = ("40001", "40P01", "55P03")
# MariaDB: a record that changed since it was read, a lock wait timeout, a deadlock.
CODES = (1020, 1205, 1213)
# A key that another process added meanwhile, or a user whom it deleted: PostgreSQL, MariaDB,
# SQLite. A missing value (NOT NULL) is none: it is missing at the next try as well.
CROSSED_STATES, CROSSED_CODES = ("23505", "23503"), (1062, 1452)
CROSSED_WORDS = ("UNIQUE constraint failed", "FOREIGN KEY constraint failed")
# What another process did is seen at the next try, or it was something else.
CROSSED_TRIES = 2


def is_conflict(error: Exception) -> bool:
    """Whether the database chose this transaction to give way, and another try may succeed."""
    if not isinstance(error, Error):
        return False
    state, code = _read_codes(error)
    if isinstance(error, IntegrityError):
        crossed = state in CROSSED_STATES or code in CROSSED_CODES
        return crossed or any(words in str(error) for words in CROSSED_WORDS)
    return state in STATES or code in CODES or "locked" in str(error) or "deadlock" in str(error)


def _read_codes(error: Exception) -> tuple[Any, Any]:
    find_cause = error.__cause__
    state = getattr(find_cause, "sqlstate", None) or getattr(find_cause, "pgcode", None)
    return state, error.args[0] if error.args else None


def first_line(error: Exception) -> str:
    """Return what a fault says without its details, which may have a hash in them."""
    return str(error).partition("\n")[0]


def is_missing_table(error: Error) -> bool:
    """True while the code is there and ``migrate`` was not."""
    if not isinstance(error, (OperationalError, ProgrammingError)):
        return False
    text = str(error).lower()
    return any(words in text for words in ("no such table", "does not exist", "doesn't exist"))


def in_transaction(work: Callable[[], T], *, using: str) -> T:
    """Run ``work`` in a transaction of its own, again where it had to give way to another.

    Inside a transaction of the caller it is run once, in a savepoint: what else the caller did
    would be lost with it, so only the caller can try again.
    """

    def once() -> T:
        with transaction.atomic(using=using):
            return work()

    return retried(once, using=using)


def retried(work: Callable[[], T], *, using: str) -> T:
    """The same without a transaction, for what only reads."""
    tries = 1 if connections[using].in_atomic_block else TRIES
    pause = FIRST_PAUSE_SECONDS
    while True:
        tries -= 1
        try:
            return work()
        except Error as error:
            if not tries or not is_conflict(error):
                raise
            if isinstance(error, IntegrityError):
                tries = min(tries, CROSSED_TRIES)
        time.sleep(pause * random.uniform(0.5, 1))
        pause = min(2 * pause, LAST_PAUSE_SECONDS)


def savepoint(*, using: str) -> AbstractContextManager[None]:
    """So that a fault of ours leaves the caller's transaction as it was."""
    if connections[using].in_atomic_block:
        return transaction.atomic(using=using)
    return nullcontext()

"""Deadlocks and serialization failures: the work is done again, from its beginning."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

from django.db import Error, IntegrityError, connections, transaction

T = TypeVar("T")

TRIES = 12
FIRST_PAUSE_SECONDS, LAST_PAUSE_SECONDS = 0.02, 1.0
# SQLSTATE of a serialization failure, a deadlock, a lock that was not had in time.
STATES = ("40001", "40P01", "55P03")
# MariaDB: a record that changed since it was read, a lock wait timeout, a deadlock.
CODES = (1020, 1205, 1213)


def is_conflict(error: Exception) -> bool:
    """Whether the database chose this transaction to give way, and another try may succeed."""
    if isinstance(error, IntegrityError):  # a user was deleted while he was being selected
        return True
    if not isinstance(error, Error):
        return False
    cause = error.__cause__
    state = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    code = error.args[0] if error.args else None
    return state in STATES or code in CODES or "locked" in str(error) or "deadlock" in str(error)


def in_transaction(work: Callable[[], T], *, using: str) -> T:
    """Run ``work`` in a transaction of its own, again where it had to give way to another.

    Inside a transaction of the caller it is run once, in a savepoint: what else the caller did
    would be lost with it, so he alone can try again.
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
        time.sleep(pause * random.uniform(0.5, 1))
        pause = min(2 * pause, LAST_PAUSE_SECONDS)


def savepoint(*, using: str) -> AbstractContextManager[None]:
    """So that a fault of ours leaves the caller's transaction as it was."""
    if connections[using].in_atomic_block:
        return transaction.atomic(using=using)
    return nullcontext()

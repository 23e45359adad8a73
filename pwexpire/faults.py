"""The log of faults that every request meets again while a database or a cache is down."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from django.db import Error as DatabaseFault

logger = logging.getLogger("pwexpire")

EVERY_SECONDS = 60.0


class FaultLog:
    """One line a minute and process for each text; the next one counts what was left out."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything: after a fork, and between tests."""
        self._lock = threading.Lock()
        # Text -> when its last line was written, and how often it was left out since.
        self._known: dict[str, tuple[float, int]] = {}

    def error(self, text: str, error: object) -> None:
        with self._lock:  # else two threads both take themselves for the first
            now = time.monotonic()
            since, left_out = self._known.get(text, (float("-inf"), 0))
            if now - since < EVERY_SECONDS:
                self._known[text] = since, left_out + 1
                return
            self._known[text] = now, 0
        more = f" ({left_out} more since the last line)" if left_out else ""
        logger.error("%s: %s%s", text, error, more)


fault_log = FaultLog()


@contextmanager
def logged_fault(text: str) -> Iterator[None]:
    """Go on after a fault of the database, where the decision stands without what was written."""
    try:
        yield
    except DatabaseFault as error:
        fault_log.error(text, error)

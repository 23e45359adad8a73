"""One thread of a process that asks the database, so that no request waits for the answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue

from django.db import close_old_connections, connections

Scope = tuple[str, str]


@dataclass(frozen=True)
class Asked:
    """A poll that waits for its turn or for the database; ``done`` also when it failed."""

    began: float = field(default_factory=time.monotonic)
    done: threading.Event = field(default_factory=threading.Event)


class Poller:
    """Calls ``poll`` in a thread that begins when it is needed first. A fork needs another one."""

    def __init__(self, poll: Callable[[Scope], None]) -> None:
        self._poll = poll
        self._lock = threading.Lock()
        self._wanted: SimpleQueue[Scope | None] = SimpleQueue()
        self._asked: dict[Scope, Asked] = {}
        self._thread: threading.Thread | None = None
        self.works = True

    def ask(self, scope: Scope) -> Asked | None:
        """Have ``scope`` polled, if that is not on its way; ``None`` if there can be no thread."""
        with self._lock:
            if not self._is_running():
                return None
            asked = self._asked.get(scope)
            if asked is None:
                asked = self._asked[scope] = Asked()
                self._wanted.put(scope)
            return asked

    def stop(self) -> None:
        """Let the thread end after the poll that it is at."""
        if self._thread is not None and self._thread.is_alive():
            self._wanted.put(None)

    def _is_running(self) -> bool:
        if self.works and (self._thread is None or not self._thread.is_alive()):
            thread = threading.Thread(target=self._run, name="pwexpire", daemon=True)
            self._asked.clear()  # what a thread that died had not done yet
            try:
                thread.start()
            except RuntimeError:  # a server that has no threads, or no more of them
                self.works = False
            else:
                self._thread = thread
        return self.works

    def _run(self) -> None:
        while (scope := self._wanted.get()) is not None:
            try:
                self._poll(scope)
            finally:
                with self._lock:
                    asked = self._asked.pop(scope, None)
                if asked is not None:
                    asked.done.set()
            # As at the end of a request: CONN_MAX_AGE counts for this connection as well.
            close_old_connections()
        connections.close_all()

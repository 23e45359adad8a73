"""Threads of a process that ask the database, so that no request waits for the answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue

from django.db import close_old_connections, connections

Scope = tuple[str, str]
# A connection may be lost without a word: after so long another one is tried, in another thread;
# after twice as long with each thread that hangs. It never stops: the database may be back.
LOST_SECONDS, LOST_SECONDS_MAX = 2.0, 60.0
# How long a request waits for a poll that hangs, and from what age on one counts as that. A quiet
# process has to connect first, and must not let anybody pass because that takes a moment.
HUNG_SECONDS, PATIENCE_SECONDS = 0.05, 0.5


@dataclass(frozen=True, eq=False)
class Asked:
    """A poll that waits for its turn or for the database; ``done`` also when it failed.

    ``patience``: how long a request may wait for it from ``began`` on; for one that follows a poll
    that hung, not at all.
    """

    patience: float = PATIENCE_SECONDS
    began: float = field(default_factory=time.monotonic)
    done: threading.Event = field(default_factory=threading.Event)

    def wait(self) -> bool:
        """Wait until it is done, or long enough; return whether it is done."""
        return self.done.wait(max(HUNG_SECONDS, self.began + self.patience - time.monotonic()))


class Worker:
    """A thread, and what it is asked for; ``None``: that it ends."""

    def __init__(self, run: Callable[[Scope, SimpleQueue[Asked | None]], None], scope: Scope):
        self.wanted: SimpleQueue[Asked | None] = SimpleQueue()
        self.thread = threading.Thread(
            target=run, args=(scope, self.wanted), name="pwexpire", daemon=True
        )


class Poller:
    """Calls ``poll``, for each scope in a thread that begins when it is needed first.

    So a database that hangs delays no other one. A fork needs another poller.
    """

    def __init__(self, poll: Callable[[Scope], None]) -> None:
        self._poll = poll
        self._lock = threading.Lock()
        self._asked: dict[Scope, Asked] = {}
        self._workers: dict[Scope, Worker] = {}
        self._hanging: list[Worker] = []
        self.works = True

    def ask(self, scope: Scope) -> Asked | None:
        """Have ``scope`` polled, if that is not on its way; ``None`` if there can be no thread."""
        with self._lock:
            asked, patience = self._asked.get(scope), PATIENCE_SECONDS
            if asked is not None and self._is_lost(asked):
                self._give_up(scope)
                patience = 0.0
            worker = self._workers.get(scope)
            if worker is None or not worker.thread.is_alive():
                worker = self._start(scope)
                if worker is None:
                    return None
            asked = self._asked.get(scope)
            if asked is None:
                asked = self._asked[scope] = Asked(patience)
                worker.wanted.put(asked)
            return asked

    def stop(self) -> None:
        """Let the threads end after the poll that each of them is at."""
        for worker in (*self._workers.values(), *self._hanging):
            worker.wanted.put(None)

    def _is_lost(self, asked: Asked) -> bool:
        self._hanging = [one for one in self._hanging if one.thread.is_alive()]
        seconds: float = min(LOST_SECONDS * 2 ** len(self._hanging), LOST_SECONDS_MAX)
        return time.monotonic() >= asked.began + seconds

    def _give_up(self, scope: Scope) -> None:
        worker = self._workers.pop(scope)
        worker.wanted.put(None)  # if it ever comes back
        self._hanging.append(worker)

    def _start(self, scope: Scope) -> Worker | None:
        self._asked.pop(scope, None)  # what the thread before had not done yet
        worker = Worker(self._run, scope)
        try:
            worker.thread.start()
        except RuntimeError:  # a server that has no threads, or no more of them
            self.works = False
            return None
        self._workers[scope] = worker
        return worker

    def _run(self, scope: Scope, wanted: SimpleQueue[Asked | None]) -> None:
        while (asked := wanted.get()) is not None:
            try:
                self._poll(scope)
            finally:
                with self._lock:
                    if self._asked.get(scope) is asked:
                        del self._asked[scope]
                asked.done.set()
            # As at the end of a request: CONN_MAX_AGE counts for this connection as well.
            close_old_connections()
        connections.close_all()

"""This process's view of the newest expiries: what a request may be judged by without a query."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from contextlib import nullcontext
from functools import partial

from django.db import Error, connections, router, transaction

from pwexpire.conf import conf
from pwexpire.demand_view import View, read_view
from pwexpire.exceptions import EnforcementUnavailable
from pwexpire.faults import fault_log
from pwexpire.models import PasswordRecord
from pwexpire.retries import is_missing_table, retried

logger = logging.getLogger("pwexpire")

BACKOFF_SECONDS = 1.0
NEVER = float("-inf")


class Feed:
    """One view per scope. Threads share it; one of them polls, the others go on with it."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything: after a fork, and between tests."""
        self._views: dict[tuple[str, str], View] = {}
        self._failed: dict[tuple[str, str], float] = {}
        self._lock = threading.Lock()
        self._by_schema: dict[str, bool] = {}
        self._told_missing = False
        self._generation = 0
        fault_log.reset()

    def drop(self) -> None:
        """Something was written here: the next request of this process asks the database again."""
        self._generation += 1
        self._failed = {}
        self.outdate()

    def outdate(self) -> None:
        """The next request looks at the settings again, and at the database if it may be polled."""
        for view in list(self._views.values()):
            view.started = view.fresh_until = NEVER

    def last_counter(self) -> int:
        """As far as this process knows; never queries."""
        view = self._views.get(self.scope())
        return 0 if view is None else view.counter

    def last_view(self, scope: tuple[str, str]) -> View | None:
        """What this process knew last, of whatever age; never queries."""
        return self._views.get(scope)

    @property
    def using(self) -> str:
        return router.db_for_write(PasswordRecord)

    def scope(self) -> tuple[str, str]:
        alias = self.using
        if alias not in self._by_schema:
            self._by_schema[alias] = hasattr(connections[alias], "schema_name")
        # To look a connection up is dear; only a database with tenants by schema needs it.
        if self._by_schema[alias]:
            return alias, str(connections[alias].schema_name)  # type: ignore[attr-defined]
        return alias, ""

    def current(self, scope: tuple[str, str]) -> View | None:
        """The view if it is young enough to be used as it is; never queries."""
        view = self._views.get(scope)
        return view if view is not None and time.monotonic() < view.fresh_until else None

    def view(self, scope: tuple[str, str]) -> View:
        """The view, after at most one small query.

        Raises ``EnforcementUnavailable`` if the database does not answer and the last answer is
        older than two intervals.
        """
        wanted = time.monotonic()
        view = self.current(scope)
        if view is not None:
            return view
        if conf.poll_seconds is None and (unasked := self._view_unasked(scope)) is not None:
            return unasked
        interval = conf.poll_seconds or 0.0
        old = self._views.get(scope)
        usable = old is not None and wanted - old.started < 2 * interval
        if not self._lock.acquire(blocking=not usable):
            assert old is not None
            return old
        try:
            view = self._views.get(scope)
            if view is not None and view.started >= wanted:
                return view
            return self._poll(scope, view, usable=usable)
        finally:
            self._lock.release()

    def _view_unasked(self, scope: tuple[str, str]) -> View | None:
        """The view of a process that polls never; ``None`` if it has written since it was read."""
        view = self._views.setdefault(scope, View())
        if view.generation != self._generation:
            return None
        view.polled, view.fresh_until, view.policy_key = False, math.inf, conf.policy_key
        return view

    def _poll(self, scope: tuple[str, str], view: View | None, *, usable: bool) -> View:
        now, spare = time.monotonic(), view if usable else None
        failed = self._failed.get(scope)
        said = "The enforcement state could not be read"
        if failed is None or now - failed >= BACKOFF_SECONDS:
            generation = self._generation
            try:
                with transaction.atomic(scope[0]) if self._inside(scope) else nullcontext():
                    fresh = retried(partial(self._read, scope[0], view), using=scope[0])
            except Error as error:
                self._failed[scope] = now
                if is_missing_table(error):
                    self._warn_of_migrate()
                    return View()
                if spare is not None:
                    fault_log.error(said, error)
                # Else the caller logs it: one line for both.
                said = f"{said}: {error}"
            else:
                self._failed.pop(scope, None)
                self._keep(scope, fresh, now, generation)
                return fresh
        if spare is not None:
            return spare
        raise EnforcementUnavailable(said)

    def _warn_of_migrate(self) -> None:
        if not self._told_missing:
            self._told_missing = True
            logger.warning("pwexpire has no tables yet: run manage.py migrate.")

    def _keep(self, scope: tuple[str, str], fresh: View, now: float, generation: int) -> None:
        keep = conf.poll_seconds is None or not self._inside(scope)
        # What an open transaction shows may never have been: use it once.
        if keep and generation == self._generation:
            interval = conf.poll_seconds
            fresh.started = now
            fresh.fresh_until = math.inf if interval is None else now + interval
            fresh.polled, fresh.generation = interval is not None, generation
        else:
            fresh.started = fresh.fresh_until = NEVER
        # Settings that every request needs; a change of one drops the view.
        fresh.policy_key = conf.policy_key
        self._views[scope] = fresh

    @staticmethod
    def _inside(scope: tuple[str, str]) -> bool:
        return connections[scope[0]].in_atomic_block

    @staticmethod
    def _read(using: str, old: View | None) -> View:
        return read_view(using, old)


feed = Feed()
if hasattr(os, "register_at_fork"):  # pragma: no branch
    os.register_at_fork(after_in_child=feed.reset)

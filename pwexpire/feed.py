"""This process's view of the newest expiries: what a request may be judged by without a query."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from contextlib import nullcontext, suppress
from functools import partial

from django.core import mail
from django.db import Error, connections, router, transaction

from pwexpire.conf import conf
from pwexpire.demand_view import View, read_view
from pwexpire.exceptions import EnforcementUnavailable
from pwexpire.faults import fault_log
from pwexpire.models import PasswordRecord
from pwexpire.poller import HUNG_SECONDS, Poller, Scope
from pwexpire.retries import is_missing_table, retried

logger = logging.getLogger("pwexpire")

BACKOFF_SECONDS = 1.0
# From what age on a poll in the thread of another request counts as one that hangs.
BEGUN_HERE_SECONDS = 5.0
NOT_READ = "The enforcement state could not be read"
NEVER = float("-inf")


class Feed:
    """One view per scope. Threads share it, and one of their own polls before it gets too old.

    Where that thread cannot be, one of the requests polls, and the others go on with the old view.
    """

    def __init__(self) -> None:
        self._poller = Poller(self._poll_aside)
        self.reset()

    def reset(self) -> None:
        """Forget everything: after a fork, and between tests."""
        self._poller.stop()
        self._poller = Poller(self._poll_aside)
        self._views: dict[Scope, View] = {}
        # By scope, and by whether a thread of our own failed: a request may have a connection where
        # that thread gets none.
        self._failed: dict[tuple[Scope, bool], tuple[float, str]] = {}
        self._lock = threading.Lock()
        self._began = NEVER
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

    def last_view(self, scope: Scope) -> View | None:
        """What this process knew last, of whatever age; never queries."""
        return self._views.get(scope)

    @property
    def using(self) -> str:
        return router.db_for_write(PasswordRecord)

    def scope(self) -> Scope:
        alias = self.using
        if alias not in self._by_schema:
            self._by_schema[alias] = hasattr(connections[alias], "schema_name")
        # To look a connection up is dear; only a database with tenants by schema needs it.
        if self._by_schema[alias]:
            return alias, str(connections[alias].schema_name)  # type: ignore[attr-defined]
        return alias, ""

    def current(self, scope: Scope) -> View | None:
        """The view if it is young enough to be used as it is; never queries."""
        view = self._views.get(scope)
        if view is None or (now := time.monotonic()) >= view.fresh_until:
            return None
        if now >= view.due:
            view.due = math.inf
            self._poller.ask(scope)
        return view

    def view(self, scope: Scope) -> View:
        """The view, after at most one small query, in this thread only if no other can do it.

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
        # What this process wrote is seen by its next request, however long that takes.
        if old is not None and old.started > NEVER and self._may_poll_aside(scope):
            asked = self._poller.ask(scope)
            if asked is not None:
                hangs = not asked.wait()
                if hangs or usable or self._is_newer(scope, wanted):
                    return self._newest(scope, wanted, old if usable else None)
        if not self._acquire(usable):
            return self._newest(scope, wanted, old if usable else None)
        try:
            self._began = time.monotonic()
            view = self._views.get(scope)
            if view is not None and (view.started >= wanted or wanted < view.fresh_until):
                return view
            return self._poll(scope, view, usable=usable)
        finally:
            self._lock.release()

    def _acquire(self, usable: bool) -> bool:
        """Wait for the request that polls, unless an old view is good enough or the poll hangs."""
        while not self._lock.acquire(timeout=0 if usable else HUNG_SECONDS):
            if usable or time.monotonic() >= self._began + BEGUN_HERE_SECONDS:
                return False
        return True

    def _newest(self, scope: Scope, wanted: float, spare: View | None) -> View:
        """What another thread has read by now, or what is good enough."""
        if self._is_newer(scope, wanted):
            return self._views[scope]
        if spare is not None:
            return spare
        silent = NEVER, f"{NOT_READ}: the database does not answer"
        _, said = self._failed.get((scope, False), silent)
        raise EnforcementUnavailable(said)

    def _is_newer(self, scope: Scope, wanted: float) -> bool:
        view = self._views.get(scope)
        return view is not None and wanted < view.fresh_until

    def _may_poll_aside(self, scope: Scope) -> bool:
        """Whether another thread would ask what this one would.

        Not in a transaction, which sees more; not for tenants, whose connection is set up by the
        request; and not in tests, whose database would be kept open, or is in the memory of the
        connection.
        """
        return bool(
            conf.poll_seconds
            and self._poller.works
            and not scope[1]
            and not hasattr(mail, "outbox")
            and not self._inside(scope)
        )

    def _poll_aside(self, scope: Scope) -> None:
        view = self._views.get(scope)
        usable = view is not None and time.monotonic() < view.fresh_until
        with suppress(EnforcementUnavailable):  # those who wait for it say so
            self._poll(scope, view, usable=usable, aside=True)
        if view is not None:
            view.due = time.monotonic() + BACKOFF_SECONDS  # if it stays

    def _view_unasked(self, scope: Scope) -> View | None:
        """The view of a process that polls never; ``None`` if it has written since it was read."""
        view = self._views.setdefault(scope, View())
        if view.generation != self._generation:
            return None
        view.polled, view.fresh_until, view.policy_key = False, math.inf, conf.policy_key
        return view

    def _poll(self, scope: Scope, view: View | None, *, usable: bool, aside: bool = False) -> View:
        now, spare, key = time.monotonic(), view if usable else None, (scope, aside)
        failed, said = self._failed.get(key, (NEVER, NOT_READ))
        if now - failed >= BACKOFF_SECONDS:
            generation = self._generation
            try:
                with transaction.atomic(scope[0]) if self._inside(scope) else nullcontext():
                    fresh = retried(partial(self._read, scope[0], view), using=scope[0])
            except Error as error:
                said = f"{NOT_READ}: {error}"
                self._failed[key] = now, said
                if is_missing_table(error):
                    self._warn_of_migrate()
                    return View()
                if spare is not None:  # else the caller logs it: one line for both
                    fault_log.error(NOT_READ, error)
            else:
                self._failed.pop(key, None)
                self._keep(scope, fresh, now, generation)
                return fresh
        if spare is not None:
            return spare
        raise EnforcementUnavailable(said)

    def _warn_of_migrate(self) -> None:
        if not self._told_missing:
            self._told_missing = True
            logger.warning("pwexpire has no tables yet: run manage.py migrate.")

    def _keep(self, scope: Scope, fresh: View, now: float, generation: int) -> None:
        keep = conf.poll_seconds is None or not self._inside(scope)
        # What an open transaction shows may never have been: use it once.
        if keep and generation == self._generation:
            interval = conf.poll_seconds
            fresh.started = now
            fresh.fresh_until = math.inf if interval is None else now + interval
            fresh.polled, fresh.generation = interval is not None, generation
            if self._may_poll_aside(scope):
                fresh.due = now + (interval or 0.0) / 2
        else:
            fresh.started = fresh.fresh_until = NEVER
        # Settings that every request needs; a change of one drops the view.
        fresh.policy_key = conf.policy_key
        known = self._views.get(scope)
        # A thread that hung for long comes back with what was true then.
        if known is None or known.started <= now:
            self._views[scope] = fresh
        if generation != self._generation:  # written meanwhile
            fresh.started = fresh.fresh_until = NEVER

    @staticmethod
    def _inside(scope: Scope) -> bool:
        return connections[scope[0]].in_atomic_block

    @staticmethod
    def _read(using: str, old: View | None) -> View:
        return read_view(using, old)


feed = Feed()
if hasattr(os, "register_at_fork"):  # pragma: no branch
    os.register_at_fork(after_in_child=feed.reset)

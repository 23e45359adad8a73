"""This process's view of the newest expiries: what a request may be judged by without a query."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections import OrderedDict
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from django.db import Error, OperationalError, ProgrammingError, connections, router, transaction
from django.db.models import F, Max, Q

from pwexpire.compiled import Compiled
from pwexpire.conf import conf
from pwexpire.exceptions import EnforcementUnavailable
from pwexpire.faults import fault_log
from pwexpire.models import (
    Demand,
    EnforcementState,
    ExpiryBatch,
    PasswordRecord,
    Require,
    SessionAction,
)
from pwexpire.retries import retried

logger = logging.getLogger("pwexpire")

USERS_MAX = 50_000
CLEARANCES_MAX = 50_000
BACKOFF_SECONDS = 1.0
NEVER = float("-inf")

ClearanceKey = tuple[str, str, int, str, bool, str | None]


@dataclass(frozen=True)
class Clearance:
    """Nothing was demanded of this session up to ``number``; its password ages out at ``ages``.

    ``flag``: the number of the flag that the session had then, and that stood for nothing.
    """

    number: int
    ages: float | None
    policy_key: str | None
    flag: int = 0


@dataclass
class View:
    """``users``: who has an open demand, and its number. ``floor``: the same for everybody.

    ``polled``: the counter is asked for again and again, so no session can begin after it.
    ``generation``: how often this process itself had written something when it was read.
    """

    counter: int = 0
    floor: int = 0
    users: dict[str, int] = field(default_factory=dict)
    clearances: OrderedDict[ClearanceKey, Clearance] = field(default_factory=OrderedDict)
    started: float = 0.0
    fresh_until: float = 0.0
    policy_key: str | None = None
    polled: bool = True
    generation: int = 0

    def demand(self, user_id: str) -> int:
        return max(self.floor, self.users.get(user_id, 0))

    def remember(self, key: ClearanceKey, verdict: Clearance) -> None:
        self.clearances[key] = verdict
        if len(self.clearances) > CLEARANCES_MAX:
            with suppress(KeyError):  # another thread may have been here
                self.clearances.popitem(last=False)


COUNTER = Compiled(lambda: EnforcementState.objects.values_list("counter"))


def read_counter(using: str) -> int:
    rows = COUNTER.rows(using)
    return rows[0][0] if rows else 0


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
                if is_missing_table(scope[0], error):
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

    def _read(self, using: str, old: View | None) -> View:
        counter = read_counter(using)
        if old is not None and old.counter == counter:
            return View(counter, old.floor, old.users, old.clearances)
        known = old if old is not None and old.counter < counter else View()
        floor = max(known.floor, self._read_floor(using, known.counter))
        rows = self._read_users(using, known.counter)
        users = dict(known.users)
        for user_id, number in rows:
            users[str(user_id)] = max(users.get(str(user_id), 0), number or 0)
        if len(rows) > USERS_MAX or len(users) > USERS_MAX:
            floor, users = max(floor, counter), {}
        return View(counter, floor, users, known.clearances)

    @staticmethod
    def _read_floor(using: str, after: int) -> int:
        """The newest number after ``after`` that is demanded of everybody."""
        # Sessions that were ended stay ended, though the demand behind it was cancelled.
        on_everyone = (
            ExpiryBatch.objects.using(using)
            .filter(
                Q(cancelled_at__isnull=True) | Q(sessions=SessionAction.END),
                number__gt=after,
                everyone=True,
            )
            .exclude(require=Require.WARN)
        )
        return on_everyone.aggregate(top=Max("number"))["top"] or 0

    @staticmethod
    def _read_users(using: str, after: int) -> list[tuple[Any, int | None]]:
        """Users and the numbers after ``after`` that are demanded of them, one more than fit."""
        # A warning holds nobody, so it must not when nothing but this view can be asked.
        demands = (
            Demand.objects.using(using)
            .exclude(batch__require=Require.WARN)
            .filter(batch__number__gt=after, batch__cancelled_at__isnull=True)
        )
        # Users who changed the password since have no older session that still answers.
        ends = PasswordRecord.objects.using(using).filter(ended__gt=after, satisfied__lt=F("ended"))
        # In one statement: a cancellation between two would move an end past both of them.
        return list(
            demands.values_list("user_id", "batch__number").union(
                ends.values_list("user_id", "ended"), all=True
            )[: USERS_MAX + 1]
        )


def is_missing_table(using: str, error: Error) -> bool:
    """True while the code is there and ``migrate`` was not."""
    if not isinstance(error, (OperationalError, ProgrammingError)):
        return False
    text = str(error).lower()
    return any(words in text for words in ("no such table", "does not exist", "doesn't exist"))


feed = Feed()
if hasattr(os, "register_at_fork"):  # pragma: no branch
    os.register_at_fork(after_in_child=feed.reset)

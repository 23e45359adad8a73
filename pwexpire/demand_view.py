"""Who has an open demand, as one process knows it: read from the database, asked without it."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import pairwise
from typing import Any

from django.db import Error
from django.db.models import F, Max, Q, QuerySet

from pwexpire.bloom import BloomFilter, build_filter, count_parts
from pwexpire.compiled import Compiled
from pwexpire.constants import LOCKING
from pwexpire.keys import key_text
from pwexpire.models import (
    Demand,
    EnforcementState,
    ExpiryBatch,
    FilterPart,
    PasswordRecord,
    Require,
    SessionAction,
)
from pwexpire.retries import is_missing_table, savepoint

# Single users whom a process keeps by name; of more it makes a filter.
USERS_MAX = 10_000
PAGE = 10_000
CLEARANCES_MAX = 50_000
# How long after an expiry its sessions may have left a trace; the last may be ended days after it.
TRACED = timedelta(days=30)
COUNTER = Compiled(lambda: EnforcementState.objects.values_list("counter"))
# Sessions that were ended stay ended, though the demand behind it was cancelled.
IN_FORCE = Q(cancelled_at__isnull=True) | Q(sessions=SessionAction.END)

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

    ``filters``: numbers, each with the users of whom it is demanded, and some others. ``newest``:
    the highest number of all these. ``polled``: the counter is asked for again and again, so no
    session can begin after it. ``generation``: how often this process itself had written something
    when it was read. ``traced_until``: until when a session may be found that was ended with a
    trace. ``due``: when another thread is asked for the next one.
    """

    counter: int = 0
    floor: int = 0
    users: dict[str, int] = field(default_factory=dict)
    clearances: OrderedDict[ClearanceKey, Clearance] = field(default_factory=OrderedDict)
    filters: tuple[tuple[int, BloomFilter], ...] = ()
    newest: int = 0
    traced_until: float = 0.0
    started: float = 0.0
    fresh_until: float = 0.0
    due: float = math.inf
    policy_key: str | None = None
    polled: bool = True
    generation: int = 0

    def __post_init__(self) -> None:
        if not self.newest:
            numbers = (number for number, _ in self.filters)
            self.newest = max(self.floor, *self.users.values(), *numbers, 0)

    def is_demanded_after(self, number: int, user_id: str) -> bool:
        """Whether more than ``number`` is demanded of this user.

        True for one in 150 users of whom nothing is; never false for one of whom something is.
        """
        # Who logged in after the newest expiry is not looked for.
        if number >= self.newest:
            return False
        if self.floor > number or self.users.get(user_id, 0) > number:
            return True
        return any(other > number and user_id in users for other, users in self.filters)

    def find_clearance(self, key: ClearanceKey) -> Clearance | None:
        try:
            self.clearances.move_to_end(key)
            return self.clearances[key]
        except KeyError:
            return None

    def remember(self, key: ClearanceKey, verdict: Clearance) -> None:
        """The one that was not asked for the longest time goes first."""
        self.clearances[key] = verdict
        if len(self.clearances) > CLEARANCES_MAX:
            with suppress(KeyError):  # another thread may have been here
                self.clearances.popitem(last=False)


def read_counter(using: str) -> int:
    rows = COUNTER.rows(using)
    return rows[0][0] if rows else 0


def read_view(using: str, old: View | None) -> View:
    """Ask for the counter, and where it moved for what came since ``old``."""
    # Before all else: what commits meanwhile has a higher number, and is read by the next poll.
    counter = read_counter(using)
    if old is None or old.counter > counter:  # the database was restored: none of it holds
        old = View()
    elif old.counter == counter:
        return replace(old, counter=counter)
    view = _read_on(using, old, counter)
    return view if view is not None else _read_anew(using, old, counter)


def _read_on(using: str, old: View, counter: int) -> View | None:
    """Add what is newer than ``old``; ``None`` if too many users would have to be kept by name."""
    floor, traced_until = _read_floor(using, old)
    filters = _read_filters(using, old.counter)
    demands, ends = _find_users(using, old.counter, filters)
    # In one statement: a cancellation between two would move an end past both of them.
    both = demands.values_list("user_id", "batch__number").union(
        ends.values_list("user_id", "ended"), all=True
    )
    rows = list(both[: USERS_MAX + 1])
    users = dict(old.users)
    for user_id, number in rows:
        key = key_text(user_id)
        users[key] = max(users.get(key, 0), number or 0)
    if len(rows) > USERS_MAX or len(users) > USERS_MAX:
        return None
    found = (*((number, bloom) for number, bloom in filters.values()), *old.filters)
    return View(counter, floor, users, old.clearances, found, traced_until=traced_until)


def _read_anew(using: str, old: View, counter: int) -> View:
    """Forget who was satisfied meanwhile; if there are still too many users, make a filter."""
    if old.counter and (view := _read_on(using, View(clearances=old.clearances), counter)):
        return view
    floor, traced_until = _read_floor(using, View())
    filters = _read_filters(using, 0)
    single = _fold_users(*_find_users(using, 0, filters))
    found = (single, *filters.values())
    return View(counter, floor, {}, old.clearances, found, traced_until=traced_until)


def _read_floor(using: str, old: View) -> tuple[int, float]:
    """The newest number that is demanded of everybody, and ``traced_until``."""
    # A warning holds nobody, so it must not when nothing but this view can be asked.
    on_everyone = IN_FORCE & Q(everyone=True) & ~Q(require=Require.WARN)
    found = (
        ExpiryBatch.objects.using(using)
        .filter(number__gt=old.counter)
        .aggregate(
            top=Max("number", filter=on_everyone),
            locked=Max("activated_at", filter=Q(require__in=LOCKING)),
        )
    )
    locked = found["locked"]
    traced_until = (locked + TRACED).timestamp() if locked else 0.0
    return max(old.floor, found["top"] or 0), max(old.traced_until, traced_until)


def _read_filters(using: str, after: int) -> dict[int, tuple[int, BloomFilter]]:
    """Return batch -> number and filter of those batches after ``after`` that have a whole one."""
    seen = F("users_expired") + F("users_already_expired") + F("users_not_applicable")
    batches = (
        ExpiryBatch.objects.using(using)
        .filter(IN_FORCE, number__gt=after, filter_parts__part=0, filter_parts__users_seen=seen)
        .exclude(require=Require.WARN)
    )
    try:
        with savepoint(using=using):
            rows = list(batches.values_list("pk", "number", "filter_parts__size"))
    except Error as error:
        if not is_missing_table(error):
            raise
        return {}  # migrate comes later; the rows say the same
    found = {}
    for pk, number, size in rows:
        bloom = _read_filter(using, pk, size)
        if bloom is not None:
            found[pk] = number or 0, bloom
    return found


def _read_filter(using: str, batch: int, size: int) -> BloomFilter | None:
    # One part a statement: drivers hold a row several times while they read it.
    bits = FilterPart.objects.using(using).filter(batch=batch).values_list("bits", flat=True)
    parts = [bytes(part) for n in range(count_parts(size)) for part in bits.filter(part=n)]
    # Pruning may have been here.
    return BloomFilter(size * 8, tuple(parts)) if sum(map(len, parts)) == size else None


def _find_users(
    using: str, after: int, filters: dict[int, tuple[int, BloomFilter]]
) -> tuple[QuerySet[Demand], QuerySet[PasswordRecord]]:
    """The rows of users by whom something after ``after`` is demanded, and no filter says it."""
    numbers = [number for number, _ in filters.values()]
    demands = (
        Demand.objects.using(using)
        .exclude(batch__require=Require.WARN)
        .filter(
            # Both: a database begins with the batches or, once it has counted, with the rows.
            _is_none_of("batch", filters),
            _is_none_of("batch__number", numbers),
            batch__number__gt=after,
            batch__cancelled_at__isnull=True,
        )
    )
    # Users who changed the password since have no older session that still answers.
    ends = PasswordRecord.objects.using(using).filter(
        _is_none_of("ended", numbers),
        ended__gt=after,
        satisfied__lt=F("ended"),
    )
    return demands, ends


def _is_none_of(column: str, values: Collection[int]) -> Q:
    """As ranges, so that an index leads past a million rows that have one of ``values``."""
    if not values:
        return Q()
    edges = sorted(values)
    outside = Q(**{f"{column}__lt": edges[0]}) | Q(**{f"{column}__gt": edges[-1]})
    for low, high in pairwise(edges):
        outside |= Q(**{f"{column}__gt": low, f"{column}__lt": high})
    return outside


def _fold_users(
    demands: QuerySet[Demand], ends: QuerySet[PasswordRecord]
) -> tuple[int, BloomFilter]:
    """Return the highest number that is demanded of any of these users, and their filter."""
    highest = 0

    def list_keys() -> Iterator[str]:
        nonlocal highest
        # Demands first: a cancellation meanwhile makes ends of them.
        for rows, number in ((demands, "batch__number"), (ends, "ended")):
            for user_id, one in _list_pages(rows, number):
                highest = max(highest, one or 0)
                yield key_text(user_id)

    bloom = build_filter(list_keys(), demands.count() + ends.count())
    return highest, bloom


def _list_pages(rows: QuerySet[Any], number: str) -> Iterator[tuple[Any, int | None]]:
    """Pages by key: behind a pool of connections no cursor lives until the next statement."""
    rows = rows.order_by("pk").values_list("pk", "user_id", number)
    page = list(rows[:PAGE])
    while page:
        yield from ((user_id, one) for _, user_id, one in page)
        page = list(rows.filter(pk__gt=page[-1][0])[:PAGE])

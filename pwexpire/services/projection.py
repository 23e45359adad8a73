"""An active batch, carried into the stored sessions by any number of processes.

The cursor of the batch says how far the work was given out, an ``ExpiryChunk`` what was given out
and is not done. A process that works at a chunk holds the lock of its row. When the process or its
connection ends, the lock ends too, and the next process finds the chunk free: no clock, no lease.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any

from django.contrib.auth import get_user_model
from django.db import connections
from django.db.models import F, QuerySet

from pwexpire.constants import LOCKING
from pwexpire.feed import feed
from pwexpire.keys import key_text
from pwexpire.models import (
    GIVEN_OUT,
    BatchState,
    Demand,
    ExpiryBatch,
    ExpiryChunk,
    SessionAction,
)
from pwexpire.retries import in_transaction
from pwexpire.services.demands import members
from pwexpire.services.index import uses_index
from pwexpire.services.selection import CHUNK, Selection
from pwexpire.services.sessions import (
    Owners,
    complete_index,
    delete_sessions,
    find_sessions,
    finds_by_user,
    sessions_of,
)
from pwexpire.services.staging import Progress
from pwexpire.sessionstore.base import Outcome
from pwexpire.sessionstore.registry import get_adapter

BY_USER, BY_KEY = "user:", "key:"
# Users without a session that are passed over while the batch is locked.
PASSED_OVER_MAX = 50_000


def project(
    batch: ExpiryBatch, progress: Progress | None = None, seconds: float | None = None
) -> None:
    """Work at the batch until nothing of it is free; it is done when nobody else is at it."""
    if not batch.everyone:
        complete_index(get_adapter())
        _work_through(batch, progress, None if seconds is None else time.monotonic() + seconds)
    elif batch.cursor != GIVEN_OUT:
        _find_batch(batch).update(cursor=GIVEN_OUT)
    # Done only when no part is left: another process may still be at one.
    if not batch.chunks.using(feed.using).exists():
        done = _find_batch(batch).filter(state=BatchState.ACTIVE, cursor=GIVEN_OUT)
        in_transaction(partial(done.update, state=BatchState.DONE), using=feed.using)
    batch.refresh_from_db(
        using=feed.using, fields=["state", "cursor", "sessions_flagged", "sessions_ended"]
    )


def _work_through(batch: ExpiryBatch, progress: Progress | None, until: float | None) -> None:
    done = 0
    while until is None or time.monotonic() < until:
        # A free part before a new one: it may be what a killed process gave back.
        seen = in_transaction(partial(_do_chunk, batch), using=feed.using)
        if seen is None:
            seen = in_transaction(partial(_give_out, batch), using=feed.using)
        if seen is None:
            return
        done += seen
        if progress is not None:
            progress(done, None)


def _find_batch(batch: ExpiryBatch) -> QuerySet[ExpiryBatch]:
    return ExpiryBatch.objects.using(feed.using).filter(pk=batch.pk)


def _lock_batch(batch: ExpiryBatch) -> ExpiryBatch:
    if not connections[feed.using].features.has_select_for_update:
        # SQLite: a transaction that begins by writing waits; one that has read before is refused.
        _find_batch(batch).update(cursor=F("cursor"))
    return _find_batch(batch).select_for_update().get()


def _do_chunk(batch: ExpiryBatch) -> int | None:
    """Do a part that is free; return its number of sessions, or ``None`` if no part is free."""
    chunks = batch.chunks.using(feed.using).order_by("pk")
    # Locked parts are passed over, or all workers would queue behind the first.
    if connections[feed.using].features.has_select_for_update_skip_locked:
        chunks = chunks.select_for_update(skip_locked=True)
        row = _find_batch(batch).get()
    else:
        row = _lock_batch(batch)
    if row.state != BatchState.ACTIVE:
        return None
    chunk = chunks.first()
    # Without row locks a part is taken by deleting it; a process that is killed deletes nothing.
    if chunk is None or not batch.chunks.using(feed.using).filter(pk=chunk.pk).delete()[0]:
        return None
    # In the transaction of the delete, so that a crash gives the part back.
    return _project_part(batch, chunk.lower, chunk.upper)


def _give_out(batch: ExpiryBatch) -> int | None:
    """Make the next part free; return ``None`` if there is nothing left."""
    row = _lock_batch(batch)
    if row.state != BatchState.ACTIVE or row.cursor == GIVEN_OUT:
        return None
    adapter = get_adapter()
    kind, part = BY_KEY, _part_of_keys
    if finds_by_user(adapter):
        kind = BY_USER
        part = _part_by_column if adapter.supports_user_lookup else _part_by_index
    lower, upper = part(batch, row.cursor if row.cursor.startswith(kind) else kind)
    if upper is None:  # the last one is done at once, while nobody else can look for it
        seen = _project_part(batch, lower, "")
        _find_batch(batch).update(cursor=GIVEN_OUT)
        return seen
    if lower != upper:
        ExpiryChunk.objects.using(feed.using).create(batch=batch, lower=lower, upper=upper)
    # With its row in one transaction, or a crash in between would lose the part.
    _find_batch(batch).update(cursor=upper)
    return 0


def _part_by_index(batch: ExpiryBatch, lower: str) -> tuple[str, str | None]:
    rows = list(_join_index(batch, lower, "")[:CHUNK])
    return lower, None if len(rows) < CHUNK else BY_USER + key_text(rows[-1][1])


def _part_by_column(batch: ExpiryBatch, lower: str) -> tuple[str, str | None]:
    """The next chunk of users who have any sessions; to ``None``: it is the last one."""
    for _ in range(PASSED_OVER_MAX // CHUNK):
        pks = _list_demanded(batch, lower, "")
        if len(pks) < CHUNK:
            return lower, None
        upper = BY_USER + key_text(pks[-1])
        if any(sessions_of(pks)):
            return lower, upper
        lower = upper
    return lower, lower


def _part_of_keys(batch: ExpiryBatch, lower: str) -> tuple[str, str | None]:
    last = get_adapter().last_key(lower.removeprefix(BY_KEY), CHUNK)
    return lower, None if last is None else BY_KEY + last


def _find_demands(batch: ExpiryBatch, lower: str, upper: str) -> QuerySet[Demand]:
    """Return the demands of this part that are still open."""
    to_python = get_user_model()._meta.pk.to_python
    demands = Demand.objects.using(feed.using).filter(batch=batch)
    if start := lower.removeprefix(BY_USER):
        demands = demands.filter(user_id__gt=to_python(start))
    if upper:
        demands = demands.filter(user_id__lte=to_python(upper.removeprefix(BY_USER)))
    return demands.order_by("user_id")


def _list_demanded(batch: ExpiryBatch, lower: str, upper: str) -> list[Any]:
    return list(_find_demands(batch, lower, upper).values_list("user_id", flat=True)[:CHUNK])


def _join_index(batch: ExpiryBatch, lower: str, upper: str) -> QuerySet[Any, tuple[str, Any]]:
    """(session key, user) of a part; users without sessions cost no more than the join."""
    key = "user__pwexpire_sessions"
    rows = _find_demands(batch, lower, upper).filter(**{f"{key}__isnull": False})
    return rows.values_list(key, "user_id")


def _project_part(batch: ExpiryBatch, lower: str, upper: str) -> int:
    """Flag or end the sessions of this part, and count them; return how many there were."""
    outcomes: Counter[Outcome] = Counter()
    seen = 0
    for owners in _find_owners(batch, lower, upper):
        seen += len(owners)
        if batch.sessions == SessionAction.END:
            outcomes.update(delete_sessions(owners, trace=batch.require in LOCKING))
        elif owners:
            number = batch.number
            wanted = {key: (key_text(pk), number) for key, pk in owners.items()}
            outcomes.update(get_adapter().flag(wanted))
    flagged, ended = outcomes[Outcome.FLAGGED], outcomes[Outcome.ENDED]
    # Added up in the database: several processes count at the same time.
    if flagged or ended:
        _find_batch(batch).update(
            sessions_flagged=F("sessions_flagged") + flagged,
            sessions_ended=F("sessions_ended") + ended,
        )
    return seen


def _find_owners(batch: ExpiryBatch, lower: str, upper: str) -> Iterator[Owners]:
    if lower.startswith(BY_USER) and uses_index(get_adapter()):
        # Read to the end first: to end a session removes the entry that is read here.
        rows = iter(list(_join_index(batch, lower, upper)))
        while page := dict(islice(rows, CHUNK)):
            yield page
        return
    if lower.startswith(BY_USER):
        while pks := _list_demanded(batch, lower, upper):
            yield from sessions_of(pks)
            lower = BY_USER + key_text(pks[-1])
        return
    after, last = lower.removeprefix(BY_KEY), upper.removeprefix(BY_KEY)
    yield from find_sessions(Selection(members(batch)), after=after, last=last)

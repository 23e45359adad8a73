"""What was cancelled and what was refused, by whom, when, why and for whom."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple

from django.db import Error as DatabaseFault
from django.utils import timezone

from pwexpire.feed import feed
from pwexpire.models import Cancellation, TraceKind
from pwexpire.retries import is_missing_table, retried, savepoint
from pwexpire.services.report import PAGE, usernames
from pwexpire.services.selection import CHUNK

logger = logging.getLogger("pwexpire")


class CancellationEvidence(NamedTuple):
    """One row of the report on cancellations. Without ``user_id`` it was a whole batch."""

    created_at: datetime
    kind: str
    batch: int | None
    user: str | None
    user_id: Any
    by: str | None
    note: str


def write_trace(
    pairs: Iterable[tuple[int | None, Any]],
    *,
    actor: Any,
    note: str,
    kind: str = TraceKind.CANCELLED,
) -> None:
    """Keep a row for each (key of a batch, key of a user) of ``pairs``; either may be ``None``.

    Called in the transaction of what it is about, so that neither is there without the other.
    While the table is not made yet, what is done counts more than its trace, which is logged.
    """
    now = timezone.now()
    by = None if actor is None else actor.pk
    rows = [
        Cancellation(
            kind=kind, batch_id=batch, user_id=user, actor_id=by, note=note, created_at=now
        )
        for batch, user in pairs
    ]
    with _without_table(f"{kind} of {[(row.batch_id, row.user_id) for row in rows]} by {by}"):
        Cancellation.objects.using(feed.using).bulk_create(rows, batch_size=CHUNK)


def erase_user(pk: Any) -> None:
    """Remove the rows about a user, and the key of the user from those by them."""
    rows = Cancellation.objects.using(feed.using)
    with _without_table(f"nothing of {pk}"):
        rows.filter(user=pk).delete()
        rows.filter(actor=pk).update(actor=None)


@contextmanager
def _without_table(lost: str) -> Iterator[None]:
    """Go on where ``migrate`` has not made the table yet; ``lost`` is logged."""
    try:
        with savepoint(using=feed.using):
            yield
    except DatabaseFault as error:
        if not is_missing_table(error):
            raise
        logger.error("The trace has no table yet, run manage.py migrate: %s", lost)


def cancellation_rows() -> Iterator[CancellationEvidence]:
    """A row for each cancellation and refusal that is kept, the oldest first."""
    kept = Cancellation.objects.using(feed.using).order_by("pk")
    after = 0
    while page := list(kept.filter(pk__gt=after)[:PAGE]):
        people = (pk for row in page for pk in (row.user_id, row.actor_id))
        names = retried(partial(usernames, people), using=feed.using)
        for row in page:
            yield CancellationEvidence(
                created_at=row.created_at,
                kind=str(row.kind),
                batch=row.batch_id,
                user=names.get(row.user_id),
                user_id=row.user_id,
                by=names.get(row.actor_id),
                note=row.note,
            )
        after = page[-1].pk

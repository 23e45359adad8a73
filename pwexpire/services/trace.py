"""What was cancelled and what was refused, by whom, when, why and for whom."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple

from django.utils import timezone

from pwexpire.feed import feed
from pwexpire.models import Cancellation, TraceKind
from pwexpire.retries import retried
from pwexpire.services.evidence import PAGE, usernames
from pwexpire.services.selection import CHUNK


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
    """
    now = timezone.now()
    by = None if actor is None else actor.pk
    rows = [
        Cancellation(
            kind=kind, batch_id=batch, user_id=user, actor_id=by, note=note, created_at=now
        )
        for batch, user in pairs
    ]
    Cancellation.objects.using(feed.using).bulk_create(rows, batch_size=CHUNK)


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

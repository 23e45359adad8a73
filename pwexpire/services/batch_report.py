"""What became of every expiry, for auditors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import partial
from typing import NamedTuple

from pwexpire.feed import feed
from pwexpire.models import BatchState, ExpiryBatch
from pwexpire.retries import retried
from pwexpire.services.expired import count_open
from pwexpire.services.report import PAGE, usernames


class BatchRow(NamedTuple):
    """One row of the report on batches. ``open_demands``: users whom it still wants."""

    batch: int
    number: int | None
    state: str
    selection: str
    everyone: bool
    reason: str
    require: str
    sessions: str
    by: str | None
    note: str
    created_at: datetime
    activated_at: datetime | None
    cancelled_at: datetime | None
    users_expired: int | None
    users_already_expired: int | None
    users_not_applicable: int | None
    sessions_flagged: int | None
    sessions_ended: int | None
    open_demands: int


def batch_rows() -> Iterator[BatchRow]:
    """A row for each batch that is kept, the oldest first."""
    batches = ExpiryBatch.objects.using(feed.using).order_by("pk")
    after = 0
    while page := list(batches.filter(pk__gt=after)[:PAGE]):
        yield from retried(partial(_batch_page, page), using=feed.using)
        after = page[-1].pk


def _batch_page(page: Sequence[ExpiryBatch]) -> list[BatchRow]:
    names = usernames(batch.actor_id for batch in page)
    left = count_open(page)
    return [_batch_row(batch, names.get(batch.actor_id), left.get(batch.pk, 0)) for batch in page]


def _batch_row(batch: ExpiryBatch, by: str | None, left: int) -> BatchRow:
    finished = batch.state == BatchState.DONE and not left
    return BatchRow(
        batch=batch.pk,
        number=batch.number,
        state=str(BatchState.FINISHED if finished else batch.state),
        selection=batch.selection,
        everyone=batch.everyone,
        reason=str(batch.reason),
        require=str(batch.require),
        sessions=str(batch.sessions),
        by=by,
        note=batch.note,
        created_at=batch.created_at,
        activated_at=batch.activated_at,
        cancelled_at=batch.cancelled_at,
        users_expired=batch.users_expired,
        users_already_expired=batch.users_already_expired,
        users_not_applicable=batch.users_not_applicable,
        sessions_flagged=batch.sessions_flagged,
        sessions_ended=batch.sessions_ended,
        open_demands=left,
    )

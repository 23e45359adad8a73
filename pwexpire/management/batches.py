"""What the verbs that work at batches share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.core.management.base import CommandError

from pwexpire.feed import feed
from pwexpire.models import BatchState, ExpiryBatch

UNFINISHED = (BatchState.STAGING, BatchState.STAGED, BatchState.ACTIVE)
ENQUEUE = "leave the stored sessions to tasks"
COUNTS = (
    "users_expired",
    "users_already_expired",
    "users_not_applicable",
    "sessions_flagged",
    "sessions_ended",
)


def find_batch(pk: int) -> ExpiryBatch:
    batch = ExpiryBatch.objects.using(feed.using).filter(pk=pk).first()
    if batch is None:
        raise CommandError(f"There is no batch {pk}.")
    return batch


def describe_batch(batch: ExpiryBatch) -> dict[str, Any]:
    return {
        "batch": batch.pk,
        "state": str(batch.state),
        "reason": str(batch.reason),
        **{name: getattr(batch, name) for name in COUNTS},
    }


def find_enqueuer(options: dict[str, Any]) -> Callable[[ExpiryBatch], None] | None:
    """Return what hands a batch over to tasks, if that was asked for; refuse if nothing can."""
    if not options["enqueue"]:
        return None
    from pwexpire.tasks import as_task, enqueue_expiry, work_at_expiry

    as_task(work_at_expiry)  # refused before anything is written
    return enqueue_expiry

"""How long batches, and what belongs to them, are kept."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import Any

from django.db.models import Exists, OuterRef, Q, QuerySet
from django.utils import timezone

from pwexpire.feed import feed
from pwexpire.models import (
    BatchState,
    Cancellation,
    Demand,
    Exclusion,
    ExpiryBatch,
    ExpiryChunk,
    FilterPart,
    Notice,
    PasswordRecord,
    Reason,
    SessionAction,
)
from pwexpire.retries import in_transaction
from pwexpire.services.expired import find_open_users
from pwexpire.services.selection import CHUNK

# A yearly audit finds the whole of the year before it.
KEPT_FOR = timedelta(days=400)
PARTS_AT_ONCE = 10
CHUNKS_READ = 100
CLOCKS_DIFFER = timedelta(hours=1)
# Written by the site itself, at a lockout or at the login with a weak password; earlier releases
# did so where a password aged out.
AUTOMATIC = (Reason.LOCKOUT, Reason.COMPROMISED, Reason.POLICY, Reason.AGE)


def _delete_chunks(rows: QuerySet[Any], chunk: int) -> int:
    """Delete ``rows``, ``chunk`` a transaction, so that nobody waits long for a lock."""
    removed, label = 0, rows.model._meta.label
    # Many keys are read at once: a database that sorts all of them would do so for each chunk.
    while pks := list(rows.order_by("pk").values_list("pk", flat=True)[: chunk * CHUNKS_READ]):
        for start in range(0, len(pks), chunk):
            found = rows.filter(pk__in=pks[start : start + chunk])
            deleted = in_transaction(found.delete, using=feed.using)[1]
            # The total would count what the database lets cascade.
            removed += deleted.get(label, 0)
    return removed


def prune_cancelled(chunk: int = CHUNK) -> int:
    """Remove the demands, exclusions and parts of cancelled batches; how many went."""
    cancelled = Q(batch__state=BatchState.CANCELLED)
    # Users who were left out of the end of all sessions keep theirs: the end outlives its batch.
    keeps_sessions = Q(batch__everyone=True, batch__sessions=SessionAction.END)
    return sum(
        _delete_chunks(rows, chunk)
        for rows in (
            Demand.objects.using(feed.using).filter(cancelled),
            Exclusion.objects.using(feed.using).filter(cancelled & ~keeps_sessions),
            ExpiryChunk.objects.using(feed.using).filter(cancelled),
        )
    )


def prune_filters() -> int:
    """Remove the filters of batches that hold nobody; how many parts went."""
    # The end of sessions outlives its batch.
    cancelled = Q(batch__state=BatchState.CANCELLED) & ~Q(batch__sessions=SessionAction.END)
    parts = FilterPart.objects.using(feed.using)
    useless = parts.filter(cancelled | Q(batch__state=BatchState.FINISHED))
    # Few at a time: where something listens to deletions, Django reads the rows first.
    return _delete_chunks(useless, PARTS_AT_ONCE)


def prune_batches(chunk: int = CHUNK) -> int:
    """Mark the batches that are satisfied by all as finished, and remove some; how many went.

    Those of lockouts and weak passwords, after ``KEPT_FOR``. What an operator asked for stays, as
    does what a cancellation refers to.
    """
    _finish_batches()
    finished = ExpiryBatch.objects.using(feed.using).filter(
        reason__in=AUTOMATIC,
        actor=None,
        selection__startswith="user ",
        everyone=False,
        state=BatchState.FINISHED,
        created_at__lt=timezone.now() - KEPT_FOR,
    )
    referred = Cancellation.objects.filter(batch=OuterRef("pk"))
    return _delete_chunks(finished.filter(~Exists(referred)), chunk)


def _finish_batches() -> None:
    done = ExpiryBatch.objects.using(feed.using).filter(state=BatchState.DONE)
    left = Demand.objects.filter(batch=OuterRef("pk"))
    satisfied = done.filter(~Exists(left), everyone=False)
    in_transaction(lambda: satisfied.update(state=BatchState.FINISHED), using=feed.using)
    for batch in done.filter(everyone=True):
        if not find_open_users(batch).exists():
            # The state is asked again: a cancellation meanwhile must not be overwritten.
            done.filter(pk=batch.pk).update(state=BatchState.FINISHED)


def prune_cancellations(chunk: int = CHUNK) -> int:
    """Remove cancellations and refusals that are older than ``KEPT_FOR``; how many went."""
    kept = Cancellation.objects.using(feed.using)
    return _delete_chunks(kept.filter(created_at__lt=timezone.now() - KEPT_FOR), chunk)


def prune_notices(chunk: int = CHUNK) -> int:
    """Remove notices that nobody can be sent again; how many went."""
    notices = Notice.objects.using(feed.using)
    return _delete_chunks(notices.filter(created_at__lt=timezone.now() - KEPT_FOR), chunk)


def future_changes() -> QuerySet[PasswordRecord]:
    """Return the records whose change is still to come: a clock was wrong when it was written."""
    # Clocks of servers differ a little, and what comes true within the hour does no harm.
    moment = timezone.now() + CLOCKS_DIFFER
    return PasswordRecord.objects.using(feed.using).filter(changed_at__gt=moment, assumed=False)


def correct_dates(chunk: int = CHUNK) -> int:
    """Take each change that is still to come for one of now, so that its age counts from today."""
    corrected = 0
    while pks := list(future_changes().order_by("pk").values_list("pk", flat=True)[:chunk]):
        update = partial(future_changes().filter(pk__in=pks).update, changed_at=timezone.now())
        corrected += in_transaction(update, using=feed.using)
    return corrected

"""The filter that a large batch carries, so that no process reads a row for each of its users."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from pwexpire.bloom import BloomFilter, build_filter
from pwexpire.faults import logged_fault
from pwexpire.feed import feed
from pwexpire.models import BatchState, Demand, ExpiryBatch, FilterPart, Require
from pwexpire.retries import in_transaction, retried
from pwexpire.services.selection import CHUNK
from pwexpire.services.staging import COUNTS

# The rows of fewer users are read as quickly.
FILTER_FROM = 1_000


def write_filter(batch: ExpiryBatch) -> None:
    """Store the filter of the users of a large batch, before it is in force.

    It is made of the rows, so a run that was killed makes it again. Without one, on the tables of
    an older release for example, the rows are read.
    """
    # Before the rows: if another process adds some, its count is higher, and this filter is void.
    seen = sum(getattr(batch, name) or 0 for name in COUNTS)
    if batch.everyone or batch.require == Require.WARN or seen < FILTER_FROM:
        return
    demands = Demand.objects.using(feed.using).filter(batch=batch)
    with logged_fault("The filter of a large expiry could not be written"):
        count = retried(demands.count, using=feed.using)
        if count >= FILTER_FROM:
            bloom = build_filter(_list_keys(batch), count)
            in_transaction(partial(_store_parts, batch, seen, bloom), using=feed.using)


def _list_keys(batch: ExpiryBatch) -> Iterator[str]:
    rows = Demand.objects.using(feed.using).filter(batch=batch).order_by("user_id")
    pks = list(rows.values_list("user_id", flat=True)[:CHUNK])
    while pks:
        yield from map(str, pks)
        pks = list(rows.filter(user_id__gt=pks[-1]).values_list("user_id", flat=True)[:CHUNK])


def _store_parts(batch: ExpiryBatch, seen: int, bloom: BloomFilter) -> None:
    rows = ExpiryBatch.objects.using(feed.using).select_for_update()
    # Two processes may be at it, and one of them may have put the batch in force.
    if rows.get(pk=batch.pk).state != BatchState.STAGED:
        return
    parts = FilterPart.objects.using(feed.using)
    parts.filter(batch=batch).delete()
    for number, bits in enumerate(bloom.parts):  # databases bound the size of a statement
        parts.create(
            batch_id=batch.pk, part=number, size=bloom.bits // 8, users_seen=seen, bits=bits
        )

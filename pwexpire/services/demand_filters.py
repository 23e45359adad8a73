"""The filter that a large batch carries, so that no process reads a row for each of its users."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from django.db.models import Count, Max, Min

from pwexpire.bloom import BloomFilter, build_filter
from pwexpire.faults import logged_fault
from pwexpire.feed import feed
from pwexpire.keys import key_text
from pwexpire.models import BatchState, Demand, ExpiryBatch, FilterPart, Require
from pwexpire.retries import in_transaction, retried
from pwexpire.services.staging import COUNTS

# The rows of fewer users are read as quickly.
FILTER_FROM = 1_000
PAGE = 10_000


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
        ask = partial(demands.aggregate, count=Count("pk"), first=Min("pk"), last=Max("pk"))
        found = retried(ask, using=feed.using)
        if found["count"] >= FILTER_FROM:
            keys = _list_keys(batch, found["first"], found["last"])
            bloom = build_filter(keys, found["count"])
            in_transaction(partial(_store_parts, batch, seen, bloom), using=feed.using)


def _list_keys(batch: ExpiryBatch, first: int, last: int) -> Iterator[str]:
    """Read the users of a batch, whose rows are among those from ``first`` to ``last``.

    If the rows of the batch were asked for, a page at a time, a database that has not analysed its
    tables yet would read and sort all that are left for each page.
    """
    rows = Demand.objects.using(feed.using).values_list("batch_id", "user_id")
    for start in range(first, last + 1, PAGE):
        page = rows.filter(pk__range=(start, start + PAGE - 1))
        yield from (key_text(user_id) for owner, user_id in page if owner == batch.pk)


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

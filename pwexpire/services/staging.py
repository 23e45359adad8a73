"""The users of a batch are written down, a chunk a transaction. It holds nobody yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.core.exceptions import EmptyResultSet
from django.db import connections, models
from django.db.models import BigIntegerField, Count, QuerySet, Value

from pwexpire.feed import feed
from pwexpire.models import BatchState, Demand, Exclusion, ExpiryBatch, SessionAction
from pwexpire.retries import in_transaction
from pwexpire.services.demands import is_demand, open_demand, usable_password
from pwexpire.services.expired import NOBODY, is_applicable, is_expired
from pwexpire.services.selection import CHUNK, Selection

Progress = Callable[[int, int | None], None]
COUNTS = ("users_expired", "users_already_expired", "users_not_applicable")


def stage(batch: ExpiryBatch, selection: Selection | None, progress: Progress | None) -> None:
    """Go on from the cursor of the batch to the end of ``selection``, if nobody stops it."""
    done = 0
    while True:
        seen = in_transaction(lambda: _stage_chunk(batch, selection), using=feed.using)
        if seen is None:
            return
        done += seen
        if progress is not None:
            progress(done, None)


def _stage_chunk(batch: ExpiryBatch, selection: Selection | None) -> int | None:
    """Return how many users were looked at, or ``None`` if there is nothing left to do here."""
    rows = ExpiryBatch.objects.using(feed.using)
    # Two processes that stage the same batch take turns.
    row = rows.select_for_update().get(pk=batch.pk)
    for name in (*COUNTS, "state", "cursor"):
        setattr(batch, name, getattr(row, name))
    if batch.state != BatchState.STAGING:
        return None
    part = selection.part(batch.cursor) if selection is not None else None
    if part is None:
        batch.state, batch.cursor = BatchState.STAGED, ""
        for name in COUNTS if not batch.everyone else ():
            setattr(batch, name, getattr(batch, name) or 0)
        batch.save(using=feed.using, update_fields=[*COUNTS, "state", "cursor"])
        return None
    users, batch.cursor = part
    if batch.everyone:
        seen = _insert_rows(Exclusion, batch, users)
    else:
        seen = _write_demands(batch, users)
    # In the transaction of the rows, or a run that goes on would count these users twice.
    batch.save(using=feed.using, update_fields=[*COUNTS, "cursor"])
    return seen


def _write_demands(batch: ExpiryBatch, users: QuerySet[Any]) -> int:
    demands = is_demand(batch)
    applicable = is_applicable(users) if demands else ~NOBODY
    expired = is_expired(users, batch.require) if demands else NOBODY
    found: dict[str, int] = users.aggregate(
        seen=Count("pk"),
        asked=Count("pk", filter=applicable),
        already=Count("pk", filter=applicable & expired),
    )
    seen, asked, already = found["seen"], found["asked"], found["already"]
    # Those whom the site leaves out have a demand too: it holds them when it no longer does.
    users = users.filter(usable_password() if demands else ~NOBODY)
    # An open demand is enough, unless sessions end, which it did not do. Who aged out gets a demand
    # all the same: it outlives a maximum age that is corrected.
    if demands and batch.sessions == SessionAction.FLAG:
        users = users.filter(~open_demand(batch.require))
    _insert_rows(Demand, batch, users)
    counts = (asked - already, already, seen - asked)
    for name, count in zip(COUNTS, counts, strict=True):
        setattr(batch, name, (getattr(batch, name) or 0) + count)
    return seen


def _insert_rows(model: type[models.Model], batch: ExpiryBatch, users: QuerySet[Any]) -> int:
    """Insert a row for each of ``users``; return their number."""
    connection = connections[feed.using]
    if connection.vendor not in ("postgresql", "sqlite"):
        # INSERT..SELECT would lock the users as well (InnoDB).
        pks = list(users.values_list("pk", flat=True))
        model._default_manager.using(feed.using).bulk_create(
            [model(batch=batch, user_id=pk) for pk in pks], batch_size=CHUNK, ignore_conflicts=True
        )
        return len(pks)
    number = Value(batch.pk, output_field=BigIntegerField())
    chosen = users.values_list(number, "pk")
    try:
        select, params = chosen.query.get_compiler(feed.using).as_sql()
    except EmptyResultSet:
        return 0
    quote = connection.ops.quote_name
    fields = {field.name: field for field in model._meta.concrete_fields}
    table = quote(model._meta.db_table)
    columns = [quote(str(fields[name].column)) for name in ("batch", "user")]
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {table} ({', '.join(columns)}) {select} ON CONFLICT DO NOTHING", params
        )
        return int(cursor.rowcount)

"""The users of a batch are written down, a chunk a transaction. It holds nobody yet."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from django.core.exceptions import EmptyResultSet
from django.db import DatabaseError, connections, models
from django.db.models import BigIntegerField, QuerySet, Value

from pwexpire.feed import feed
from pwexpire.models import BatchState, Demand, Exclusion, ExpiryBatch, SessionAction
from pwexpire.retries import in_transaction
from pwexpire.services.demands import Between, is_demand, open_demand, usable_password
from pwexpire.services.expired import count_expired
from pwexpire.services.selection import CHUNK, Selection

Progress = Callable[[int, int | None], None]
COUNTS = ("users_expired", "users_already_expired", "users_not_applicable")
# Databases that choose how to find a user's demands by statistics, which are behind after a batch
# of so many users until they come round to it. SQLite chooses without, MariaDB within seconds.
ANALYZES = ("postgresql",)
ANALYZED_FROM = 50_000


def stage(
    batch: ExpiryBatch,
    selection: Selection | None,
    progress: Progress | None,
    until: float | None = None,
) -> None:
    """Go on from the cursor of the batch to the end of ``selection``, if nobody stops it.

    ``until``: a time of the monotonic clock at which it is left as it is.
    """
    done, began = 0, False
    while True:
        # A part is done in any case, or a batch that is resumed again and again gets nowhere.
        late = began and until is not None and time.monotonic() >= until
        seen = in_transaction(partial(_stage_chunk, batch, selection, late), using=feed.using)
        if seen is None:
            return
        done, began = done + seen, True
        if progress is not None:
            progress(done, None)


def analyze_large(batch: ExpiryBatch) -> None:
    """Let the database look at what a large batch wrote, so that it asks for it in a good way."""
    connection = connections[feed.using]
    if connection.vendor not in ANALYZES or (batch.users_expired or 0) < ANALYZED_FROM:
        return
    # Who may not do so is warned only, and what fails here is made good by the database itself.
    with suppress(DatabaseError), connection.cursor() as cursor:
        for model in (Demand, ExpiryBatch):
            cursor.execute(f"ANALYZE {connection.ops.quote_name(model._meta.db_table)}")


def _stage_chunk(batch: ExpiryBatch, selection: Selection | None, late: bool = False) -> int | None:
    """Return how many users were looked at, or ``None`` if there is nothing left to do here.

    ``late``: look at no more of them, but see whether any are left.
    """
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
    if late:
        return None
    between = (batch.cursor, part[1])
    users, batch.cursor = part
    if batch.everyone:
        seen = _insert_rows(Exclusion, batch, users)
    else:
        seen = _write_demands(batch, users, between)
    # In the transaction of the rows, or a run that goes on would count these users twice.
    batch.save(using=feed.using, update_fields=[*COUNTS, "cursor"])
    return seen


def _write_demands(batch: ExpiryBatch, users: QuerySet[Any], between: Between) -> int:
    if is_demand(batch):
        seen, asked, already = count_expired(users, between, batch.require)
        # Who the site leaves out has a demand too: it holds them when the site no longer does.
        users = users.filter(usable_password())
        # An open demand is enough, unless sessions end, which it did not do. Who aged out gets a
        # demand all the same: it outlives a maximum age that is corrected.
        if batch.sessions == SessionAction.FLAG:
            users = users.filter(~open_demand(batch.require, between))
    else:
        seen = asked = users.count()
        already = 0
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

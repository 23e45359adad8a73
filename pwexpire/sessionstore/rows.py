"""Engines with a model: rows are written by compare-and-swap on ``session_data``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from typing import Any, TypeVar

from django.contrib.auth import SESSION_KEY, get_user_model
from django.contrib.sessions.backends.base import SessionBase
from django.core.exceptions import FieldDoesNotExist
from django.db import Error, connections, models, router, transaction
from django.db.models import QuerySet
from django.utils import timezone

from pwexpire.constants import SESSION_DEMAND, SESSION_ENDED, SESSION_FLAG
from pwexpire.keys import key_text
from pwexpire.retries import in_transaction, is_conflict
from pwexpire.sessionstore.base import (
    TRACE_KEPT,
    Outcome,
    SessionAdapter,
    StoredSession,
    Wanted,
    derive_trace_key,
    is_forbidden_query,
    logger,
    shorten,
)

T = TypeVar("T")
CHUNK = 1_000
PAGE = 2_000
# A session that is written again and again is left to its next request.
TRIES = 3
PLAIN_USER_COLUMNS = ("user_id", "account_id")

# What becomes of the decoded data: an outcome instead of a write, or None for "write it".
Edit = Callable[[dict[str, Any], int | None], Outcome | None]


def _set_flag(data: dict[str, Any], demand: int | None) -> Outcome | None:
    if data.get(SESSION_FLAG):
        known = data.get(SESSION_DEMAND)
        if known is None or (demand is not None and known >= demand):
            return Outcome.ALREADY
    data[SESSION_FLAG] = True
    data.pop(SESSION_DEMAND, None)
    if demand is not None:
        data[SESSION_DEMAND] = demand
    return None


def _drop_flag(data: dict[str, Any], demand: int | None) -> Outcome | None:
    known = data.get(SESSION_DEMAND)
    if SESSION_FLAG not in data:
        return Outcome.ALREADY
    if (known is None) != (demand is None) or (known or 0) > (demand or 0):
        return Outcome.CONFLICT
    data.pop(SESSION_FLAG)
    data.pop(SESSION_DEMAND, None)
    return None


class RowAdapter(SessionAdapter):
    supports_enumerate = True
    supports_flag = True
    keeps_rows = True

    def __init__(self, store_class: type[SessionBase], model: Any) -> None:
        super().__init__(store_class)
        self.model = model
        self.user_column = _find_user_column(model)
        self.supports_user_lookup = self.user_column is not None
        self.supports_index = not self.supports_user_lookup
        quote = connections[self.using].ops.quote_name
        meta = model._meta
        key, data = quote(meta.pk.column), quote(meta.get_field("session_data").column)
        table = quote(meta.db_table)
        # What a request wrote meanwhile makes the comparison fail, and is never overwritten.
        self._swap = f"UPDATE {table} SET {data} = %s WHERE {key} = %s AND {data} = %s"
        self._swap_many = (
            f"UPDATE {table} SET {data} = swap.column1 FROM (VALUES {{}}) AS swap "
            f"WHERE {table}.{key} = swap.column2 AND {table}.{data} = swap.column3"
        )

    @property
    def using(self) -> str:
        return router.db_for_write(self.model)

    def _find_rows(self, *, live_only: bool = True) -> QuerySet[Any]:
        rows: QuerySet[Any] = self.model._base_manager.using(self.using)
        return rows.filter(expire_date__gt=timezone.now()) if live_only else rows.all()

    def sessions(
        self, *, after: str = "", last: str = "", chunk: int = 1000
    ) -> Iterator[StoredSession]:
        store = self.store_class()
        rows = self._find_rows().order_by("pk")
        if last:
            rows = rows.filter(pk__lte=last)
        fields = ("pk", "session_data", "expire_date")
        while page := list(rows.filter(pk__gt=after).values_list(*fields)[:chunk]):
            for key, data, expires in page:
                yield StoredSession.of(key, store.decode(data), expires)
            after = page[-1][0]

    def last_key(self, after: str, count: int) -> str | None:
        keys = self._find_rows().filter(pk__gt=after).order_by("pk").values_list("pk", flat=True)
        found: str | None = keys[count - 1 : count].first()
        return found

    def keys_of(self, user_ids: Sequence[Any]) -> Iterator[list[tuple[str, str]]]:
        column = self.user_column or ""
        for page in pages(self._find_rows().filter(**{f"{column}__in": user_ids}), column):
            yield [(key, key_text(user_id)) for key, user_id in page]

    def alive(self, keys: Collection[str]) -> set[str]:
        return set(self._find_rows().filter(pk__in=keys).values_list("pk", flat=True))

    def flag(self, wanted: Wanted) -> Counter[Outcome]:
        edit = partial(self._edit_chunk, edit=_set_flag, done=Outcome.FLAGGED)
        return self._work_in_chunks(wanted, edit, "written")

    def clear(self, wanted: Wanted) -> Counter[Outcome]:
        edit = partial(self._edit_chunk, edit=_drop_flag, done=Outcome.CLEARED)
        return self._work_in_chunks(wanted, edit, "written")

    def end(self, wanted: Mapping[str, str], *, trace: bool = False) -> Counter[Outcome]:
        return +self._work_in_chunks(wanted, partial(self._end_chunk, trace=trace), "ended")

    def _work_in_chunks(
        self, wanted: Mapping[str, T], work: Callable[[dict[str, T]], Counter[Outcome]], done: str
    ) -> Counter[Outcome]:
        outcomes: Counter[Outcome] = Counter()
        left = iter(wanted)
        while chunk := list(islice(left, CHUNK)):
            try:
                outcomes.update(work({key: wanted[key] for key in chunk}))
            except Error as error:
                # What the database rolled back is not ours alone: its owner has to begin again.
                if is_conflict(error) and connections[self.using].in_atomic_block:
                    raise
                logger.error("Sessions from %s on were not %s: %s", shorten(chunk[0]), done, error)
                outcomes[Outcome.FAILED] += len(chunk)
        return outcomes

    def _end_chunk(self, wanted: Mapping[str, str], *, trace: bool) -> Counter[Outcome]:
        delete = partial(self._delete_rows, wanted, trace=trace)
        ended = in_transaction(delete, using=self.using)
        # All of the chunk: a copy may have outlived its row in an earlier run.
        forgotten = self.forget(wanted)
        if connections[self.using].in_atomic_block:  # until then a request may copy the row
            transaction.on_commit(partial(self.forget, wanted), using=self.using)
        if not forgotten:
            return Counter({Outcome.FAILED: len(wanted)})
        return Counter({Outcome.ENDED: ended, Outcome.GONE: len(wanted) - ended})

    def _delete_rows(self, wanted: Mapping[str, str], *, trace: bool) -> int:
        store = self.store_class()
        rows = self._find_rows(live_only=False).filter(pk__in=list(wanted))
        mine = [
            key
            for key, data in rows.values_list("pk", "session_data")
            if store.decode(data).get(SESSION_KEY) == wanted[key]
        ]
        # The total would count what the site lets cascade from its sessions.
        _, deleted = rows.filter(pk__in=mine).delete()
        # With a user column it would be one of the sessions that the site shows to its user.
        if trace and self.user_column is None:
            expires = timezone.now() + TRACE_KEPT
            traces = [
                self.model(
                    pk=derive_trace_key(key),
                    session_data=store.encode({SESSION_ENDED: wanted[key]}),
                    expire_date=expires,
                )
                for key in mine
            ]
            self.model._base_manager.using(self.using).bulk_create(traces, ignore_conflicts=True)
        return deleted.get(self.model._meta.label, 0)

    def forget(self, keys: Collection[str]) -> bool:
        """Rows were written; for engines that keep a copy of them. False: a copy is left."""
        return True

    def _edit_chunk(self, wanted: Wanted, *, edit: Edit, done: Outcome) -> Counter[Outcome]:
        outcomes: Counter[Outcome] = Counter()
        left = dict(wanted)
        for turn in range(TRIES):
            swaps = dict(self._prepare_swaps(left, edit, outcomes, again=turn > 0))
            if not swaps:
                return outcomes
            missed = in_transaction(partial(self._swap_rows, swaps), using=self.using)
            written = swaps.keys() - missed
            if written:
                # Before the commit a request would copy the old row into the cache again.
                transaction.on_commit(partial(self.forget, written), using=self.using)
            outcomes[done] += len(written)
            left = {key: wanted[key] for key in missed}
            if not left:
                return outcomes
        outcomes[Outcome.CONFLICT] += len(left)
        return outcomes

    def _prepare_swaps(
        self, wanted: Wanted, edit: Edit, outcomes: Counter[Outcome], *, again: bool
    ) -> Iterator[tuple[str, tuple[str, str, str]]]:
        """Yield a key with the parameters of its compare-and-swap: new data, key, old data."""
        store = self.store_class()
        live = self._find_rows().filter(pk__in=list(wanted)).order_by("pk")  # lock in one order
        if again and connections[self.using].in_atomic_block:
            live = live.select_for_update()  # what the transaction has seen so far may be old
        rows = dict(live.values_list("pk", "session_data"))
        outcomes[Outcome.GONE] += len(wanted) - len(rows)
        for key, old in rows.items():
            user_id, demand = wanted[key]
            data = store.decode(old)
            # Data whose signature is bad decodes to nothing, and so belongs to nobody.
            outcome = edit(data, demand) if data.get(SESSION_KEY) == user_id else Outcome.GONE
            if outcome is None:
                yield key, (store.encode(data), key, old)
            else:
                outcomes[outcome] += 1

    def _swap_rows(self, swaps: Mapping[str, tuple[str, str, str]]) -> set[str]:
        """Return the keys whose row changed meanwhile. ``rowcount`` is a sum, so look again."""
        connection = connections[self.using]
        with connection.cursor() as cursor:
            if connection.vendor == "postgresql":  # one round trip; the others read it row by row
                rows_of_three = ", ".join(["(%s, %s, %s)"] * len(swaps))
                cursor.execute(self._swap_many.format(rows_of_three), [*chain(*swaps.values())])
            else:
                cursor.executemany(self._swap, list(swaps.values()))
            if cursor.rowcount == len(swaps):
                return set()
        rows = self._find_rows(live_only=False).filter(pk__in=list(swaps))
        now = dict(rows.select_for_update().values_list("pk", "session_data"))
        return {key for key, (new, _, _) in swaps.items() if now.get(key) != new}


class CachedRowAdapter(RowAdapter):
    """Rows with a copy in the cache, which is dropped after each write."""

    def forget(self, keys: Collection[str]) -> bool:
        store: Any = self.store_class()
        try:
            store._cache.delete_many([store.cache_key_prefix + key for key in keys])
        except Exception as error:  # whatever the cache's client raises
            if is_forbidden_query(error):
                raise
            logger.error("Cached sessions were not dropped: %s", type(error).__name__)
            return False
        return True


def pages(rows: QuerySet[Any], column: str) -> Iterator[list[tuple[str, Any]]]:
    """(primary key, column) of all rows; in order only where one page does not hold them."""
    page = list(rows.order_by().values_list("pk", column)[: PAGE + 1])
    if len(page) <= PAGE:
        yield page
        return
    after = ""
    while page := list(rows.filter(pk__gt=after).order_by("pk").values_list("pk", column)[:PAGE]):
        yield page
        after = page[-1][0]


def _find_user_column(model: Any) -> str | None:
    """A foreign key to the user model, or the column of the recipe in Django's documentation."""
    user_model = get_user_model()
    # Another relation may name the one who impersonates, so "user" goes first.
    for field in sorted(model._meta.concrete_fields, key=lambda field: field.name != "user"):
        if field.is_relation and field.related_model is user_model:
            if field.target_field.primary_key:
                return str(field.attname)
    plain = (models.IntegerField, models.CharField)
    for name in PLAIN_USER_COLUMNS:
        try:
            column = model._meta.get_field(name)
        except FieldDoesNotExist:
            continue
        if issubclass(type(column), plain) and (column.db_index or column.unique):
            return str(column.attname)
    return None

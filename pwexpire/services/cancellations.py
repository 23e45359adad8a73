"""Lift demands, and take the ones that are met off the open list."""

from __future__ import annotations

from functools import partial
from typing import Any

from django.db import transaction
from django.db.models import QuerySet
from django.db.models.functions import Greatest
from django.utils import timezone

from pwexpire.constants import SIGNAL_IDS_MAX
from pwexpire.feed import feed
from pwexpire.models import (
    BatchState,
    Demand,
    Exclusion,
    ExpiryBatch,
    PasswordRecord,
    SessionAction,
)
from pwexpire.retries import in_transaction
from pwexpire.services.demands import (
    all_users,
    demands_in_force,
    find_open_batches,
    is_demand,
    users_wanted_by,
)
from pwexpire.services.expired import is_applicable, is_expired
from pwexpire.services.selection import CHUNK, Selection
from pwexpire.services.status import check_saved
from pwexpire.services.trace import write_trace
from pwexpire.signals import expiry_cancelled


def cancel_expiry(users: Any, *, actor: Any = None, note: str = "") -> int:
    """Lift the open demands from ``users`` (one, many, a ``QuerySet``) or of an ``ExpiryBatch``.

    A flag that stands for a lifted demand no longer holds; sessions that were to be ended stay
    ended. ``actor`` and ``note`` are kept in a ``Cancellation`` for each user and batch.
    Returns how many users are free by it: nothing else holds them. Raises ``InvalidRequest``.
    """
    if actor is not None:
        check_saved(actor)
    if isinstance(users, ExpiryBatch):
        return _cancel_batch(users, actor, note)
    selection = Selection(users)
    freed = 0
    few: list[Any] = []
    for pks in selection.chunks():
        lifted, free = in_transaction(partial(_lift, pks, actor, note), using=feed.using)
        freed += free
        few += lifted[: SIGNAL_IDS_MAX + 1 - len(few)]
    if few:
        _cancelled(few if len(few) <= SIGNAL_IDS_MAX else None)
    return freed


def _lift(pks: list[Any], actor: Any, note: str) -> tuple[list[Any], int]:
    """Return the users who were held by a demand, and how many of them nothing holds any more."""
    demands = _list_open_demands(pks)
    lifted = list(dict.fromkeys(pk for batch, pk in demands if batch.holds))
    close_demands([*{pk for _, pk in demands}])
    _exclude_from_everyone([one for one in demands if one[0].everyone])
    write_trace([(batch.pk, pk) for batch, pk in demands], actor=actor, note=note)
    return lifted, _count_free(all_users().filter(pk__in=lifted)) if lifted else 0


def _list_open_demands(pks: list[Any]) -> list[tuple[ExpiryBatch, Any]]:
    opened = [(batch, pk) for pk, found in find_open_batches(pks).items() for batch in found]
    return [one for one in opened if is_demand(one[0])]


def _exclude_from_everyone(demands: list[tuple[ExpiryBatch, Any]]) -> None:
    ended: dict[Any, int] = {}
    for batch, pk in demands:
        if batch.sessions == SessionAction.END:
            ended[pk] = max(ended.get(pk, 0), batch.number or 0)
    _keep_ends(ended)
    new = [Exclusion(batch_id=batch.pk, user_id=pk) for batch, pk in demands]
    Exclusion.objects.using(feed.using).bulk_create(new, ignore_conflicts=True)


def _count_free(users: QuerySet[Any]) -> int:
    return users.filter(is_applicable(users) & ~is_expired(users)).count()


def _cancel_batch(batch: ExpiryBatch, actor: Any, note: str) -> int:
    lifted = in_transaction(partial(_cancel_rows, batch, actor, note), using=feed.using)
    if lifted is None:
        return 0
    _cancelled(None)
    return lifted


def _cancel_rows(batch: ExpiryBatch, actor: Any, note: str) -> int | None:
    row = ExpiryBatch.objects.using(feed.using).select_for_update().get(pk=batch.pk)
    if row.state == BatchState.CANCELLED:
        return None
    if row.sessions == SessionAction.END and row.number and not row.everyone:
        _keep_ends_of(batch)
    write_trace([(batch.pk, None)], actor=actor, note=note)
    batch.state, batch.cancelled_at = BatchState.CANCELLED, timezone.now()
    batch.save(using=feed.using, update_fields=["state", "cancelled_at"])
    # Afterwards: a user who is held by something else as well is not free by it.
    return _count_free(users_wanted_by(batch)) if row.number and row.holds else 0


def _cancelled(ids: list[Any] | None) -> None:
    feed.drop()

    def tell() -> None:
        feed.drop()
        expiry_cancelled.send_robust(sender=ExpiryBatch, user_ids=ids)

    transaction.on_commit(tell, using=feed.using)


def close_demands(pks: list[Any], *, upto: int | None = None) -> None:
    """Take the rows off the open list; that sessions were to be ended stays with the record."""
    rows = demands_in_force(user__in=pks)
    if upto is not None:
        rows = rows.filter(batch__number__lte=upto)
    ids: list[int] = []
    ended: dict[Any, int] = {}
    for pk, user, number, sessions in rows.values_list(
        "pk", "user_id", "batch__number", "batch__sessions"
    ):
        ids.append(pk)
        if sessions == SessionAction.END:
            ended[user] = max(ended.get(user, 0), number or 0)
    _keep_ends(ended)
    Demand.objects.using(feed.using).filter(pk__in=ids).delete()


def _keep_ends_of(batch: ExpiryBatch) -> None:
    """Keep for each user of a batch that their older sessions are ended."""
    rows = Demand.objects.using(feed.using).filter(batch=batch).order_by("user_id")
    pks = list(rows.values_list("user_id", flat=True)[:CHUNK])
    while pks:
        _keep_ends(dict.fromkeys(pks, batch.number or 0))
        pks = list(rows.filter(user_id__gt=pks[-1]).values_list("user_id", flat=True)[:CHUNK])


def _keep_ends(ended: dict[Any, int]) -> None:
    """Write user -> number of the end into the records, where no cancellation reaches it."""
    records = PasswordRecord.objects.using(feed.using)
    if ended:
        missing = [PasswordRecord(user_id=pk) for pk in ended]
        records.bulk_create(missing, ignore_conflicts=True)
    for number in set(ended.values()):
        pks = [pk for pk, end in ended.items() if end == number]
        records.filter(user__in=pks).update(ended=Greatest("ended", number))

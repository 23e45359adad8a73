"""Lift demands, and take the ones that are met off the open list."""

from __future__ import annotations

from functools import partial
from typing import Any

from django.db import transaction
from django.db.models import Q
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
    Require,
    SessionAction,
)
from pwexpire.retries import in_transaction
from pwexpire.services.selection import CHUNK, Selection, all_users, members
from pwexpire.services.status import active_batches, active_demands, check_saved, open_demands
from pwexpire.services.trace import write_trace
from pwexpire.signals import expiry_cancelled


def cancel_expiry(users: Any, *, actor: Any = None, note: str = "") -> int:
    """Lift the open demands from ``users`` (one, many, a ``QuerySet``) or of an ``ExpiryBatch``.

    A flag that stands for a lifted demand no longer holds; sessions that were to be ended stay
    ended. ``actor`` and ``note`` are kept in a ``Cancellation`` for each user and batch.
    Returns how many users are free of a demand by it. Raises ``InvalidRequest``.
    """
    if actor is not None:
        check_saved(actor)
    if isinstance(users, ExpiryBatch):
        return _cancel_batch(users, actor, note)
    selection = Selection(users)
    lifted = 0
    few: list[Any] = []
    for pks in selection.chunks():
        freed = in_transaction(partial(_lift, pks, actor, note), using=feed.using)
        lifted += len(freed)
        few += freed[: SIGNAL_IDS_MAX + 1 - len(few)]
    if lifted:
        _cancelled(few if lifted <= SIGNAL_IDS_MAX else None)
    return lifted


def _lift(pks: list[Any], actor: Any, note: str) -> list[Any]:
    freed = list(open_demands(pks))
    warned = active_demands(user__in=pks, batch__require=Require.WARN)
    users = {*freed, *warned.values_list("user_id", flat=True)}
    asked = active_demands(user__in=users).filter(
        Q(batch__holds=True) | Q(batch__require=Require.WARN)
    )
    cancelled = list(asked.order_by("pk").values_list("batch_id", "user_id"))
    close_demands([*users])
    cancelled += _exclude_from_everyone(pks, freed)
    write_trace(cancelled, actor=actor, note=note)
    return freed


def _exclude_from_everyone(pks: list[Any], freed: list[Any]) -> list[tuple[int, Any]]:
    """Leave users out of the batches on everyone that are open against them: (batch, user)."""
    everyone = list(active_batches().filter(everyone=True))
    if not everyone:
        return []
    rows = Exclusion.objects.using(feed.using)
    there = set(rows.filter(user__in=pks, batch__in=everyone).values_list("batch_id", "user_id"))
    records = PasswordRecord.objects.using(feed.using).filter(user__in=pks)
    satisfied = dict(records.values_list("user_id", "satisfied"))
    new: list[tuple[int, Any]] = []
    ended: dict[Any, int] = {}
    for batch in everyone:
        number = batch.number or 0
        for pk in pks if batch.require == Require.WARN else freed:
            if number <= satisfied.get(pk, 0) or (batch.pk, pk) in there:
                continue
            new.append((batch.pk, pk))
            if batch.sessions == SessionAction.END:
                ended[pk] = max(ended.get(pk, 0), number)
    _keep_ends(ended)
    rows.bulk_create(
        [Exclusion(batch_id=batch, user_id=pk) for batch, pk in new], ignore_conflicts=True
    )
    return new


def _cancel_batch(batch: ExpiryBatch, actor: Any, note: str) -> int:
    lifted = in_transaction(partial(_cancel_rows, batch, actor, note), using=feed.using)
    if lifted is None:
        return 0
    _cancelled(None)
    return lifted


def _cancel_rows(batch: ExpiryBatch, actor: Any, note: str) -> int | None:
    users = members(batch)
    if batch.everyone:
        users = all_users().exclude(pwexpire_record__satisfied__gte=batch.number or 0)
        users = users.exclude(pwexpire_exclusions__batch=batch)
    row = ExpiryBatch.objects.using(feed.using).select_for_update().get(pk=batch.pk)
    if row.state == BatchState.CANCELLED:
        return None
    lifted = users.count() if row.number else 0
    if row.sessions == SessionAction.END and row.number and not row.everyone:
        _keep_ends_of(batch)
    write_trace([(batch.pk, None)], actor=actor, note=note)
    batch.state, batch.cancelled_at = BatchState.CANCELLED, timezone.now()
    batch.save(using=feed.using, update_fields=["state", "cancelled_at"])
    return lifted


def _cancelled(ids: list[Any] | None) -> None:
    feed.drop()

    def tell() -> None:
        feed.drop()
        expiry_cancelled.send_robust(sender=ExpiryBatch, user_ids=ids)

    transaction.on_commit(tell, using=feed.using)


def close_demands(pks: list[Any], *, upto: int | None = None) -> None:
    """Take the rows off the open list; that sessions were to be ended stays with the record."""
    rows = active_demands(user__in=pks)
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

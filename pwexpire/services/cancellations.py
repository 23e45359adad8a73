"""Lift demands, and take the ones that are met off the open list."""

from __future__ import annotations

from functools import partial
from typing import Any

from django.db import transaction
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
from pwexpire.services.selection import Selection, all_users, members
from pwexpire.services.status import active_batches, active_demands, check_saved, open_demands
from pwexpire.signals import expiry_cancelled


def cancel_expiry(users: Any, *, actor: Any = None, note: str = "") -> int:
    """Lift the open demands from ``users`` (one, many, a ``QuerySet``) or of an ``ExpiryBatch``.

    A flag that stands for a lifted demand no longer holds; sessions that were to be ended stay
    ended. ``actor`` and ``note`` are kept with a cancelled batch.
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
        freed = in_transaction(partial(_lift, pks), using=feed.using)
        lifted += len(freed)
        few += freed[: SIGNAL_IDS_MAX + 1 - len(few)]
    if lifted:
        _cancelled(few if lifted <= SIGNAL_IDS_MAX else None)
    return lifted


def _lift(pks: list[Any]) -> list[Any]:
    freed = list(open_demands(pks))
    warned = active_demands(user__in=pks, batch__require=Require.WARN)
    close_demands([*{*freed, *warned.values_list("user_id", flat=True)}])
    everyone = active_batches().filter(everyone=True).values_list("pk", "require")
    Exclusion.objects.using(feed.using).bulk_create(
        [
            Exclusion(batch_id=batch, user_id=pk)
            for batch, require in everyone
            for pk in (pks if require == Require.WARN else freed)
        ],
        ignore_conflicts=True,
    )
    return freed


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
        for pks in Selection(users).chunks():
            close_demands(pks)
    said = "\n".join(filter(None, (row.note, f"{actor or ''}: {note}" if note else "")))
    batch.state, batch.cancelled_at, batch.note = BatchState.CANCELLED, timezone.now(), said
    batch.save(using=feed.using, update_fields=["state", "cancelled_at", "note"])
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
    records = PasswordRecord.objects.using(feed.using)
    for user, number in ended.items():
        records.get_or_create(user_id=user)
        records.filter(user_id=user).update(ended=Greatest("ended", number))
    Demand.objects.using(feed.using).filter(pk__in=ids).delete()

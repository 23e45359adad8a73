"""Wrong old passwords on the change page, and lockouts: both are guesses, and are counted."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.db.models import F, Q
from django.utils import timezone

from pwexpire.conf import conf
from pwexpire.feed import feed
from pwexpire.models import ExpiryBatch, PasswordRecord, Reason
from pwexpire.services.batches import end_sessions, expire_passwords
from pwexpire.services.status import judge
from pwexpire.sessionstore.registry import get_adapter


def count_failed_change(user: Any) -> bool:
    """Count a wrong old password; true if the session has to end, and the count begins anew.

    Where a session cannot be deleted on the server (signed cookies) all sessions of the user end,
    or a copy of the cookie would give another set of guesses.
    """
    records = PasswordRecord.objects.using(feed.using)
    records.get_or_create(user_id=user.pk)
    mine = records.filter(pk=user.pk)
    mine.update(failed_changes=F("failed_changes") + 1)
    if mine.values_list("failed_changes", flat=True)[0] < conf.change_attempts:
        return False
    mine.update(failed_changes=0)
    if not get_adapter().supports_end:
        end_sessions(user)
    return True


def expire_after_lockout(user: Any, *, window: timedelta) -> ExpiryBatch | None:
    """Expire ``user`` after ``PWEXPIRE_LOCKOUT_THRESHOLD`` lockouts, at most one per ``window``.

    Writes nothing for a user who is held already, or who changed the password within
    ``PWEXPIRE_LOCKOUT_COOLDOWN``. Returns the batch, or ``None`` if nobody was expired.
    """
    if not user.has_usable_password() or judge(user).demand:
        return None
    now = timezone.now()
    records = PasswordRecord.objects.using(feed.using)
    record = records.filter(pk=user.pk).first()
    if record and record.renewed_at and now - record.renewed_at < conf.lockout_cooldown:
        return None
    if conf.lockout_threshold > 1:
        if record is None:
            record, _ = records.get_or_create(user_id=user.pk)
        if record.lockout_at is not None and now - record.lockout_at < window:
            return None
        fresh = Q(lockout_at=None) | Q(lockout_at__lte=now - window)
        if not records.filter(fresh, pk=user.pk).update(lockouts=F("lockouts") + 1, lockout_at=now):
            return None
        record.refresh_from_db(using=feed.using)
        if record.lockouts < conf.lockout_threshold:
            return None
        records.filter(pk=user.pk).update(lockouts=0)
    return expire_passwords(user, reason=Reason.LOCKOUT)

"""Wrong old passwords on the change page, and lockouts: both are guesses, and are counted."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.contrib.auth import logout
from django.contrib.auth.signals import user_login_failed
from django.db.models import F, Q
from django.http import HttpRequest
from django.utils import timezone

from pwexpire.conf import conf
from pwexpire.feed import feed
from pwexpire.models import ExpiryBatch, PasswordRecord, Reason
from pwexpire.services.batches import end_sessions, expire_passwords
from pwexpire.services.status import judge
from pwexpire.sessionstore.registry import get_adapter

# What a listener of user_login_failed may need to tell clients apart; no cookie, no query, no body.
REPORTED_META = ("REMOTE_ADDR", "HTTP_X_FORWARDED_FOR", "HTTP_USER_AGENT", "HTTP_ACCEPT")


def wrong_old_password(request: HttpRequest) -> bool:
    """A guess at the old password, by whoever sits in this session; true if that was ended."""
    user = request.user
    ended = count_failed_change(user)
    report_failure(request, user)
    if ended:
        logout(request)
    return ended


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


def report_failure(request: HttpRequest, user: Any) -> None:
    """Count a wrong old password as a failed login, with a request that carries no password."""
    stripped = HttpRequest()
    stripped.method = "POST"
    stripped.path = stripped.path_info = request.path
    stripped.META = {name: request.META[name] for name in REPORTED_META if name in request.META}
    stripped._pwexpire_change_page = True  # type: ignore[attr-defined]
    name = user.get_username()
    user_login_failed.send_robust(
        sender=__name__,
        credentials={"username": name, user.USERNAME_FIELD: name},
        request=stripped,
    )


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

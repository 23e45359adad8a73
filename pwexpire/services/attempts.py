"""Tries at the old password on a change page: counted, and an end of the session at the limit."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

from django.contrib.auth import logout
from django.contrib.auth.signals import user_login_failed
from django.db import Error as DatabaseFault
from django.db.models import F
from django.http import HttpRequest

from pwexpire.conf import conf
from pwexpire.feed import feed
from pwexpire.models import PasswordRecord
from pwexpire.retries import savepoint
from pwexpire.services.batches import end_sessions
from pwexpire.services.lockouts import lockout_report as lockout_report  # its name in 0.3
from pwexpire.session_state import request_state_of
from pwexpire.sessionstore.registry import get_adapter

logger = logging.getLogger("pwexpire")

# What a listener of user_login_failed may need to tell clients apart; no cookie, no query, no body.
REPORTED_META = ("REMOTE_ADDR", "HTTP_X_FORWARDED_FOR", "HTTP_USER_AGENT", "HTTP_ACCEPT")

# A change page whose form cannot be read may have been sent with a new password that is refused,
# so it takes more of them to end the session.
UNREAD_FACTOR = 4


def take_attempt(user: Any) -> bool:
    """Count a try at the old password before it is looked at; false if there is none left."""
    records = PasswordRecord.objects.using(feed.using)
    mine = records.filter(pk=user.pk, failed_changes__lt=conf.change_attempts)
    # One conditional statement: of two at the same time one sees the count of the other.
    take = partial(mine.update, failed_changes=F("failed_changes") + 1)
    return bool(take() or (records.get_or_create(user_id=user.pk)[1] and take()))


def give_back_attempt(user: Any) -> None:
    """The old password was right, so the try was none."""
    mine = PasswordRecord.objects.using(feed.using).filter(pk=user.pk, failed_changes__gt=0)
    mine.update(failed_changes=F("failed_changes") - 1)


def renew_attempts(user: Any) -> None:
    """Somebody who logged in knows the password: the count begins anew."""
    mine = PasswordRecord.objects.using(feed.using).filter(pk=user.pk, failed_changes__gt=0)
    try:
        with savepoint(using=feed.using):
            mine.update(failed_changes=0)
    except DatabaseFault as error:  # read-only: the login succeeds all the same
        logger.warning("The count of wrong old passwords could not begin anew: %s", error)


def wrong_old_password(request: HttpRequest, *, taken: bool = False, unread: bool = False) -> bool:
    """Follow up a wrong old password, by the person in this session; true if that was ended.

    ``taken``: it is counted already. ``unread``: nobody knows whether it was the old password
    that was wrong. Where a session cannot be deleted on the server (signed cookies) all sessions of
    the user end, or a copy of the cookie would give another set of guesses.
    """
    user: Any = request.user
    records = PasswordRecord.objects.using(feed.using)
    if not taken:
        records.get_or_create(user_id=user.pk)
        records.filter(pk=user.pk).update(failed_changes=F("failed_changes") + 1)
    if not unread:
        report_failure(request, user)
    count = records.filter(pk=user.pk).values_list("failed_changes", flat=True)[0]
    if count < conf.change_attempts * (UNREAD_FACTOR if unread else 1):
        return False
    # The count stays until the next login, so that what is sent at the same time meets it too.
    if not get_adapter().supports_end:
        end_sessions(user)
    logout(request)
    return True


def report_failure(request: HttpRequest, user: Any) -> None:
    """Count a wrong old password as a failed login, with a request that carries no password."""
    stripped = HttpRequest()
    stripped.method = "POST"
    stripped.path = stripped.path_info = request.path
    stripped.META = {name: request.META[name] for name in REPORTED_META if name in request.META}
    request_state_of(stripped).failed_change = True
    name = user.get_username()
    user_login_failed.send_robust(
        sender=__name__,
        credentials={"username": name, user.USERNAME_FIELD: name},
        request=stripped,
    )

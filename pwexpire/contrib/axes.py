"""django-axes: expire the user whose name was locked out. Off by default, see the README."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

from axes.helpers import get_cool_off
from django.contrib.auth import get_user_model
from django.db import connections, transaction

from pwexpire.conf import conf
from pwexpire.feed import feed
from pwexpire.services.attempts import expire_after_lockout

logger = logging.getLogger("pwexpire")
DEFAULT_WINDOW = timedelta(hours=24)


def on_lockout(
    sender: Any, request: Any = None, username: Any = None, ip_address: Any = None, **kwargs: Any
) -> None:
    """Never raises, and answers nobody: the lockout and its response stay what they were."""
    if not conf.expire_on_lockout or getattr(request, "_pwexpire_change_page", False):
        return
    if not isinstance(username, str) or not username or "\x00" in username:
        return
    try:
        if connections[feed.using].in_atomic_block:
            with transaction.atomic(using=feed.using):
                _expire(request, username)
        else:
            _expire(request, username)
    except Exception:
        logger.exception("A lockout could not be followed up.")


def _expire(request: Any, username: str) -> None:
    users = get_user_model()._base_manager.using(feed.using)
    user = users.filter(**{get_user_model().USERNAME_FIELD: username}).first()
    # A database may compare names without case; the attacker's spelling is not the user's name.
    if user is None or user.get_username() != username:
        return
    expire_after_lockout(user, window=get_cool_off(request) or DEFAULT_WINDOW)

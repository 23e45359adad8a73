"""django-axes: what follows when the name of a user is locked out. Off by default."""

from __future__ import annotations

import logging
from contextlib import suppress
from datetime import timedelta
from typing import Any

from axes.helpers import get_cool_off
from django.contrib.auth import get_user_model
from django.contrib.auth.base_user import BaseUserManager

from pwexpire.conf import conf
from pwexpire.feed import feed
from pwexpire.retries import savepoint
from pwexpire.services.lockouts import expire_after_lockout
from pwexpire.session_state import request_state_of

logger = logging.getLogger("pwexpire")
DEFAULT_WINDOW = timedelta(hours=24)


def on_lockout(
    sender: Any, request: Any = None, username: Any = None, ip_address: Any = None, **kwargs: Any
) -> None:
    """Never raises, and answers nobody: the lockout and its response stay what they were."""
    if not (conf.expire_on_lockout or conf.expire_on_success):
        return
    if request_state_of(request).failed_change:
        return
    if not isinstance(username, str) or not username or "\x00" in username:
        return
    try:
        with savepoint(using=feed.using):
            _follow_up(request, username, ip_address)
    except Exception:
        logger.exception("A lockout could not be followed up.")


def _follow_up(request: Any, username: str, address: Any) -> None:
    user = _find_user(username)
    if user is not None:
        apart = get_cool_off(request) or DEFAULT_WINDOW
        expire_after_lockout(user, window=apart, address=address)


def _find_user(username: str) -> Any:
    """Return the user whose password a login as ``username`` tries, in whatever spelling.

    The database may compare names without case, and so may the manager that Django's backend asks.
    """
    model = get_user_model()
    users = model._base_manager.using(feed.using)
    user = users.filter(**{model.USERNAME_FIELD: username}).first()
    manager = model._default_manager.db_manager(feed.using)
    find = getattr(type(manager), "get_by_natural_key", None)
    # Django's own would only ask the same once more, for each name that somebody invents.
    if user is None and find not in (None, BaseUserManager.get_by_natural_key):
        with suppress(model.DoesNotExist):
            user = manager.get_by_natural_key(username)
    return user

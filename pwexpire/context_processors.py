from __future__ import annotations

from typing import Any

from django.http import HttpRequest
from django.utils.functional import SimpleLazyObject

from pwexpire.services.status import PasswordStatus, password_status
from pwexpire.session_state import UNKNOWN, request_state_of


def status_of(request: HttpRequest) -> PasswordStatus | None:
    """Asked once for each request; ``None`` for an anonymous user."""
    request_state = request_state_of(request)
    if request_state.status is UNKNOWN:
        user = getattr(request, "user", None)
        known = user is not None and user.is_authenticated
        request_state.status = password_status(user) if known else None
    found: PasswordStatus | None = request_state.status
    return found


def password_expiry(request: HttpRequest) -> dict[str, Any]:
    """``password_expiry`` in templates: the ``PasswordStatus`` of the user.

    Nothing is asked of the database unless the template uses it. Empty for anonymous users.
    """
    return {"password_expiry": SimpleLazyObject(lambda: status_of(request))}

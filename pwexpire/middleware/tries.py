"""The present password that is sent to a change page, before the page itself looks at it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from django.db import Error as DatabaseFault
from django.http import HttpRequest, HttpResponseBase
from django.views.decorators.debug import sensitive_variables

from pwexpire.exemptions import is_change_page_of_django, is_site_change_page
from pwexpire.responses import ended_response, unavailable
from pwexpire.services.guesses import (
    follow_up_wrong,
    is_old_password_field,
    read_old_passwords,
    verify_only_one,
)
from pwexpire.services.password_state import has_password
from pwexpire.session_state import names_user

logger = logging.getLogger("pwexpire")
SAFE_METHODS = ("GET", "HEAD", "OPTIONS", "TRACE")


def is_change_of_password(request: HttpRequest, view: Callable[..., Any]) -> bool:
    """Whether the password may be changed by this request; Wagtail's page is for more than that."""
    if is_change_page_of_django(view) or is_site_change_page(request):
        return True
    given = read_old_passwords(request)
    return given is None or any(given)


@sensitive_variables()
def verify_try(request: HttpRequest, view: Callable[..., Any]) -> HttpResponseBase | None:
    """Verify the present password that was sent; queries. An answer: the view must not run.

    An empty one is left to the page: there is nothing to verify, and it is counted afterwards.
    """
    given = _read_given(request)
    if not given:
        return None
    try:
        if verify_only_one(request.user, given):
            return None
        if follow_up_wrong(request):
            return ended_response(request)
    except DatabaseFault as error:
        logger.error("A try at an old password could not be counted: %s", error)
        return unavailable("The password cannot be changed at the moment. Try again soon.")
    if is_change_page_of_django(view):
        _take_out(request)
    return None


@sensitive_variables()
def _read_given(request: HttpRequest) -> list[str]:
    """What there is to verify: in a session of the user's own who has a password."""
    user = request.user
    if not (user.is_authenticated and names_user(request.session, user)):
        return []
    if not has_password(user):
        return []
    return [one for one in read_old_passwords(request) or () if one]


def _take_out(request: HttpRequest) -> None:
    """Send the form on without a wrong old password, so that it is not hashed a second time."""
    sent = request.POST.copy()
    for name in filter(is_old_password_field, list(sent)):
        sent[name] = ""
    request.POST = sent  # type: ignore[assignment]

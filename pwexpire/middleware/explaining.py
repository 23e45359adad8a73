"""On Django's change page and the admin's: why the user is held, since when, and what to do."""

from __future__ import annotations

from typing import Any

from django.contrib.messages import WARNING, get_messages
from django.contrib.messages.storage.base import Message
from django.http import HttpRequest

from pwexpire.exemptions import is_change_page_of_django
from pwexpire.faults import logged_fault
from pwexpire.responses import held_text
from pwexpire.services.mails import reason_label
from pwexpire.services.status import password_status
from pwexpire.session_state import find_request_state


def needs_reason(request: HttpRequest, response: Any) -> bool:
    """Whether ``response`` is such a page, shown to a held session; ours says it by itself."""
    request_state, match = find_request_state(request), request.resolver_match
    data = getattr(response, "context_data", None)
    if request_state is None or match is None or data is None or "reason" in data:
        return False
    return request_state.held and request_state.reached and is_change_page_of_django(match.func)


def add_reason(request: HttpRequest, response: Any) -> None:
    """Beside the messages that the page shows; it is stored nowhere, for no other page. Queries."""
    if not request.user.is_authenticated:  # the wrong old password that ended the session
        return
    with logged_fault("Why a password is expired could not be asked"):
        status = password_status(request.user)
        said = Message(WARNING, held_text(reason_label(status.reason), status.since))
        response.context_data["messages"] = [*get_messages(request), said]

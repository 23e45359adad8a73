"""What a request is answered, and what is left of its session, once that is decided."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.contrib.auth import get_user, get_user_model
from django.contrib.auth.models import AnonymousUser
from django.db import Error as DatabaseFault
from django.http import HttpRequest, HttpResponseBase
from django.urls import ResolverMatch

from pwexpire.conf import conf
from pwexpire.constants import SESSION_DEMAND, SESSION_FLAG
from pwexpire.exceptions import ChangeURLNotFound
from pwexpire.exemptions import (
    asks_for_old_password,
    explain_loop,
    explain_urlconf,
    find_match,
    is_change_page,
    is_named_page,
    make_request,
)
from pwexpire.faults import fault_log, logged_fault
from pwexpire.middleware.arrivals import arrivals
from pwexpire.middleware.hooks import Hooks
from pwexpire.middleware.tries import SAFE_METHODS, is_change_of_password, verify_try
from pwexpire.pages import find_url
from pwexpire.responses import impersonated_response, locked_response, unavailable
from pwexpire.session_state import RequestState, SessionState, is_impersonated, request_state_of
from pwexpire.sessionstore.base import drop_in_memory, set_in_memory
from pwexpire.sessionstore.registry import get_adapter
from pwexpire.signals import expiry_enforced

logger = logging.getLogger("pwexpire")

Answer = HttpResponseBase | None


class Answers(Hooks):
    def _lock(self, request: HttpRequest, state: SessionState, require: str) -> Answer:
        """The old password is withdrawn, so nothing is left for this session to do."""
        self._make_anonymous(request)
        match = find_match(request)
        if match is not None and self._may_reach(request, match.func, match):
            return None
        response = locked_response(request, require)
        self._tell_enforced(request, state.user_id, response)
        return response

    def _hold(self, request: HttpRequest, request_state: RequestState) -> Answer:
        request_state.held = request_state.was_held = True
        # By name: Django reads None as what was set last in this thread.
        request_state.urlconf = getattr(request, "urlconf", settings.ROOT_URLCONF)
        match = find_match(request)
        if match is not None and self._may_reach(request, match.func, match):
            arrivals.arrive(request)
            return None
        return self._answer(request, request_state, match)

    def _may_reach(
        self, request: HttpRequest, view: Callable[..., Any], match: ResolverMatch | None
    ) -> bool:
        return self.is_exempt(request, view, match) or is_named_page(request)

    def _reach(
        self, request: HttpRequest, request_state: RequestState | None, view: Callable[..., Any]
    ) -> Answer:
        if request_state is None or not request_state.held:
            return None
        if self._may_reach(request, view, request.resolver_match):
            request_state.reached = True
            return None
        return self._answer(request, request_state, request.resolver_match)

    def _answer(
        self, request: HttpRequest, request_state: RequestState, match: ResolverMatch | None
    ) -> HttpResponseBase:
        assert request_state.state is not None
        request_state.answered = True
        self._is_taken_away(request, request_state)
        request.session.accessed = True
        try:
            try:
                change_url = self.get_change_url(request, match)
            except DatabaseFault:  # the admin asks who the user is
                change_url = find_url(conf.change_url, getattr(request, "urlconf", None))
            response = self.handle_held(request, change_url)
        except ChangeURLNotFound as error:
            logger.error("%s", error)
            return unavailable(str(error))
        circle = self._find_circle(request, request_state, response)
        if circle is not None:
            logger.error("%s", circle)
            return unavailable(circle)
        self._tell_enforced(request, request_state.state.user_id, response)
        return response

    def _is_taken_away(self, request: HttpRequest, request_state: RequestState) -> bool:
        """Whether a view or other middleware left no session; who is held gets it back."""
        if hasattr(getattr(request, "session", None), "session_key"):
            return False
        if request_state.held:
            assert request_state.session is not None
            request.session = request_state.session
        return not request_state.held

    def _find_circle(
        self, request: HttpRequest, request_state: RequestState, response: HttpResponseBase
    ) -> str | None:
        """What to say where the change page that ``response`` leads to would not be reached."""
        url = urlsplit(response.headers.get("Location", ""))
        if not url.path or url.netloc or request.method not in ("GET", "HEAD"):
            return None
        there = make_request(url.path, request_state.urlconf)
        urlconf = getattr(request, "urlconf", settings.ROOT_URLCONF)
        if urlconf != there.urlconf:
            match = find_match(there)
            if match is None or not self._may_reach(there, match.func, match):
                return explain_urlconf(there.path, request.path, urlconf)
        if arrivals.send(request, there.path):
            return None
        return explain_loop(there.path, request.path, find_match(request))

    def _tell_enforced(
        self, request: HttpRequest, user_id: str, response: HttpResponseBase
    ) -> None:
        expiry_enforced.send_robust(
            sender=get_user_model(), request=request, user_id=user_id, response=response
        )

    def _make_anonymous(self, request: HttpRequest) -> None:
        try:
            request.session.flush()
        except DatabaseFault as error:
            fault_log.error("A session could not be ended", error)
            # It is empty here; to save it would fail again, and as an error of the site's page.
            request.session.modified = False
        self._set_anonymous(request)

    def _set_anonymous(self, request: HttpRequest) -> None:
        """Let nothing that asks for the user of this request get anybody."""
        self._set_user(request, AnonymousUser())
        request_state_of(request).state = None

    def _set_user(self, request: HttpRequest, user: Any) -> None:
        # Django keeps whom it loaded there, for everybody who wraps request.user once more.
        request.user = request._cached_user = request._acached_user = user  # type: ignore[attr-defined]

        async def auser() -> Any:
            return user

        request.auser = auser

    def _is_change(
        self, request: HttpRequest, request_state: RequestState | None, view: Callable[..., Any]
    ) -> bool:
        """Whether a password may be changed here, or a held session sees the page; no query."""
        if request.method in SAFE_METHODS and (request_state is None or not request_state.held):
            return False
        return asks_for_old_password(request, view)

    def _enter_change(
        self, request: HttpRequest, request_state: RequestState | None, view: Callable[..., Any]
    ) -> Answer:
        """Look at a change of a password before the view does. Queries."""
        if is_impersonated(request) and is_change_page(request, view):
            if request_state is not None and request_state.held:
                # Held is the session's own user, who acts as another one: the page is for them.
                self._set_user(request, get_user(request))
            elif is_change_of_password(request, view):
                return impersonated_response()
        return None if request.method in SAFE_METHODS else verify_try(request, view)

    def _drop_from_memory(self, request: HttpRequest, state: SessionState) -> None:
        """A flag that was met or lifted, and saved back by an older copy."""
        drop_in_memory(request.session, SESSION_FLAG)
        drop_in_memory(request.session, SESSION_DEMAND)
        state.flagged = False

    def _show_flag(self, request: HttpRequest, state: SessionState, number: int) -> None:
        """Into this copy and, where that can be done without harm, into the store."""
        set_in_memory(request.session, SESSION_FLAG, True)
        set_in_memory(request.session, SESSION_DEMAND, number)
        state.flagged, state.flag_number = True, number
        adapter, key = get_adapter(), request.session.session_key
        if adapter.supports_flag and key:
            with logged_fault("A session could not be flagged"):
                adapter.flag({key: (state.user_id, number)})

    def _drop_stale_flag(self, request: HttpRequest, state: SessionState) -> None:
        number = state.flag_number
        self._drop_from_memory(request, state)
        adapter, key = get_adapter(), request.session.session_key
        if adapter.supports_flag and key:
            with logged_fault("The flag of a session could not be cleared"):
                adapter.clear({key: (state.user_id, number)})

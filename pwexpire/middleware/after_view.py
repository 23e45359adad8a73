"""What is left to do when the view has answered."""

from __future__ import annotations

import logging
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from django.contrib.auth import HASH_SESSION_KEY, get_user_model
from django.contrib.auth.forms import PasswordChangeForm
from django.db import Error as DatabaseFault
from django.forms import BaseForm
from django.http import HttpRequest, HttpResponseBase

from pwexpire.exceptions import ChangeURLNotFound
from pwexpire.exemptions import explain_loop, find_match, find_redirect, is_foreign_change_page
from pwexpire.feed import feed
from pwexpire.middleware.enforcement import Enforcement
from pwexpire.responses import unavailable, way_out
from pwexpire.retries import retried
from pwexpire.services.attempts import wrong_old_password
from pwexpire.services.index import forget_session, index_session, uses_index
from pwexpire.services.password_changes import change_context
from pwexpire.services.stamps import clear_flag, stamp_session
from pwexpire.services.status import read_counter_and_state
from pwexpire.session_state import (
    RequestState,
    SessionState,
    is_user,
    names_user,
    read_session_state,
    request_state_of,
)
from pwexpire.sessionstore.base import peek
from pwexpire.sessionstore.registry import get_adapter
from pwexpire.signals import expiry_cleared

logger = logging.getLogger("pwexpire")


class AfterView(Enforcement):
    def _must_leave(
        self, request: HttpRequest, request_state: RequestState, response: HttpResponseBase
    ) -> bool:
        if request_state.state is None:
            return request_state.gone_key is not None
        if request_state.held and self._must_follow_held(request, request_state, response):
            return True
        session = request.session
        if session.session_key != request_state.session_key:
            return True
        return (
            session.modified
            and peek(session).get(HASH_SESSION_KEY, "") != request_state.state.auth_hash
        )

    def _must_follow_held(
        self, request: HttpRequest, request_state: RequestState, response: HttpResponseBase
    ) -> bool:
        return (
            (not request_state.answered and "Location" in response.headers)
            or self._is_unread_try(request, response)
            or (request_state.served_elsewhere and request.resolver_match is None)
        )

    def _leave(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        request_state = request_state_of(request)
        if request_state.gone_key is not None:
            self._give_cookie_back(request)
            return response
        loop = self._find_loop(request, request_state, response)
        if loop is not None:
            logger.error("%s", loop)
            return unavailable(loop)
        if request_state.served_elsewhere and request.resolver_match is None:
            redirects = 300 <= response.status_code < 400
            return response if redirects else self._answer(request, request_state, None)
        if self._is_unread_try(request, response):
            wrong_old_password(request, unread=True)
        if request_state.state is not None:
            try:
                self._follow_session(request, request_state, request_state.state)
            except DatabaseFault as error:
                logger.error("A password change could not be followed up: %s", error)
        return response

    def _follow_session(
        self, request: HttpRequest, request_state: RequestState, before: SessionState
    ) -> None:
        """Another key or another hash: index the session, and let its flag go after a change."""
        session = request.session
        now = read_session_state(session)
        if now is None or now.user_id != before.user_id:
            current = change_context.get()
            if current is None or current.forgotten != request_state.session_key:
                forget_session(request_state.session_key, if_dead=True)
            return
        if now.auth_hash != before.auth_hash and not request_state.logged_in:
            self._settle(request, before)
        if session.session_key != request_state.session_key and uses_index(get_adapter()):
            index_session(session.session_key, now.user_id, replaces=request_state.session_key)

    def _find_loop(
        self, request: HttpRequest, request_state: RequestState, response: HttpResponseBase
    ) -> str | None:
        """What to say where something sends the user from the change page to a page that is held.

        Only asked of a safe request: the answer to a POST is the change itself, or a way out.
        """
        if (
            not request_state.held
            or request_state.answered
            or request.method not in ("GET", "HEAD")
        ):
            return None
        there = find_redirect(request, response)
        if there is None:
            return None
        match = find_match(there)
        with suppress(ChangeURLNotFound):
            change_url = self.get_change_url(request, request.resolver_match or find_match(request))
            if urlsplit(change_url).path != request.path:
                return None
        if match is not None and self._may_reach(there, match.func, match):
            return None
        return explain_loop(request.path, there.path, match)

    def _settle(self, request: HttpRequest, state: SessionState) -> None:
        """The auth hash was refreshed: the flag leaves if the password really changed."""
        current = change_context.get()
        # A new hash of the session alone says nothing: the hasher may have been upgraded, the
        # SECRET_KEY rotated, or the hash has more than the password in it.
        if current is None or not current.real_changes.get(state.user_id):
            return
        user: Any = request.user
        if not is_user(user, state.user_id):
            user = get_user_model()._base_manager.using(feed.using).get(pk=state.user_id)
        counter, password_state = retried(partial(read_counter_and_state, user), using=feed.using)
        if password_state.held:
            return
        session = request.session
        was_flagged = clear_flag(session)
        stamp_session(session, counter, password_state)
        if was_flagged:
            expiry_cleared.send_robust(sender=type(user), request=request, user_id=user.pk)

    def _is_wrong_guess(self, request: HttpRequest, response: Any) -> bool:
        """Whether a form of Django's had a wrong old password; an empty or a missing one is one.

        All three are the same answer.
        """
        form = (getattr(response, "context_data", None) or {}).get("form")
        if not isinstance(form, PasswordChangeForm) or not form.has_error("old_password"):
            return False
        form.errors.clear()
        form.add_error("old_password", form.error_messages["password_incorrect"])
        return True

    def _is_unread_try(self, request: HttpRequest, response: HttpResponseBase) -> bool:
        """Whether a held session sent a form to a change page, and nothing was changed.

        The page is one whose form is none of Django's, and the present password was not found in
        what was sent: nobody can see what was wrong with it.
        """
        request_state, current = request_state_of(request), change_context.get()
        if (
            current is None
            or request_state.state is None
            or not self._is_foreign_form(request, response)
        ):
            return False
        # If the old password was right, only the new one was refused.
        if (
            current.reported
            or current.knows_old
            or current.real_changes.get(request_state.state.user_id)
        ):
            return False
        return names_user(request.session, request.user)  # else the view ended the session

    def _is_foreign_form(self, request: HttpRequest, response: HttpResponseBase) -> bool:
        request_state, match = request_state_of(request), request.resolver_match
        sent = request_state.held and request_state.reached and request.method == "POST"
        if not sent or match is None or not is_foreign_change_page(request, match.func):
            return False
        form = (getattr(response, "context_data", None) or {}).get("form")
        return not isinstance(form, PasswordChangeForm)

    def _show_way_out(self, request: HttpRequest, response: Any) -> None:
        """Beside the login form's own error, for users who know a withdrawn password."""
        refused: str | None = getattr(request, "pwexpire_refused", None)
        form = (getattr(response, "context_data", None) or {}).get("form")
        if refused is not None and isinstance(form, BaseForm) and form.is_bound:
            form.add_error(None, way_out(refused, getattr(request, "urlconf", None)))

"""What the browser of a session is answered that was ended because its password was withdrawn."""

from __future__ import annotations

import time
from contextlib import suppress
from functools import partial

from django.conf import settings
from django.contrib.auth import get_user_model
from django.http import HttpRequest, HttpResponseBase

from pwexpire.conf import conf
from pwexpire.exceptions import EnforcementUnavailable
from pwexpire.exemptions import find_match
from pwexpire.faults import logged_fault
from pwexpire.feed import feed
from pwexpire.middleware.answers import Answers
from pwexpire.models import Require
from pwexpire.responses import locked_response
from pwexpire.retries import retried
from pwexpire.services.status import read_password_state
from pwexpire.session_state import request_state_of
from pwexpire.sessionstore.registry import get_adapter


class EndedSessions(Answers):
    def _answer_ended(self, request: HttpRequest, key: str) -> HttpResponseBase | None:
        """The answer to a cookie of no session, once, if it was ended and why is still true.

        The key of a session is known to nobody but its browser, so nobody else learns it. Queries,
        but only if the password of anybody was withdrawn of late.
        """
        match = find_match(request)
        if not conf.enforce or (match is not None and self._may_reach(request, match.func, match)):
            return None
        with (
            suppress(EnforcementUnavailable),
            logged_fault("Why a session was ended could not be asked"),
        ):
            if time.time() >= feed.view(self.get_scope(request)).traced_until:
                return None
            user_id = get_adapter().take_trace(key)
            if user_id is None:
                return None
            users = get_user_model()._base_manager.using(feed.using)
            user = users.filter(pk=user_id).first()
            if user is None or not self.should_enforce(request, user):
                return None
            password_state = retried(partial(read_password_state, user), using=feed.using)
            if password_state.withdrawn:
                response = locked_response(request, password_state.require or Require.RESET)
                self._tell_enforced(request, user_id, response)
                request.session.accessed = True
                return response
        return None

    def _give_cookie_back(self, request: HttpRequest) -> None:
        """Let a cookie of no session be as it came, if nobody but us has looked at it.

        Else the session middleware takes it away, and a page that has nothing to do with sessions
        varies by cookie.
        """
        request_state, session = request_state_of(request), request.session
        untouched = session.session_key is None and not (session.accessed or session.modified)
        # Such a site saves what came with a cookie, and a session that is not there cannot be.
        if untouched and not settings.SESSION_SAVE_EVERY_REQUEST:
            session._session_key = request_state.gone_key

"""What the browser of a session is answered that was ended because its password was withdrawn."""

from __future__ import annotations

from functools import partial

from django.contrib.auth import get_user_model
from django.http import HttpRequest, HttpResponseBase

from pwexpire.conf import conf
from pwexpire.exemptions import find_match
from pwexpire.faults import logged_fault
from pwexpire.feed import feed
from pwexpire.middleware.answers import Answers
from pwexpire.models import Require
from pwexpire.responses import locked_response
from pwexpire.retries import retried
from pwexpire.services.status import read_password_state
from pwexpire.sessionstore.registry import get_adapter


class EndedSessions(Answers):
    def _answer_ended(self, request: HttpRequest, key: str) -> HttpResponseBase | None:
        """The answer to a cookie of no session, once, if it was ended and why is still true.

        The key of a session is known to nobody but its browser, so nobody else learns it. Queries,
        but only once: the session middleware takes such a cookie away.
        """
        match = find_match(request)
        if not conf.enforce or (match is not None and self._may_reach(request, match.func, match)):
            return None
        with logged_fault("Why a session was ended could not be asked"):
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
                return response
        return None

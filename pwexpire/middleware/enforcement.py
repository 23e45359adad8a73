"""Fetches what the decision needs, and does what was decided."""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import Any

from django.contrib.auth import (
    BACKEND_SESSION_KEY,
    HASH_SESSION_KEY,
    SESSION_KEY,
    get_user,
    get_user_model,
)
from django.contrib.sessions.backends.base import SessionBase
from django.core.exceptions import ImproperlyConfigured, ValidationError
from django.db import DEFAULT_DB_ALIAS, router
from django.db import Error as DatabaseFault
from django.http import HttpRequest

from pwexpire.conf import conf
from pwexpire.constants import SESSION_DEMAND, SESSION_FLAG, SESSION_STAMP
from pwexpire.decision import (
    CLEARED,
    Access,
    AccessDecision,
    AccessReason,
    Facts,
    Modes,
    decide,
    is_suspect,
)
from pwexpire.demand_view import Clearance, View
from pwexpire.exceptions import EnforcementUnavailable
from pwexpire.faults import fault_log, logged_fault
from pwexpire.feed import feed
from pwexpire.keys import key_text
from pwexpire.middleware.answers import Answer
from pwexpire.middleware.ended import EndedSessions
from pwexpire.middleware.hooks import Hooks
from pwexpire.models import Require
from pwexpire.responses import unavailable
from pwexpire.retries import retried
from pwexpire.services.password_state import PasswordState, has_password
from pwexpire.services.status import count_would_hold, read_password_state
from pwexpire.session_state import (
    HIJACKERS,
    RequestState,
    SessionState,
    is_user,
    loginas_key,
    read_session_state,
    request_state_of,
)

logger = logging.getLogger("pwexpire")
COUNTED_SECONDS = 3600
# The scope of a site without a router and without tenants by schema.
USUAL = (DEFAULT_DB_ALIAS, "")
MISPLACED = (
    "PasswordExpiryMiddleware needs SessionMiddleware and AuthenticationMiddleware "
    "before it: put it after them in MIDDLEWARE."
)
UNAVAILABLE = "The service cannot check sessions at the moment. Try again soon."


class Enforcement(EndedSessions):
    """By the session alone where that is enough; only for a suspect the record is asked."""

    def __init__(self) -> None:
        mine = type(self)
        # Whether the site has a say in who is at it, or whose expiries count, at every request.
        self.asks_by_hook = (mine.real_user, mine.get_scope) != (Hooks.real_user, Hooks.get_scope)
        self.loginas_key = loginas_key()

    def _passes(self, request: HttpRequest, request_state: RequestState) -> bool:
        """Whether the session passes by what it says itself; loads it, and queries no more.

        Every request comes through here, and pays for each call. So there is hardly any for a
        session that is as most are, unflagged and with nobody in it who acts as its user, and none
        to decide if it began after the last demand. What is not like that goes to ``_is_clear``.
        """
        try:
            session, _ = request.session, request.user
            key = session.session_key
        except AttributeError:
            # AuthenticationMiddleware refuses a request without a session: it had one.
            if hasattr(request, "auser"):
                return True
            raise ImproperlyConfigured(MISPLACED) from None
        if key is None and not session.modified:
            key = request_state.session_key  # of the cookie, if it was looked for already
            if key is None:
                return True
        request_state.session, request_state.session_key = session, key
        accessed, modified = session.accessed, session.modified
        try:
            SESSION_KEY in session  # noqa: B015 - loads it
        except Exception as error:  # whatever the engine's backend raises
            request_state.fault = error
        try:
            data: dict[str, Any] = session._session_cache  # type: ignore[attr-defined]
            stamp, user_id, view = data[SESSION_STAMP], data[SESSION_KEY], feed._views[USUAL]
            state = SessionState()
            state.user_id, state.auth_hash = str(user_id), data[HASH_SESSION_KEY] or ""
            state.backend, state.policy_key = data[BACKEND_SESSION_KEY] or "", stamp["p"]
            state.stamp, state.born, state.ages = stamp["n"], stamp["b"], stamp["a"]
            if (
                (now := time.monotonic()) < view.fresh_until
                and now < view.due  # else another thread is asked for a new one
                and user_id is not None
                and SESSION_FLAG not in data
                and SESSION_DEMAND not in data
                and "g" not in stamp
                and HIJACKERS not in data
                and self.loginas_key not in data
                and not self.asks_by_hook
                and not router.routers
                and (
                    (
                        state.stamp >= view.counter >= state.born
                        and view.policy_key is None
                        and state.policy_key is None
                    )
                    or not is_suspect(state, view, time.time())
                )
            ):
                request_state.state = state
                session.accessed = accessed
                return True
        except (AttributeError, KeyError, TypeError):  # not as we write it, or not loaded
            pass
        clear = self._is_clear(request, request_state, session)
        # To load a signed cookie that is no longer valid makes another one.
        session.accessed, session.modified = accessed, modified
        return clear

    def _is_clear(
        self, request: HttpRequest, request_state: RequestState, session: SessionBase
    ) -> bool:
        """Whether the session passes by what it says itself; never queries."""
        request_state.state = state = read_session_state(session)
        if request_state.fault is not None:
            return False
        if state is None:
            if session.session_key is None:
                request_state.gone_key, request_state.session_key = request_state.session_key, None
            if request_state.gone_key is None:
                return True
            view = feed.current(self.get_scope(request))
            return view is not None and time.time() >= view.traced_until
        real = self.real_user(request)
        if real is not None:
            pk = getattr(real, "pk", real)
            # Somebody who is not logged in has no key, and acts as nobody.
            real_user_id = state.user_id if pk is None else key_text(pk)
            state.real_user_id = None if real_user_id == state.user_id else real_user_id
        view = feed.current(self.get_scope(request))
        if view is None or is_suspect(state, view, time.time()):
            return False
        if state.flagged:
            self._drop_from_memory(request, state)
        return True

    def _has_changed(self, request: HttpRequest, request_state: RequestState) -> bool:
        """Whether something behind this middleware made another session of it."""
        state = request_state.state
        try:
            session = request.session
            if request_state.session is None:
                return session.session_key is not None or session.modified
        except AttributeError:  # taken away
            return False
        try:
            data = session._session_cache  # type: ignore[attr-defined]
        except AttributeError:  # another one, which is not loaded, or none
            known = request_state.session_key
            return bool(getattr(session, "session_key", known) != known)
        if state is None or SESSION_KEY not in data:
            return (state is None) != (data.get(SESSION_KEY) is None)
        return (
            str(data[SESSION_KEY]) != state.user_id
            or (data.get(HASH_SESSION_KEY) or "") != state.auth_hash
            or bool(data.get(SESSION_FLAG)) != state.flagged
        )

    def _examine(self, request: HttpRequest) -> Answer:
        """Ask the record if the decision needs it. Queries."""
        request_state = request_state_of(request)
        modes = Modes(
            enforce=conf.enforce,
            report_only=conf.report_only,
            fail_closed=conf.fail_closed,
            exempt_backends=frozenset(conf.exempt_backends),
        )
        view: View | None = None
        facts: Facts | None = None
        fault = request_state.fault
        try:
            if request_state.state is not None and (modes.enforce or modes.report_only):
                view = feed.last_view(scope := self.get_scope(request))
                view = feed.view(scope)
                if is_suspect(request_state.state, view, time.time()):
                    facts = self._find_facts(request, request_state.state)
        except (DatabaseFault, EnforcementUnavailable) as error:
            fault = error
        if fault is not None:
            fault_log.error("Whether a password is expired could not be asked", fault)
        decision = decide(
            request_state.state, view, facts, modes, now=time.time(), fault=fault is not None
        )
        if decision.reason is AccessReason.FAIL_CLOSED:
            return unavailable(UNAVAILABLE)
        if request_state.state is None:
            key = request_state.gone_key
            return self._answer_ended(request, key) if key else None
        return self._carry_out(request, request_state, request_state.state, view, decision)

    def _find_facts(self, request: HttpRequest, state: SessionState) -> Facts:
        user = self._load_session_user(request, state)
        if user is None:
            return Facts()
        real = None
        if state.real_user_id is not None:
            users = get_user_model()._base_manager.using(feed.using)
            real = users.filter(pk=state.real_user_id).first()
        if not self.should_enforce(request, user if real is None else real):
            return Facts(own=PasswordState(), left_out=True)
        own = retried(partial(read_password_state, user), using=feed.using)
        if state.real_user_id is None:
            return Facts(own=own, usable_password=has_password(user))
        if real is None:  # gone since
            return Facts(own=own, real=PasswordState())
        return Facts(own=own, real=retried(partial(read_password_state, real), using=feed.using))

    def _load_session_user(self, request: HttpRequest, state: SessionState) -> Any:
        """Return the user whom the session names, or ``None`` if nobody is logged in by it.

        ``request.user`` is taken only if it is that user: a token or an impersonation may have
        put somebody else there, whose record says nothing about this session.
        """
        try:
            user = request.user
            if not is_user(user, state.user_id):
                user = get_user(request)
        except (ValidationError, ValueError, TypeError):
            # The session names a key that no user of this project can have. Django raises the
            # same error as soon as a view asks who the user is.
            self._set_anonymous(request)
            return None
        return user if user.is_authenticated else None

    # Do what was decided.

    def _carry_out(
        self,
        request: HttpRequest,
        request_state: RequestState,
        state: SessionState,
        view: View | None,
        decision: AccessDecision,
    ) -> Answer:
        if decision.access is Access.HOLD:
            if decision.number is not None and not state.flagged:
                self._show_flag(request, state, decision.number)
            return self._hold(request, request_state)
        if decision.access is Access.LOCKED:
            return self._lock(request, state, decision.require or Require.RESET)
        if decision.access is Access.END:
            self._make_anonymous(request)
        elif view is not None:
            self._let_pass(request, state, view, decision)
        return None

    def _let_pass(
        self, request: HttpRequest, state: SessionState, view: View, decision: AccessDecision
    ) -> None:
        if decision.reason in CLEARED:
            flag = state.flag_number or 0
            cleared = Clearance(view.counter, decision.good_until, conf.policy_key, flag)
            view.remember(state.key, cleared)
            if state.flagged:
                self._drop_stale_flag(request, state)
        elif decision.reason is AccessReason.NOTHING_NEW and state.flagged:
            self._drop_from_memory(request, state)
        elif decision.reason is AccessReason.REPORTED:
            self._count(view, state)

    def _count(self, view: View, state: SessionState) -> None:
        """Note whom this session would have been held for, once in an hour and process."""
        known = view.clearances.get(state.key)
        if known is not None and known.ages is not None and time.time() < known.ages:
            return
        again = time.time() + COUNTED_SECONDS
        view.remember(state.key, Clearance(view.counter, again, conf.policy_key))
        with logged_fault("A session that would be held could not be counted"):
            count_would_hold(state.real_user_id or state.user_id)

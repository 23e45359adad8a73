"""Fetches what the decision needs, and does what was decided."""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import Any

from django.contrib.auth import HASH_SESSION_KEY, SESSION_KEY, get_user, get_user_model
from django.contrib.sessions.backends.base import SessionBase
from django.core.exceptions import ImproperlyConfigured, ValidationError
from django.db import Error as DatabaseFault
from django.http import HttpRequest

from pwexpire.cases import (
    VISIT,
    Case,
    Visit,
    is_user,
    read_case,
    visit_of,
)
from pwexpire.conf import conf
from pwexpire.constants import SESSION_FLAG
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
from pwexpire.exceptions import EnforcementUnavailable
from pwexpire.faults import fault_log, logged_fault
from pwexpire.feed import Verdict, View, feed
from pwexpire.middleware.answers import Answer
from pwexpire.middleware.ended import EndedSessions
from pwexpire.models import Require
from pwexpire.responses import unavailable
from pwexpire.retries import retried
from pwexpire.services.judging import Judgement, has_password
from pwexpire.services.status import count_would_hold, judge
from pwexpire.sessionstore.base import peek

logger = logging.getLogger("pwexpire")
COUNTED_SECONDS = 3600
UNAVAILABLE = "The service cannot check sessions at the moment. Try again soon."


class Enforcement(EndedSessions):
    """By the session alone where that is enough; only for a suspect the record is asked."""

    # Fetch.

    def _find_session(self, request: HttpRequest) -> SessionBase | None:
        """The session, or ``None`` if there can be nobody in it; it is not loaded here."""
        session: SessionBase | None = getattr(request, "session", None)
        if session is None or not hasattr(request, "user"):
            raise ImproperlyConfigured(
                "PasswordExpiryMiddleware needs SessionMiddleware and AuthenticationMiddleware "
                "before it: put it after them in MIDDLEWARE."
            )
        if session.session_key is None and not session.modified:
            return None
        return session

    def _is_clear(
        self,
        request: HttpRequest,
        session: SessionBase,
        key: str | None,
        fault: Exception | None,
    ) -> bool:
        """Whether the session passes by what it says itself; never queries.

        ``key``: as the cookie has it. ``fault``: the session could not be loaded.
        """
        visit: Visit | None = getattr(request, VISIT, None)
        if visit is None:
            visit = request._pwexpire = Visit()  # type: ignore[attr-defined]
        visit.session_key, visit.fault = session.session_key, fault
        visit.case = case = read_case(session)
        visit.held = visit.answered = visit.reached = False
        if fault is not None:
            return False
        if case is None:
            visit.gone_key = key if session.session_key is None else None
            return visit.gone_key is None
        real = self.real_user(request)
        if real is not None:
            real_user_id = str(getattr(real, "pk", real))
            # Somebody who is not logged in has no key, and acts as nobody.
            case.real_user_id = None if real_user_id in ("None", case.user_id) else real_user_id
        view = feed.current(self.get_scope(request))
        if view is None or is_suspect(case, view, time.time()):
            return False
        if case.flagged:
            self._drop_from_memory(request, case)
        return True

    def _has_changed(self, request: HttpRequest, visit: Visit | None) -> bool:
        """Whether something behind this middleware made another session of it."""
        session = request.session
        if visit is None:
            return session.session_key is not None or session.modified
        if not hasattr(session, "_session_cache"):
            return session.session_key != visit.session_key
        data, case = peek(session), visit.case
        user_id = data.get(SESSION_KEY)
        if user_id is None or case is None:
            return (user_id is None) != (case is None)
        return (
            str(user_id) != case.user_id
            or data.get(HASH_SESSION_KEY, "") != case.auth_hash
            or bool(data.get(SESSION_FLAG)) != case.flagged
        )

    def _examine(self, request: HttpRequest) -> Answer:
        """Ask the record if the decision needs it. Queries."""
        visit = visit_of(request)
        modes = Modes(
            enforce=conf.enforce,
            report_only=conf.report_only,
            fail_closed=conf.fail_closed,
            exempt_backends=frozenset(conf.exempt_backends),
        )
        view: View | None = None
        facts: Facts | None = None
        fault = visit.fault
        try:
            if visit.case is not None and (modes.enforce or modes.report_only):
                view = feed.last_view(scope := self.get_scope(request))
                view = feed.view(scope)
                if is_suspect(visit.case, view, time.time()):
                    facts = self._find_facts(request, visit.case)
        except (DatabaseFault, EnforcementUnavailable) as error:
            fault = error
        if fault is not None:
            fault_log.error("Whether a password is expired could not be asked", fault)
        decision = decide(visit.case, view, facts, modes, now=time.time(), fault=fault is not None)
        if decision.reason is AccessReason.FAIL_CLOSED:
            return unavailable(UNAVAILABLE)
        if visit.case is None:
            return self._answer_ended(request, visit.gone_key) if visit.gone_key else None
        return self._carry_out(request, visit, visit.case, view, decision)

    def _find_facts(self, request: HttpRequest, case: Case) -> Facts:
        user = self._load_session_user(request, case)
        if user is None:
            return Facts()
        real = None
        if case.real_user_id is not None:
            users = get_user_model()._base_manager.using(feed.using)
            real = users.filter(pk=case.real_user_id).first()
        if not self.should_enforce(request, user if real is None else real):
            return Facts(own=Judgement(), left_out=True)
        own = retried(partial(judge, user), using=feed.using)
        if case.real_user_id is None:
            return Facts(own=own, usable_password=has_password(user))
        if real is None:  # gone since
            return Facts(own=own, real=Judgement())
        return Facts(own=own, real=retried(partial(judge, real), using=feed.using))

    def _load_session_user(self, request: HttpRequest, case: Case) -> Any:
        """Return the user whom the session names, or ``None`` if nobody is logged in by it.

        ``request.user`` is taken only if it is that user: a token or an impersonation may have
        put somebody else there, whose record says nothing about this session.
        """
        try:
            user = request.user
            if not is_user(user, case.user_id):
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
        visit: Visit,
        case: Case,
        view: View | None,
        decision: AccessDecision,
    ) -> Answer:
        if decision.access is Access.HOLD:
            if decision.number is not None and not case.flagged:
                self._show_flag(request, case, decision.number)
            return self._hold(request, visit)
        if decision.access is Access.LOCKED:
            return self._lock(request, case, decision.require or Require.RESET)
        if decision.access is Access.END:
            self._make_anonymous(request)
        elif view is not None:
            self._let_pass(request, case, view, decision)
        return None

    def _let_pass(
        self, request: HttpRequest, case: Case, view: View, decision: AccessDecision
    ) -> None:
        if decision.reason in CLEARED:
            flag = case.flag_number or 0
            cleared = Verdict(view.counter, decision.good_until, conf.policy_key, flag)
            view.remember(case.key, cleared)
            if case.flagged:
                self._drop_stale_flag(request, case)
        elif decision.reason is AccessReason.NOTHING_NEW and case.flagged:
            self._drop_from_memory(request, case)
        elif decision.reason is AccessReason.REPORTED:
            self._count(view, case)

    def _count(self, view: View, case: Case) -> None:
        """Note whom this session would have been held for, once in an hour and process."""
        known = view.verdicts.get(case.key)
        if known is not None and known.ages is not None and time.time() < known.ages:
            return
        again = time.time() + COUNTED_SECONDS
        view.remember(case.key, Verdict(view.counter, again, conf.policy_key))
        with logged_fault("A session that would be held could not be counted"):
            count_would_hold(case.real_user_id or case.user_id)

"""The one decision: whether a request is held, and what it is answered then."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from django.contrib.auth import HASH_SESSION_KEY, SESSION_KEY, get_user, get_user_model
from django.contrib.auth.models import AnonymousUser
from django.contrib.sessions.backends.base import SessionBase
from django.core.exceptions import ImproperlyConfigured, ValidationError
from django.db import Error as DatabaseFault
from django.http import HttpRequest, HttpResponseBase
from django.urls import ResolverMatch

from pwexpire.cases import Case, is_demanded, is_suspect, is_user, read_case
from pwexpire.conf import conf
from pwexpire.constants import SESSION_DEMAND, SESSION_FLAG
from pwexpire.exceptions import ChangeURLNotFound, EnforcementUnavailable
from pwexpire.exemptions import find_match, is_exempt, is_named_page
from pwexpire.feed import Verdict, View, feed
from pwexpire.models import Require
from pwexpire.pages import find_url, url_language
from pwexpire.responses import admin_change_url, held_response, locked_response, unavailable
from pwexpire.retries import retried
from pwexpire.services.changes import witness
from pwexpire.services.judging import Judgement
from pwexpire.services.status import count_would_hold, judge
from pwexpire.sessionstore.base import drop_in_memory, peek, set_in_memory
from pwexpire.sessionstore.registry import get_adapter
from pwexpire.signals import expiry_enforced

logger = logging.getLogger("pwexpire")
COUNTED_SECONDS = 3600

Answer = HttpResponseBase | None


class Enforcement:
    """Decides by the session alone, and asks the record only for a suspect."""

    # The hooks.

    def should_enforce(self, request: HttpRequest, user: Any) -> bool:
        """Whether ``user`` can be held at all in this request; called for suspects only."""
        return True

    def is_exempt(
        self, request: HttpRequest, view: Callable[..., Any], match: ResolverMatch | None
    ) -> bool:
        """Whether a held session may reach ``view``."""
        return is_exempt(view, match)

    def get_change_url(self, request: HttpRequest, match: ResolverMatch | None) -> str:
        """Where a held session is sent. Raises ``ChangeURLNotFound``."""
        with url_language(request):
            admin_url = admin_change_url(request, match)
            return admin_url or find_url(conf.change_url, getattr(request, "urlconf", None))

    def get_scope(self, request: HttpRequest) -> tuple[str, str]:
        """Database alias and schema whose expiries concern this request."""
        return feed.scope()

    def handle_held(self, request: HttpRequest, change_url: str) -> HttpResponseBase:
        """The answer to a request that must not reach its view."""
        return held_response(request, change_url)

    # The decision.

    def _session(self, request: HttpRequest) -> SessionBase | None:
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

    def _open(self, request: HttpRequest, session: SessionBase) -> Case | None:
        case = read_case(session)
        request._pwexpire_case = case  # type: ignore[attr-defined]
        return case

    def _has_changed(self, request: HttpRequest) -> bool:
        """Whether something behind this middleware made another session of it."""
        session = request.session
        before: Case | None = getattr(request, "_pwexpire_case", None)
        if before is None and session.session_key is None and not session.modified:
            return False
        if not hasattr(session, "_session_cache"):
            return before is None or session.session_key != before.session_key
        data = peek(session)
        user_id = data.get(SESSION_KEY)
        if user_id is None or before is None:
            return user_id is not None or before is not None
        return (
            str(user_id) != before.user_id
            or data.get(HASH_SESSION_KEY, "") != before.auth_hash
            or bool(data.get(SESSION_FLAG)) != before.flagged
        )

    def _drop_from_memory(self, request: HttpRequest, case: Case) -> None:
        """A flag that was met or lifted, and saved back by an older copy."""
        drop_in_memory(request.session, SESSION_FLAG)
        drop_in_memory(request.session, SESSION_DEMAND)
        case.flagged = False

    def _examine(self, request: HttpRequest, case: Case, scope: tuple[str, str]) -> Answer:
        """Ask the record. Queries."""
        if not (conf.enforce or conf.report_only):
            return None
        try:
            view = feed.view(scope)
            if not is_suspect(case, view):
                if case.flagged:
                    self._drop_from_memory(request, case)
                return None
            user = self._load_session_user(request, case)
            if user is None:
                if case.flagged:
                    self._make_anonymous(request)
                return None
            if not self.should_enforce(request, user):
                return None
            judged = retried(partial(judge, user), using=feed.using)
            if judged.ended > case.born:
                self._make_anonymous(request)
                return None
            by_hand = case.flagged and case.flag_number is None and user.has_usable_password()
            if case.hijacker is not None:
                judged, by_hand = self._judge_hijacker(case.hijacker), False
            if not (judged.held or by_hand) or _is_excused(case, judged, by_hand):
                view.remember(case.key, _verdict(view, judged, case))
                if case.flagged:
                    self._drop_stale_flag(request, case)
                return None
            if conf.report_only:
                self._count(view, case)
                return None
            if case.hijacker is not None:
                self._make_anonymous(request)
                return None
            if judged.locked:
                return self._lock(request, case, judged)
            if not case.flagged:
                # An age has no number: the flag gets one that no session was cleared for, so that
                # it holds through a fault as well. An expiry that takes the same one holds too.
                self._show_flag(request, case, judged.demand or view.counter + 1)
        except (DatabaseFault, EnforcementUnavailable) as error:
            return self._fault(request, case, scope, error)
        return self._hold(request, case)

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

    def _judge_hijacker(self, pk: str) -> Judgement:
        """Whoever took the session over answers for himself, not for the user."""
        users = get_user_model()._base_manager.using(feed.using)
        hijacker = users.filter(pk=pk).first()
        return (
            Judgement() if hijacker is None else retried(partial(judge, hijacker), using=feed.using)
        )

    def _count(self, view: View, case: Case) -> None:
        """Note whom this session would have been held for, once in an hour and process."""
        known = view.verdicts.get(case.key)
        if known is not None and known.ages is not None and time.time() < known.ages:
            return
        view.remember(
            case.key, Verdict(view.counter, time.time() + COUNTED_SECONDS, conf.policy_key)
        )
        count_would_hold(case.hijacker or case.user_id)

    def _lock(self, request: HttpRequest, case: Case, judged: Judgement) -> Answer:
        """The old password is worth nothing, so nothing is left for this session to do."""
        require = judged.require or Require.RESET
        self._make_anonymous(request)
        match = find_match(request)
        if match is not None and self._may_reach(request, match.func, match):
            return None
        response = locked_response(request, require)
        self._tell_enforced(request, case, response)
        return response

    def _fault(
        self, request: HttpRequest, case: Case, scope: tuple[str, str], error: Exception
    ) -> Answer:
        """Hold what is known to be demanded, though the record cannot be asked."""
        logger.error("Whether a password is expired could not be asked: %s", error)
        known = feed.last_view(scope)
        demanded = case.known_flagged or (known is not None and is_demanded(case, known))
        if demanded and not conf.report_only and case.backend not in conf.exempt_backends:
            return self._hold(request, case)
        if conf.fail_closed:
            return unavailable("The service cannot check sessions at the moment. Try again soon.")
        return None

    def _hold(self, request: HttpRequest, case: Case) -> Answer:
        case.held = True
        current = witness.get()
        if current is not None:
            current.held = True
        match = find_match(request)
        if match is not None and self._may_reach(request, match.func, match):
            return None
        return self._answer(request, case, match)

    def _may_reach(
        self, request: HttpRequest, view: Callable[..., Any], match: ResolverMatch | None
    ) -> bool:
        return self.is_exempt(request, view, match) or is_named_page(request)

    def _reach(self, request: HttpRequest, view: Callable[..., Any]) -> Answer:
        case: Case | None = getattr(request, "_pwexpire_case", None)
        if case is None or not case.held:
            return None
        if self._may_reach(request, view, request.resolver_match):
            case.reached = True
            return None
        return self._answer(request, case, request.resolver_match)

    def _answer(
        self, request: HttpRequest, case: Case, match: ResolverMatch | None
    ) -> HttpResponseBase:
        case.answered = True
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
        self._tell_enforced(request, case, response)
        return response

    def _tell_enforced(self, request: HttpRequest, case: Case, response: HttpResponseBase) -> None:
        expiry_enforced.send_robust(
            sender=get_user_model(), request=request, user_id=case.user_id, response=response
        )

    def _make_anonymous(self, request: HttpRequest) -> None:
        request.session.flush()
        self._set_anonymous(request)

    def _set_anonymous(self, request: HttpRequest) -> None:
        """Let nothing that asks for the user of this request get anybody."""
        request.user = AnonymousUser()
        # Django keeps whom it loaded there, for everybody who wraps request.user once more.
        request._cached_user = request._acached_user = request.user  # type: ignore[attr-defined]
        request._pwexpire_case = None  # type: ignore[attr-defined]

        async def auser() -> AnonymousUser:
            return AnonymousUser()

        request.auser = auser

    def _show_flag(self, request: HttpRequest, case: Case, number: int) -> None:
        """Into this copy and, where that can be done without harm, into the store."""
        set_in_memory(request.session, SESSION_FLAG, True)
        set_in_memory(request.session, SESSION_DEMAND, number)
        case.flagged, case.flag_number = True, number
        adapter = get_adapter()
        if adapter.supports_flag and case.session_key:
            adapter.flag({case.session_key: (case.user_id, number)})

    def _drop_stale_flag(self, request: HttpRequest, case: Case) -> None:
        number = case.flag_number
        self._drop_from_memory(request, case)
        adapter = get_adapter()
        if adapter.supports_flag and case.session_key:
            adapter.clear({case.session_key: (case.user_id, number)})


def _is_excused(case: Case, judged: Judgement, by_hand: bool) -> bool:
    """Whether this session may go on though its user is held; decided for it alone."""
    if case.backend in conf.exempt_backends:
        return True
    return _is_on_grace(case, judged) and not by_hand


def _is_on_grace(case: Case, judged: Judgement) -> bool:
    """Whether the login was a grace login, of every rule by which the password aged out."""
    if not (case.grace and judged.held_by_age_alone and judged.chosen.policy.grace_logins):
        return False
    # Under a rule that began to hold the user after this login, the login was no grace login.
    return case.ages is None or time.time() < case.ages


def _verdict(view: View, judged: Judgement, case: Case) -> Verdict:
    ages = judged.grace_ages if _is_on_grace(case, judged) else judged.ages
    if case.backend in conf.exempt_backends:
        ages = None
    return Verdict(view.counter, ages, conf.policy_key, case.flag_number or 0)

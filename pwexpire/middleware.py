"""Holds the sessions of users whose password has to be changed."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.contrib.auth import HASH_SESSION_KEY, SESSION_KEY, get_user_model
from django.contrib.auth.forms import PasswordChangeForm
from django.contrib.auth.models import AnonymousUser
from django.contrib.sessions.backends.base import SessionBase
from django.core.exceptions import ImproperlyConfigured
from django.db import Error as DatabaseFault
from django.http import HttpRequest, HttpResponseBase
from django.urls import ResolverMatch

from pwexpire.cases import Case, is_suspect, read_case
from pwexpire.conf import conf
from pwexpire.constants import SESSION_DEMAND, SESSION_FLAG
from pwexpire.exceptions import ChangeURLNotFound, EnforcementUnavailable
from pwexpire.feed import Verdict, feed
from pwexpire.forms import ExpiredPasswordChangeForm
from pwexpire.responses import (
    admin_change_url,
    find_match,
    find_url,
    held_response,
    is_exempt,
    unavailable,
)
from pwexpire.retries import retried
from pwexpire.services.attempts import wrong_old_password
from pwexpire.services.batches import demand_aged
from pwexpire.services.changes import Witness, record_password_change, witness
from pwexpire.services.index import forget_session, index_session, uses_index
from pwexpire.services.stamps import clear_flag, stamp_session
from pwexpire.services.status import Judgement, judge, judge_now
from pwexpire.sessionstore.base import drop_in_memory, peek, set_in_memory
from pwexpire.sessionstore.registry import get_adapter
from pwexpire.signals import expiry_cleared, expiry_enforced

logger = logging.getLogger("pwexpire")

GetResponse = Callable[[HttpRequest], Any]
Answer = HttpResponseBase | None


class PasswordExpiryMiddleware:
    """Put it after ``AuthenticationMiddleware``.

    From the moment a password is expired until it is changed, the sessions of its user reach
    exempt views only. Override ``should_enforce``, ``is_exempt``, ``get_change_url``,
    ``get_scope`` or ``handle_held`` for a site's own rules.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response
        self.is_async = iscoroutinefunction(get_response)
        # Django asks the bound method whether it is a coroutine function, and else hops threads.
        self.process_view: Callable[..., Any] = self._process_view_sync
        self.process_template_response: Callable[..., Any] = self._process_template_sync
        if self.is_async:
            markcoroutinefunction(self)
            self.process_view = self._process_view_async
            self.process_template_response = self._process_template_async

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
        admin_url = admin_change_url(request, match)
        return admin_url or find_url(conf.change_url, getattr(request, "urlconf", None))

    def get_scope(self, request: HttpRequest) -> tuple[str, str]:
        """Database alias and schema whose expiries concern this request."""
        return feed.scope()

    def handle_held(self, request: HttpRequest, change_url: str) -> HttpResponseBase:
        """The answer to a request that must not reach its view."""
        return held_response(request, change_url)

    # The two shells.

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        if self.is_async:
            return self._call_async(request)
        token = witness.set(Witness(request=request))
        try:
            answer = self._decide_sync(request)
            response = self.get_response(request) if answer is None else answer
            if self._must_leave(request, response):
                response = self._leave(request, response)
            return response
        finally:
            witness.reset(token)

    async def _call_async(self, request: HttpRequest) -> HttpResponseBase:
        token = witness.set(Witness(request=request))
        try:
            answer = await self._decide_async(request)
            response = await self.get_response(request) if answer is None else answer
            if self._must_leave(request, response):
                response = await sync_to_async(self._leave)(request, response)
            return response
        finally:
            witness.reset(token)

    def _decide_sync(self, request: HttpRequest) -> Answer:
        session = self._session(request)
        if session is None:
            return None
        accessed = session.accessed
        session.get(SESSION_KEY)
        session.accessed = accessed
        case = self._open(request, session)
        if case is None:
            return None
        view = feed.current(scope := self.get_scope(request))
        if view is not None and not is_suspect(case, view):
            if case.flagged:
                self._drop_from_memory(request, case)
            return None
        return self._examine(request, case, scope)

    async def _decide_async(self, request: HttpRequest) -> Answer:
        session = self._session(request)
        if session is None:
            return None
        accessed = session.accessed
        await session.aget(SESSION_KEY)
        session.accessed = accessed
        case = self._open(request, session)
        if case is None:
            return None
        view = feed.current(scope := self.get_scope(request))
        if view is not None and not is_suspect(case, view):
            if case.flagged:
                self._drop_from_memory(request, case)
            return None
        return await sync_to_async(self._examine)(request, case, scope)

    def _process_view_sync(
        self, request: HttpRequest, view: Callable[..., Any], args: Any, kwargs: Any
    ) -> Answer:
        if self._has_changed(request):
            answer = self._decide_sync(request)
            if answer is not None:
                return answer
        return self._reach(request, view)

    async def _process_view_async(
        self, request: HttpRequest, view: Callable[..., Any], args: Any, kwargs: Any
    ) -> Answer:
        if self._has_changed(request):
            answer = await self._decide_async(request)
            if answer is not None:
                return answer
        return self._reach(request, view)

    def _process_template_sync(self, request: HttpRequest, response: Any) -> Any:
        if self._is_wrong_guess(request, response):
            wrong_old_password(request)
        return response

    async def _process_template_async(self, request: HttpRequest, response: Any) -> Any:
        if self._is_wrong_guess(request, response):
            await sync_to_async(wrong_old_password)(request)
        return response

    # The one decision.

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
        if not conf.enforce:
            return None
        try:
            view = feed.view(scope)
            if not is_suspect(case, view):
                if case.flagged:
                    self._drop_from_memory(request, case)
                return None
            user = request.user
            if not user.is_authenticated:
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
            if not judged.held and not by_hand:
                verdict = Verdict(view.counter, judged.ages, conf.policy_key)
                view.remember(case.key, verdict)
                if case.flagged:
                    self._drop_stale_flag(request, case)
                return None
            number = judged.demand
            if judged.aged and not number:
                number = self._demand_aged(user, judged) or view.counter
            if not case.flagged:
                self._show_flag(request, case, number)
        except (DatabaseFault, EnforcementUnavailable) as error:
            return self._fault(request, case, error)
        return self._hold(request, case)

    def _demand_aged(self, user: Any, judged: Judgement) -> int | None:
        try:
            return demand_aged(user, judged.chosen.policy.require)
        except DatabaseFault as error:  # read-only: held all the same
            logger.error("An aged password could not be recorded: %s", error)
            return None

    def _fault(self, request: HttpRequest, case: Case, error: Exception) -> Answer:
        logger.error("Whether a password is expired could not be asked: %s", error)
        if case.known_flagged:
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
        if self.is_exempt(request, view, match):
            return True
        return conf.change_url.startswith("/") and urlsplit(conf.change_url).path == request.path

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
        expiry_enforced.send_robust(
            sender=get_user_model(), request=request, user_id=case.user_id, response=response
        )
        return response

    def _is_wrong_guess(self, request: HttpRequest, response: Any) -> bool:
        """On a change page of Django's or the admin's; ours counts for itself."""
        case: Case | None = getattr(request, "_pwexpire_case", None)
        if case is None or not case.held:
            return False
        form = (getattr(response, "context_data", None) or {}).get("form")
        if not isinstance(form, PasswordChangeForm) or isinstance(form, ExpiredPasswordChangeForm):
            return False
        return form.has_error("old_password", "password_incorrect")

    def _make_anonymous(self, request: HttpRequest) -> None:
        request.session.flush()
        request.user = AnonymousUser()
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

    # On the way out.

    def _must_leave(self, request: HttpRequest, response: HttpResponseBase) -> bool:
        case: Case | None = getattr(request, "_pwexpire_case", None)
        if case is None:
            return False
        if case.served_elsewhere and request.resolver_match is None:
            return True
        session = request.session
        if session.session_key != case.session_key:
            return True
        return session.modified and peek(session).get(HASH_SESSION_KEY, "") != case.auth_hash

    def _leave(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        case: Case = request._pwexpire_case  # type: ignore[attr-defined]
        if case.served_elsewhere and request.resolver_match is None:
            redirects = 300 <= response.status_code < 400
            return response if redirects else self._answer(request, case, None)
        session = request.session
        now = read_case(session)
        try:
            if now is None or now.user_id != case.user_id:
                forget_session(case.session_key, if_dead=True)
                return response
            if now.auth_hash != case.auth_hash and not getattr(request, "_pwexpire_login", False):
                self._settle(request, case)
            if session.session_key != case.session_key and uses_index(get_adapter()):
                index_session(session.session_key, request.user, replaces=case.session_key)
        except DatabaseFault as error:
            logger.error("A password change could not be followed up: %s", error)
        return response

    def _settle(self, request: HttpRequest, case: Case) -> None:
        """The auth hash was refreshed: the flag leaves if the password really changed."""
        user = get_user_model()._base_manager.using(feed.using).get(pk=case.user_id)
        if case.auth_hash in (user.get_session_auth_hash(), *user.get_session_auth_fallback_hash()):
            return  # only SECRET_KEY was rotated
        current = witness.get()
        real = current.judged.get(str(user.pk)) if current is not None else None
        if real is None:
            record_password_change(user)
        counter, judged = retried(partial(judge_now, user), using=feed.using)
        if judged.held or real is False:
            return
        session = request.session
        was_flagged = clear_flag(session)
        stamp_session(session, counter, judged)
        if was_flagged:
            expiry_cleared.send_robust(sender=type(user), request=request, user_id=user.pk)

"""The middleware itself: its entry points for sync and async, around one decision."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.contrib.auth import HASH_SESSION_KEY, SESSION_KEY
from django.http import HttpRequest, HttpResponseBase

from pwexpire.constants import SESSION_FLAG
from pwexpire.middleware.after_view import AfterView
from pwexpire.middleware.answers import Answer
from pwexpire.middleware.explaining import add_reason, needs_reason
from pwexpire.middleware.tries import SAFE_METHODS
from pwexpire.services.guesses import follow_up_wrong
from pwexpire.services.password_changes import change_context, note_server
from pwexpire.session_state import REQUEST_STATE, RequestState, request_state_of

GetResponse = Callable[[HttpRequest], Any]


class PasswordExpiryMiddleware(AfterView):
    """Put it after ``AuthenticationMiddleware``.

    From the moment a password is expired until it is changed, the sessions of its user reach
    exempt views only. Override ``should_enforce``, ``real_user``, ``is_exempt``,
    ``get_change_url``, ``get_scope`` or ``handle_held`` for a site's own rules.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: GetResponse) -> None:
        super().__init__()
        self.get_response = get_response
        note_server()
        self.is_async = iscoroutinefunction(get_response)
        # Django asks the bound method whether it is a coroutine function, and else hops threads.
        self.process_view: Callable[..., Any] = self._process_view_sync
        self.process_template_response: Callable[..., Any] = self._process_template_sync
        if self.is_async:
            markcoroutinefunction(self)
            self.process_view = self._process_view_async
            self.process_template_response = self._process_template_async

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        if self.is_async:
            return self._call_async(request)
        request_state = getattr(request, REQUEST_STATE, None)
        if request_state is None:
            request_state = request._pwexpire = RequestState()  # type: ignore[attr-defined]
        request_state.request = request
        token = change_context.set(request_state)
        try:
            passes = self._passes(request, request_state)
            answer = None if passes else self._examine(request)
            response = self.get_response(request) if answer is None else answer
            try:
                session = request.session
                # Whatever gives a session another key or another user marks it as modified.
                follow = (
                    session.modified
                    or request_state.held
                    or request_state.gone_key is not None
                    or session is not request_state.session
                )
            except AttributeError:
                follow = not self._is_taken_away(request, request_state)
            if follow and self._must_leave(request, request_state, response):
                response = self._leave(request, response)
            return response
        finally:
            change_context.reset(token)

    async def _call_async(self, request: HttpRequest) -> HttpResponseBase:
        request_state = request_state_of(request)
        request_state.request = request
        token = change_context.set(request_state)
        try:
            passes = await self._apasses(request, request_state)
            answer = None if passes else await sync_to_async(self._examine)(request)
            response = await self.get_response(request) if answer is None else answer
            try:
                request.session.modified  # noqa: B018
                follow = True
            except AttributeError:
                follow = not self._is_taken_away(request, request_state)
            if follow and self._must_leave(request, request_state, response):
                response = await sync_to_async(self._leave)(request, response)
            return response
        finally:
            change_context.reset(token)

    async def _apasses(self, request: HttpRequest, request_state: RequestState) -> bool:
        """As ``_passes``, where the session has to be awaited."""
        try:
            session = request.session
            key = session.session_key
        except AttributeError:  # ``_passes`` says why
            key = None
        if key is not None:
            touched = session.accessed, session.modified
            request_state.session_key = key
            try:
                await session.ahas_key(SESSION_KEY)
            except Exception as error:
                request_state.session, request_state.fault = session, error
                return False
            finally:
                session.accessed, session.modified = touched
        return self._passes(request, request_state)

    def _process_view_sync(
        self, request: HttpRequest, view: Callable[..., Any], args: Any, kwargs: Any
    ) -> Answer:
        try:
            request_state: RequestState = request._pwexpire  # type: ignore[attr-defined]
            state, data = request_state.state, request.session._session_cache  # type: ignore[attr-defined]
            # Nearly always the same user, and nothing to hold: no call, as in ``_passes``.
            if (
                state is not None
                and data[SESSION_KEY] == state.user_id
                and data[HASH_SESSION_KEY] == state.auth_hash
                and SESSION_FLAG not in data
                and not request_state.held
                and request.method in SAFE_METHODS
            ):
                return None
        except (AttributeError, KeyError):
            pass
        request_state = request_state_of(request)
        if self._has_changed(request, request_state):
            request_state.forget_decision()
            if not self._passes(request, request_state):
                answer = self._examine(request)
                if answer is not None:
                    return answer
        answer = self._reach(request, request_state, view)
        if answer is None and self._is_change(request, request_state, view):
            answer = self._enter_change(request, request_state, view)
        return answer

    async def _process_view_async(
        self, request: HttpRequest, view: Callable[..., Any], args: Any, kwargs: Any
    ) -> Answer:
        request_state = request_state_of(request)
        if self._has_changed(request, request_state):
            request_state.forget_decision()
            if not await self._apasses(request, request_state):
                answer = await sync_to_async(self._examine)(request)
                if answer is not None:
                    return answer
        answer = self._reach(request, request_state, view)
        if answer is None and self._is_change(request, request_state, view):
            answer = await sync_to_async(self._enter_change)(request, request_state, view)
        return answer

    def _process_template_sync(self, request: HttpRequest, response: Any) -> Any:
        self._show_way_out(request, response)
        if self._is_wrong_guess(request, response):
            follow_up_wrong(request)
        if needs_reason(request, response):
            add_reason(request, response)
        return response

    async def _process_template_async(self, request: HttpRequest, response: Any) -> Any:
        self._show_way_out(request, response)
        if self._is_wrong_guess(request, response):
            await sync_to_async(follow_up_wrong)(request)
        if needs_reason(request, response):
            await sync_to_async(add_reason)(request, response)
        return response

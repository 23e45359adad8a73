"""The middleware itself: its entry points for sync and async, around one decision."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.contrib.auth import SESSION_KEY
from django.http import HttpRequest, HttpResponseBase

from pwexpire.middleware.after_view import AfterView
from pwexpire.middleware.answers import Answer
from pwexpire.middleware.explaining import add_reason, needs_reason
from pwexpire.services.guesses import follow_up_wrong
from pwexpire.services.password_changes import ChangeContext, change_context, note_server
from pwexpire.session_state import REQUEST_STATE, find_request_state

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
        token = change_context.set(ChangeContext(request=request))
        try:
            answer = self._decide_sync(request)
            response = self.get_response(request) if answer is None else answer
            if self._must_leave(request, response):
                response = self._leave(request, response)
            return response
        finally:
            change_context.reset(token)

    async def _call_async(self, request: HttpRequest) -> HttpResponseBase:
        token = change_context.set(ChangeContext(request=request))
        try:
            answer = await self._decide_async(request)
            response = await self.get_response(request) if answer is None else answer
            if self._must_leave(request, response):
                response = await sync_to_async(self._leave)(request, response)
            return response
        finally:
            change_context.reset(token)

    def _decide_sync(self, request: HttpRequest) -> Answer:
        session = self._find_session(request)
        if session is None:
            return None
        key, touched, fault = session.session_key, (session.accessed, session.modified), None
        try:
            session.get(SESSION_KEY)
        except Exception as error:  # whatever the engine's backend raises
            fault = error
        clear = self._is_clear(request, session, key, fault)
        # To load a signed cookie that is no longer valid makes another one.
        session.accessed, session.modified = touched
        return None if clear else self._examine(request)

    async def _decide_async(self, request: HttpRequest) -> Answer:
        session = self._find_session(request)
        if session is None:
            return None
        key, touched, fault = session.session_key, (session.accessed, session.modified), None
        try:
            await session.aget(SESSION_KEY)
        except Exception as error:
            fault = error
        clear = self._is_clear(request, session, key, fault)
        session.accessed, session.modified = touched
        return None if clear else await sync_to_async(self._examine)(request)

    def _process_view_sync(
        self, request: HttpRequest, view: Callable[..., Any], args: Any, kwargs: Any
    ) -> Answer:
        request_state = getattr(request, REQUEST_STATE, None)
        if self._has_changed(request, request_state):
            answer = self._decide_sync(request)
            if answer is not None:
                return answer
            request_state = find_request_state(request)
        answer = self._reach(request, request_state, view)
        if answer is None and self._is_change(request, request_state, view):
            answer = self._enter_change(request, request_state, view)
        return answer

    async def _process_view_async(
        self, request: HttpRequest, view: Callable[..., Any], args: Any, kwargs: Any
    ) -> Answer:
        request_state = getattr(request, REQUEST_STATE, None)
        if self._has_changed(request, request_state):
            answer = await self._decide_async(request)
            if answer is not None:
                return answer
            request_state = find_request_state(request)
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

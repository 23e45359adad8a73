"""The middleware itself: its hooks, and two thin shells around one decision."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.contrib.auth import SESSION_KEY
from django.http import HttpRequest, HttpResponseBase

from pwexpire.cases import is_suspect
from pwexpire.feed import feed
from pwexpire.middleware.departure import Departure
from pwexpire.middleware.enforcement import Answer
from pwexpire.middleware.tries import may_be_try, verify_try
from pwexpire.services.changes import Witness, note_server, witness
from pwexpire.services.guesses import follow_up_wrong

GetResponse = Callable[[HttpRequest], Any]


class PasswordExpiryMiddleware(Departure):
    """Put it after ``AuthenticationMiddleware``.

    From the moment a password is expired until it is changed, the sessions of its user reach
    exempt views only. Override ``should_enforce``, ``is_exempt``, ``get_change_url``,
    ``get_scope`` or ``handle_held`` for a site's own rules.
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
        answer = self._reach(request, view)
        if answer is None and may_be_try(request, view):
            answer = verify_try(request, view)
        return answer

    async def _process_view_async(
        self, request: HttpRequest, view: Callable[..., Any], args: Any, kwargs: Any
    ) -> Answer:
        if self._has_changed(request):
            answer = await self._decide_async(request)
            if answer is not None:
                return answer
        answer = self._reach(request, view)
        if answer is None and may_be_try(request, view):
            answer = await sync_to_async(verify_try)(request, view)
        return answer

    def _process_template_sync(self, request: HttpRequest, response: Any) -> Any:
        self._show_way_out(request, response)
        if self._is_wrong_guess(request, response):
            follow_up_wrong(request)
        return response

    async def _process_template_async(self, request: HttpRequest, response: Any) -> Any:
        self._show_way_out(request, response)
        if self._is_wrong_guess(request, response):
            await sync_to_async(follow_up_wrong)(request)
        return response

"""What a site may decide for itself: the methods that a subclass of the middleware overrides."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from django.core.signing import BadSignature, TimestampSigner
from django.http import HttpRequest, HttpResponseBase
from django.urls import ResolverMatch

from pwexpire.conf import conf
from pwexpire.exemptions import is_exempt
from pwexpire.feed import feed
from pwexpire.pages import find_url, url_language
from pwexpire.responses import admin_change_url, held_response
from pwexpire.session_state import HIJACKERS, loginas_key
from pwexpire.sessionstore.base import peek


class Hooks:
    def should_enforce(self, request: HttpRequest, user: Any) -> bool:
        """Whether ``user`` can be held at all in this request; called for suspects only."""
        return True

    def real_user(self, request: HttpRequest) -> Any:
        """The user who acts as the one whom the session names; ``None`` if nobody does.

        A user, or their primary key, for which nothing is asked of the database here: this is
        called at every request of a session that somebody is logged in to. Known are django-hijack
        and django-loginas; a session of django-impersonate names the user who sits there.
        """
        data = peek(request.session)
        history = data.get(HIJACKERS)
        if history and isinstance(history, list):
            return history[0]
        signed = data.get(loginas_key())
        if signed is None:
            return None
        with suppress(BadSignature, TypeError):
            return TimestampSigner().unsign(signed)
        return None

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

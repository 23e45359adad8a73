"""Whether a held session that is sent to the change page arrives there.

What stands in front of this middleware may redirect that page to one that is held: a circle of
which every other request is never seen here. Which requests begin, Django says before all of it.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.core.signals import request_started
from django.http import HttpRequest, parse_cookie

SENT_MAX = 10_000
# Fewer might be requests that are still on their way; a browser gives up after twenty redirects.
MISSED_MAX = 3
SECONDS = 10.0


@dataclass(slots=True)
class Sent:
    path: str
    at: float
    missed: int = 0


class Arrivals:
    """In memory and of this process alone; nothing is sent to the browser for it."""

    def __init__(self) -> None:
        # Hash of the cookie of the session -> where it was sent.
        self._sent: OrderedDict[int, Sent] = OrderedDict()
        self._paths: set[str] = set()

    def send(self, request: HttpRequest, path: str) -> bool:
        """Note that the session of ``request`` is sent to ``path``; false if it never arrives."""
        request_started.connect(self.begin, dispatch_uid="pwexpire.arrivals")
        key, now = _key(request.COOKIES), time.monotonic()
        sent = self._sent.pop(key, None)
        if sent is None or sent.path != path or now - sent.at > SECONDS:
            sent = Sent(path, now)
        sent.at = now
        self._sent[key] = sent
        self._paths.add(path)
        if len(self._sent) > SENT_MAX:
            with suppress(KeyError):  # another thread may have been here
                self._sent.popitem(last=False)
        return sent.missed < MISSED_MAX

    def begin(self, environ: Any = None, scope: Any = None, **kwargs: Any) -> None:
        """A request has come, and no middleware has seen it."""
        path, cookies = _read_environ(environ or {}) if scope is None else _read_scope(scope)
        if path in self._paths:
            sent = self._sent.get(_key(parse_cookie(cookies)))
            if sent is not None and sent.path == path:
                sent.missed += 1

    def arrive(self, request: HttpRequest) -> None:
        self._sent.pop(_key(request.COOKIES), None)


def _read_environ(environ: dict[str, Any]) -> tuple[str, str]:
    path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
    return path, environ.get("HTTP_COOKIE", "")


def _read_scope(scope: dict[str, Any]) -> tuple[str, str]:
    cookies = [value.decode("latin1") for name, value in scope["headers"] if name == b"cookie"]
    return scope["path"], "; ".join(cookies)


def _key(cookies: dict[str, str]) -> int:
    return hash(cookies.get(settings.SESSION_COOKIE_NAME))


arrivals = Arrivals()

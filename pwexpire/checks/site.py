"""Where the middleware stands, and what the URLconf, the stores and the databases are."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.middleware import AuthenticationMiddleware
from django.contrib.sessions.middleware import SessionMiddleware
from django.core.checks import CheckMessage, Error, Info, Warning
from django.db import router
from django.urls import (
    Resolver404,
    URLPattern,
    URLResolver,
    get_resolver,
    get_script_prefix,
    resolve,
)
from django.utils.module_loading import import_string

from pwexpire.checks.configuration import is_right
from pwexpire.conf import conf
from pwexpire.exceptions import ChangeURLNotFound
from pwexpire.middleware import PasswordExpiryMiddleware
from pwexpire.models import PasswordRecord
from pwexpire.responses import find_url, is_exempt
from pwexpire.sessionstore.registry import get_adapter

WELL_KNOWN = "/.well-known/change-password"


def _is_loaded() -> bool:
    """Whether there is a URLconf to ask; one that is broken is reported by Django's own checks."""
    try:
        return bool(get_resolver().url_patterns)
    except Exception:
        return False


def _position(wanted: type) -> int | None:
    """Where this middleware, or a subclass of it, stands."""
    for at, name in enumerate(settings.MIDDLEWARE):
        try:
            found = import_string(name)
        except ImportError:
            continue
        if isinstance(found, type) and issubclass(found, wanted):
            return at
    return None


def check_middleware(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    ours = _position(PasswordExpiryMiddleware)
    if ours is None:
        return [
            Error(
                "PasswordExpiryMiddleware is not in MIDDLEWARE, so no session is held.",
                hint='Add "pwexpire.middleware.PasswordExpiryMiddleware" after '
                '"django.contrib.auth.middleware.AuthenticationMiddleware".',
                id="pwexpire.E001",
            )
        ]
    for needed in (SessionMiddleware, AuthenticationMiddleware):
        before = _position(needed)
        # The session middleware of django-user-sessions is no subclass of Django's.
        if before is None and needed is SessionMiddleware:
            continue
        if before is None or before > ours:
            return [
                Error(
                    f"PasswordExpiryMiddleware does not come after {needed.__name__}.",
                    hint=f"Put it after {needed.__name__} in MIDDLEWARE.",
                    id="pwexpire.E002",
                )
            ]
    return []


def check_change_url(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    if not _is_loaded():
        return []
    given = conf.change_url
    try:
        path = find_url(given)
        if not given.startswith("/"):  # reversed, so FORCE_SCRIPT_NAME is in front of it
            path = path.removeprefix(get_script_prefix().rstrip("/"))
        match = resolve(urlsplit(path).path)
    except (ChangeURLNotFound, Resolver404):
        return [
            Error(
                f"PWEXPIRE_CHANGE_URL = {given!r} leads to no page.",
                hint="Include pwexpire.urls in the URLconf, or set PWEXPIRE_CHANGE_URL to the name "
                "of the site's password-change view.",
                id="pwexpire.E003",
            )
        ]
    if not given.startswith("/") and not is_exempt(match.func, match):
        return [
            Error(
                f"The view behind PWEXPIRE_CHANGE_URL = {given!r} is itself held.",
                hint="Use the full name with its namespace, as in reverse(), or add the name of "
                "the view to PWEXPIRE_EXEMPT_VIEWS.",
                id="pwexpire.E004",
            )
        ]
    return []


def check_well_known(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    if not _is_loaded():
        return []
    try:
        resolve(WELL_KNOWN)
    except Resolver404:
        return [
            Warning(
                f"{WELL_KNOWN} is not served, so password managers do not find the change page.",
                hint='Add path("", include("pwexpire.urls.well_known")) to the root URLconf.',
                id="pwexpire.W013",
            )
        ]
    return []


def check_session_engine(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    try:
        adapter = get_adapter()
    except (ImportError, AttributeError, RuntimeError):  # Django says so at the first request
        return []
    lacks = [
        words
        for able, words in (
            (adapter.supports_flag, "be flagged from outside"),
            (adapter.supports_enumerate, "be listed"),
            (adapter.supports_end, "be deleted from outside"),
        )
        if not able
    ]
    if not lacks:
        return []
    return [
        Info(
            f"Sessions of the engine {adapter.name} cannot {' or '.join(lacks)}; "
            "they are held by the record at their next request.",
            hint="Nothing has to be done. With a database engine the flag is visible in the store.",
            id="pwexpire.I005",
        )
    ]


def check_exempt_views(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    if not is_right("EXEMPT_VIEWS") or not conf.exempt_views or not _is_loaded():
        return []
    known = set(_names(get_resolver()))
    return [
        Error(
            f"PWEXPIRE_EXEMPT_VIEWS names {name!r}, which is no view of the URLconf.",
            hint=f"Did you mean {near[0]!r}?"
            if (near := get_close_matches(name, known, n=1))
            else "Give the full name, with its namespace.",
            id="pwexpire.E008",
        )
        for name in sorted(conf.exempt_views - known)
    ]


def _names(resolver: URLResolver, prefix: str = "") -> Iterator[str]:
    for pattern in resolver.url_patterns:
        if isinstance(pattern, URLPattern):
            if pattern.name:
                yield prefix + pattern.name
        else:
            inner = f"{prefix}{pattern.namespace}:" if pattern.namespace else prefix
            yield from _names(pattern, inner)


def check_databases(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    users = router.db_for_write(get_user_model())
    records = router.db_for_write(PasswordRecord)
    if users == records:
        return []
    return [
        Error(
            f"Users are written to the database {users!r}, the records of pwexpire to {records!r}.",
            hint="Route the app pwexpire to the database of the user model.",
            id="pwexpire.E011",
        )
    ]

"""Where the middleware stands, and what the URLconf, the stores and the databases are."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any
from urllib.parse import urlsplit

from django.apps import apps
from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.middleware import AuthenticationMiddleware
from django.contrib.sessions.middleware import SessionMiddleware
from django.core.checks import CheckMessage, Error, Info, Warning
from django.db import router
from django.urls import (
    Resolver404,
    ResolverMatch,
    get_resolver,
    resolve,
)
from django.utils.module_loading import import_string

from pwexpire.checks.configuration import is_right
from pwexpire.conf import conf
from pwexpire.exceptions import ChangeURLNotFound
from pwexpire.exemptions import is_exempt
from pwexpire.middleware import PasswordExpiryMiddleware
from pwexpire.models import PasswordRecord
from pwexpire.pages import (
    find_dead_ends,
    find_logout_url,
    find_reset_url,
    find_url,
    name_views,
    strip_prefix,
)
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
        match = _match(find_url(given))
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


def _match(url: str) -> ResolverMatch:
    return resolve(strip_prefix(urlsplit(url).path))


def check_way_out(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """Log-out and reset have to stay reachable for a session that is held."""
    found: list[CheckMessage] = []
    if not _is_loaded():
        return found
    if find_logout_url() is None:
        given = f"PWEXPIRE_LOGOUT_URL = {conf.logout_url!r} leads to no page"
        found.append(
            Error(
                f"{given if conf.logout_url else 'No view that logs out was found'}, so that a "
                "held user cannot log out.",
                hint="Include pwexpire.urls in the URLconf, or set PWEXPIRE_LOGOUT_URL to the name "
                "of the site's log-out view.",
                id="pwexpire.E032",
            )
        )
    if hasattr(settings, "PWEXPIRE_RESET_URL") and find_reset_url() is None:
        found.append(
            Error(
                f"PWEXPIRE_RESET_URL = {conf.reset_url!r} leads to no page.",
                hint="Set it to the name of the site's view that mails a reset link, or remove it.",
                id="pwexpire.E033",
            )
        )
    return found


def check_dead_ends(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    return [
        Warning(
            f"{name} = {value!r} leads to no page of this site.",
            hint=f"Users are sent there {why}. Set {name} to a page that exists; if another server "
            "serves it, silence this check.",
            id="pwexpire.W030",
        )
        for name, value, why in (find_dead_ends() if _is_loaded() else ())
    ]


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
    known = {name for name, view in name_views(get_resolver())}
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


def check_user_admin(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """An ``extend_user_admin()`` in a module that nobody imports does nothing, without a word."""
    if not apps.is_installed("django.contrib.admin") or not _is_loaded():
        return []
    from pwexpire.admin import PasswordExpiryUserAdminMixin, expire_passwords_action

    found = {
        model_admin
        for _, view in name_views(get_resolver())
        if (model_admin := getattr(view, "model_admin", None)) is not None
        and model_admin.model is get_user_model()
    }
    if not found or any(
        isinstance(one, PasswordExpiryUserAdminMixin)
        or expire_passwords_action in (one.actions or ())
        for one in found
    ):
        return []
    return [
        Info(
            "The admin of the users offers no action that expires passwords.",
            hint="Call pwexpire.admin.extend_user_admin() in the admin.py of an app that is in "
            "INSTALLED_APPS after the one that registers the users; a file beside settings.py "
            "is not imported. Silence this check if the action is not wanted.",
            id="pwexpire.I034",
        )
    ]


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

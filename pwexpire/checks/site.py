"""Where the middleware stands, and what the URLconf, the stores and the databases are."""

from __future__ import annotations

from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from django.apps import apps
from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.middleware import AuthenticationMiddleware
from django.contrib.sessions.middleware import SessionMiddleware
from django.core.checks import Error, Info, Warning
from django.db import router
from django.urls import NoReverseMatch, Resolver404, get_resolver, resolve

from pwexpire.checks.shape import Messages, check, check_urls, is_right, suggest
from pwexpire.conf import conf
from pwexpire.exceptions import ChangeURLNotFound
from pwexpire.exemptions import changes_no_password, is_exempt
from pwexpire.loading import load_path
from pwexpire.middleware import PasswordExpiryMiddleware
from pwexpire.models import PasswordRecord
from pwexpire.pages import (
    find_dead_ends,
    find_logout_url,
    find_page,
    find_reset_url,
    find_url,
    name_views,
    strip_prefix,
)
from pwexpire.sessionstore.registry import get_adapter

WELL_KNOWN = "/.well-known/change-password"


def _find_position(wanted: type) -> int | None:
    """Return the index of this middleware, or of a subclass of it, in MIDDLEWARE."""
    for at, name in enumerate(settings.MIDDLEWARE):
        found = load_path(name)
        if isinstance(found, type) and issubclass(found, wanted):
            return at
    return None


@check
def check_middleware() -> Messages:
    ours = _find_position(PasswordExpiryMiddleware)
    if ours is None:
        yield Error(
            "PasswordExpiryMiddleware is not in MIDDLEWARE, so no session is held.",
            hint='Add "pwexpire.middleware.PasswordExpiryMiddleware" after '
            '"django.contrib.auth.middleware.AuthenticationMiddleware".',
            id="pwexpire.E001",
        )
        return
    for needed in (SessionMiddleware, AuthenticationMiddleware):
        before = _find_position(needed)
        # The session middleware of django-user-sessions is no subclass of Django's.
        if before is None and needed is SessionMiddleware:
            continue
        if before is None or before > ours:
            yield Error(
                f"PasswordExpiryMiddleware does not come after {needed.__name__}.",
                hint=f"Put it after {needed.__name__} in MIDDLEWARE.",
                id="pwexpire.E002",
            )
            return


# Middleware that leaves request.user alone, or that is known to real_user(); by the start of its
# path.
HARMLESS = (
    "django.",
    "pwexpire.",
    "allauth.",
    "axes.",
    "corsheaders.",
    "csp.",
    "debug_toolbar.",
    "django_htmx.",
    "django_otp.",
    "django_prometheus.",
    "hijack.",
    "impersonate.",
    "mozilla_django_oidc.",
    "qsessions.",
    "reversion.",
    "silk.",
    "simple_history.",
    "two_factor.",
    "user_sessions.",
    "waffle.",
    "wagtail.",
    "whitenoise.",
)


@check
def check_real_user() -> Messages:
    """A user whom other middleware puts into the request is not the one who is held."""
    first, ours = _find_position(AuthenticationMiddleware), _find_position(PasswordExpiryMiddleware)
    if first is None or ours is None:
        return
    if load_path(settings.MIDDLEWARE[ours]).real_user is not PasswordExpiryMiddleware.real_user:
        return  # the site has said who sits there
    for name in settings.MIDDLEWARE[first + 1 : ours]:
        if not name.startswith(HARMLESS):
            yield Warning(
                f"{name} stands between AuthenticationMiddleware and PasswordExpiryMiddleware, and "
                "may put another user into request.user: held is the user whom the session names.",
                hint="If it lets somebody act as another user, say who it is in real_user() of a "
                "subclass of PasswordExpiryMiddleware, or else move it behind that or silence this "
                "check.",
                id="pwexpire.W024",
            )


@check_urls
def check_change_url() -> Messages:
    given = conf.change_url
    try:
        match = resolve(strip_prefix(urlsplit(find_url(given)).path))
    except (ChangeURLNotFound, Resolver404):
        yield Error(
            f"PWEXPIRE_CHANGE_URL = {given!r} leads to no page.",
            hint="Include pwexpire.urls in the URLconf, or set PWEXPIRE_CHANGE_URL to the name "
            "of the site's password-change view.",
            id="pwexpire.E003",
        )
        return
    if changes_no_password(match.func):
        yield Error(
            f"PWEXPIRE_CHANGE_URL = {given!r} is a page that changes no password, so that no held "
            "user is released.",
            hint="Set PWEXPIRE_CHANGE_URL to the name of the site's password-change view, or "
            "remove it.",
            id="pwexpire.E036",
        )
    if not given.startswith("/") and not is_exempt(match.func, match):
        yield Error(
            f"The view behind PWEXPIRE_CHANGE_URL = {given!r} is itself held.",
            hint="Use the full name with its namespace, as in reverse(), or add the name of "
            "the view to PWEXPIRE_EXEMPT_VIEWS.",
            id="pwexpire.E004",
        )


@check_urls
def check_way_out() -> Messages:
    """Log-out and reset have to stay reachable for a session that is held."""
    if find_logout_url() is None:
        given = f"PWEXPIRE_LOGOUT_URL = {conf.logout_url!r} leads to no page"
        yield Error(
            f"{given if conf.logout_url else 'No view that logs out was found'}, so that a "
            "held user cannot log out.",
            hint="Include pwexpire.urls in the URLconf, or set PWEXPIRE_LOGOUT_URL to the name "
            "of the site's log-out view.",
            id="pwexpire.E032",
        )
    if hasattr(settings, "PWEXPIRE_RESET_URL") and not _is_page(find_reset_url()):
        yield Error(
            f"PWEXPIRE_RESET_URL = {conf.reset_url!r} leads to no page.",
            hint="Set it to the name of the site's view that mails a reset link, or remove it. If "
            "another server serves the page, silence this check.",
            id="pwexpire.E033",
        )


def _is_page(url: str | None) -> bool:
    """Whether the site itself serves ``url``."""
    with suppress(NoReverseMatch, Resolver404):
        return url is not None and bool(find_page(url))
    return False


@check_urls
def check_dead_ends() -> Messages:
    for name, value, why in find_dead_ends():
        yield Warning(
            f"{name} = {value!r} leads to no page of this site.",
            hint=f"Users are sent there {why}. Set {name} to a page that exists; if another server "
            "serves it, silence this check.",
            id="pwexpire.W030",
        )


@check_urls
def check_well_known() -> Messages:
    try:
        resolve(WELL_KNOWN)
    except Resolver404:
        yield Warning(
            f"{WELL_KNOWN} is not served, so password managers do not find the change page.",
            hint='Add path("", include("pwexpire.urls.well_known")) to the root URLconf.',
            id="pwexpire.W013",
        )


@check
def check_session_engine() -> Messages:
    try:
        adapter = get_adapter()
    except (ImportError, AttributeError, RuntimeError):  # Django says so at the first request
        return
    abilities = {
        "be flagged from outside": adapter.supports_flag,
        "be listed": adapter.supports_enumerate,
        "be deleted from outside": adapter.supports_end,
    }
    lacks = [words for words, able in abilities.items() if not able]
    if lacks:
        yield Info(
            f"Sessions of the engine {adapter.name} cannot {' or '.join(lacks)}; "
            "they are held by the record at their next request.",
            hint="Nothing has to be done. With a database engine the flag is visible in the store.",
            id="pwexpire.I005",
        )


@check_urls
def check_exempt_views() -> Messages:
    if not is_right("EXEMPT_VIEWS") or not conf.exempt_views:
        return
    known = {name for name, view in name_views(get_resolver())}
    for name in sorted(conf.exempt_views - known):
        yield Error(
            f"PWEXPIRE_EXEMPT_VIEWS names {name!r}, which is no view of the URLconf.",
            hint=suggest(name, known, "Give the full name, with its namespace."),
            id="pwexpire.E008",
        )


def _find_user_admins() -> list[Any]:
    admins = [getattr(view, "model_admin", None) for _, view in name_views(get_resolver())]
    return [one for one in admins if one and one.model is get_user_model()]


@check_urls
def check_user_admin() -> Messages:
    """An ``extend_user_admin()`` in a module that nobody imports does nothing, without a word."""
    if not apps.is_installed("django.contrib.admin"):
        return
    # Not at the top: the admin has models, and cannot be imported where it is not installed.
    from pwexpire.admin import PasswordExpiryUserAdminMixin, expire_passwords_action

    found = _find_user_admins()
    if found and not any(
        isinstance(one, PasswordExpiryUserAdminMixin)
        or expire_passwords_action in (one.actions or ())
        for one in found
    ):
        yield Info(
            "The admin of the users offers no action that expires passwords.",
            hint="Call pwexpire.admin.extend_user_admin() in the admin.py of an app that is in "
            "INSTALLED_APPS after the one that registers the users; a file beside settings.py "
            "is not imported. Silence this check if the action is not wanted.",
            id="pwexpire.I034",
        )


@check
def check_databases() -> Messages:
    users = router.db_for_write(get_user_model())
    records = router.db_for_write(PasswordRecord)
    if users != records:
        yield Error(
            f"Users are written to the database {users!r}, the records of pwexpire to {records!r}.",
            hint="Route the app pwexpire to the database of the user model.",
            id="pwexpire.E011",
        )

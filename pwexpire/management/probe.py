"""Proof that enforcement is on: a user who does not exist, in a session that is nowhere stored."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY, get_user_model
from django.contrib.auth.hashers import make_password
from django.contrib.sessions.backends.base import SessionBase
from django.core.handlers.base import BaseHandler
from django.db import connections, models, transaction
from django.http import HttpResponse
from django.test import RequestFactory, override_settings
from django.urls import NoReverseMatch, reverse

from pwexpire.conf import ASKED, SETTINGS, conf
from pwexpire.constants import SESSION_FLAG
from pwexpire.exceptions import ChangeURLNotFound
from pwexpire.exemptions import explain_loop, find_redirect
from pwexpire.feed import feed
from pwexpire.loading import explain_answer
from pwexpire.pages import find_dead_ends, find_logout_url, find_reset_url, find_url, strip_prefix
from pwexpire.signals import expiry_enforced

KEY = "pwexpire-check"
# As many redirects as a chain of interstitials may have.
HOPS_MAX = 5
# The newest users, about whom the site's callables are asked.
ASKED_MAX = 1000
EXEMPT = (
    "pwexpire:password_change_done",
    "pwexpire_well_known",
    "password_reset_done",
    "password_reset_complete",
    "set_language",
    "admin:logout",
    "admin:password_change",
    "admin:password_change_done",
    "admin:jsi18n",
)


class SessionStore(SessionBase):
    """Sessions in memory only; every key opens the same one, of the user of the probe.

    Session middleware of other packages passes arguments of its own.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(KEY)

    def load(self) -> dict[str, Any]:
        user = probe_user()
        return {
            SESSION_KEY: user._meta.pk.value_to_string(user),
            BACKEND_SESSION_KEY: f"{__name__}.Backend",
            HASH_SESSION_KEY: user.get_session_auth_hash(),
            SESSION_FLAG: True,
        }

    def exists(self, session_key: str) -> bool:
        return True

    def create(self) -> None:
        self._session_key = KEY

    def save(self, must_create: bool = False) -> None:
        self._session_key = KEY

    def delete(self, session_key: str | None = None) -> None:
        pass


class Backend:
    def get_user(self, user_id: Any) -> Any:
        return probe_user()


# No hasher knows it: it counts as usable, and no login succeeds with it.
_password = make_password(None).replace("!", "pwexpire$", 1)


def probe_user() -> Any:
    """Return the user of the probe: one object for all of it, as a request has one of a row."""
    return _make_user(get_user_model())


@cache
def _make_user(model: Any) -> Any:
    user = model(pk=_find_unused_key(model._meta.pk), password=_password)
    setattr(user, model.USERNAME_FIELD, KEY)
    return user


def _find_unused_key(field: Any) -> Any:
    while field.remote_field:
        field = field.target_field
    if isinstance(field, models.UUIDField):
        return uuid.UUID(int=0)
    return 0 if isinstance(field, models.IntegerField) else KEY


@contextmanager
def heard() -> Iterator[list[str]]:
    """Collects the paths that the middleware held."""
    paths: list[str] = []

    def listen(sender: Any, request: Any, **kwargs: Any) -> None:
        paths.append(request.path)

    expiry_enforced.connect(listen, weak=False)
    try:
        yield paths
    finally:
        expiry_enforced.disconnect(listen)


@contextmanager
def rolled_back() -> Iterator[None]:
    """Undo what a view that was not held writes, into any database."""
    with ExitStack() as stack:
        # A database without an engine cannot begin a transaction.
        for alias in [alias for alias in connections if connections[alias].vendor != "unknown"]:
            stack.enter_context(transaction.atomic(using=alias))
            # The last one is called first, so before its transaction ends.
            stack.callback(transaction.set_rollback, True, using=alias)
        yield


@contextmanager
def unlogged() -> Iterator[None]:
    """A view may fail over a user who does not exist; whether it is reached is all that counts."""
    logger = logging.getLogger("django.request")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


# Whether a request was held, where it was redirected to inside the site, and the refusal.
Sent = tuple[bool, str, str]


class Probe(NamedTuple):
    """``held``: whether it was; ``wanted``: whether it has to be. ``redirect``: where it led.

    ``refusal``: the sentence that the middleware answered instead of sending the user in a circle.
    """

    request: str
    held: bool
    wanted: bool
    redirect: str = ""
    refusal: str = ""


def probe() -> list[Probe]:
    """Requests of a user who does not exist, through the site's own middleware; writes nothing.

    A redirect is followed inside the site: another interstitial may stand in front of ours.
    """
    # What a middleware left on the user of an earlier probe must not count.
    _make_user.cache_clear()
    hosts = [host for host in settings.ALLOWED_HOSTS if not host.startswith((".", "*"))]
    factory = RequestFactory(SERVER_NAME=hosts[0] if hosts else "localhost")
    probing = override_settings(
        SESSION_ENGINE=__name__,
        AUTHENTICATION_BACKENDS=[f"{__name__}.Backend"],
        ALLOWED_HOSTS=[*settings.ALLOWED_HOSTS, "localhost"],
    )
    with probing, unlogged(), heard() as paths, rolled_back():
        handler = BaseHandler()
        handler.load_middleware()

        def send(method: str, path: str) -> Sent:
            # Over TLS, or SECURE_SSL_REDIRECT would answer in front of the middleware.
            request = factory.generic(method, path, secure=True, headers={"accept": "text/html"})
            request.COOKIES[settings.SESSION_COOKIE_NAME] = KEY
            request._dont_enforce_csrf_checks = True  # type: ignore[attr-defined]
            before = len(paths)
            response = handler.get_response(request)
            there = find_redirect(request, response)
            refusal = ""
            if response.status_code == 503 and isinstance(response, HttpResponse):
                refusal = response.content.decode()
            return len(paths) > before, "" if there is None else there.path_info, refusal

        return [_follow_request(send, *one) for one in _list_requests()]


def _follow_request(
    send: Callable[[str, str], Sent], method: str, path: str, wanted: bool, change: bool
) -> Probe:
    """Only where it matters: what has to be held, and the change page; a log-out leads anywhere."""
    held, there, refusal = send(method, path)
    redirect = "" if held else there
    for _ in range(HOPS_MAX if wanted or change else 0):
        if held or not there:
            break
        held, there, _ = send("GET", there)
    return Probe(f"{method} {path}", held, wanted, redirect, refusal if change else "")


def explain_results(results: list[Probe]) -> str | None:
    """Return one sentence that says what to mend, or ``None``."""
    found = _explain_missed(results) or _explain_shut(results)
    return found or _explain_answers() or _explain_dead_ends()


def _explain_missed(results: list[Probe]) -> str | None:
    missed = [one for one in results if one.wanted and not one.held]
    if not missed:
        return None
    names = ", ".join(one.request for one in missed)
    if not conf.enforce:
        return f"{names} not held: PWEXPIRE_ENFORCE is False."
    turned = [f"{one.request} to {one.redirect}" for one in missed if one.redirect]
    if turned:
        return (
            f"{names} not held: something in front of PasswordExpiryMiddleware redirects "
            f"{', '.join(turned)}. Let PasswordExpiryMiddleware stand in front of it."
        )
    return (
        f"{names} not held: is pwexpire.middleware.PasswordExpiryMiddleware "
        "in MIDDLEWARE, after AuthenticationMiddleware?"
    )


def _explain_shut(results: list[Probe]) -> str | None:
    shut = [one for one in results if one.held and not one.wanted]
    for one in results:
        if one.refusal:
            return one.refusal
        if one.redirect and one in shut:
            return explain_loop(one.request.removeprefix("GET "), one.redirect, None)
    if shut:
        return (
            f"{', '.join(one.request for one in shut)} held, but it has to stay reachable: name "
            "its view in PWEXPIRE_EXEMPT_VIEWS."
        )
    return None


def _explain_answers() -> str | None:
    users = get_user_model()._base_manager.using(feed.using).order_by("-pk")[:ASKED_MAX]
    for user in (probe_user(), *users):
        for name in ASKED:
            wrong = explain_answer(name, SETTINGS[name].read(name), user)
            if wrong is not None:
                who = "a user who is not saved" if user._state.adding else user.get_username()
                return f"PWEXPIRE_{name} {wrong} when it was asked about {who}."
    return None


def _explain_dead_ends() -> str | None:
    silent = "pwexpire.W030" in settings.SILENCED_SYSTEM_CHECKS
    for name, value, why in () if silent else find_dead_ends():
        return f"{name} = {value!r} leads to no page of this site; users are sent there {why}."
    return None


def _list_requests() -> Iterator[tuple[str, str, bool, bool]]:
    """Method, path, whether it has to be held, whether it is the change page."""
    yield "GET", "/", True, False
    yield "POST", "/", True, False
    # Middleware that serves content after a 404 would answer this one.
    yield "GET", f"/{KEY}-no-such-page/", True, False
    with suppress(ChangeURLNotFound):
        yield "GET", strip_prefix(urlsplit(find_url(conf.change_url)).path), False, True
    free = [find_reset_url(), find_logout_url()]
    for name in (*EXEMPT, *sorted(conf.exempt_views)):
        with suppress(NoReverseMatch):
            free.append(reverse(name))
    for path in dict.fromkeys(strip_prefix(urlsplit(url).path) for url in free if url):
        yield "GET", path, False, False

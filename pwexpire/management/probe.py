"""Proof that enforcement is on: a user who does not exist, in a session that is nowhere stored."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY, get_user_model
from django.contrib.auth.hashers import make_password
from django.contrib.sessions.backends.base import SessionBase
from django.core.handlers.base import BaseHandler
from django.db import connections, models, transaction
from django.test import RequestFactory, override_settings
from django.urls import NoReverseMatch, reverse

from pwexpire.conf import conf
from pwexpire.constants import SESSION_FLAG
from pwexpire.exceptions import ChangeURLNotFound
from pwexpire.pages import find_url
from pwexpire.signals import expiry_enforced

KEY = "pwexpire-check"
EXEMPT = (
    "pwexpire:password_change_done",
    "pwexpire_well_known",
    "password_reset",
    "password_reset_done",
    "password_reset_complete",
    "logout",
    "set_language",
    "admin:logout",
    "admin:password_change",
    "admin:password_change_done",
    "admin:jsi18n",
)


class SessionStore(SessionBase):
    """In memory only; every key opens the same session, of the user of the probe."""

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


_password = make_password(None).replace("!", "pwexpire$", 1)


def probe_user() -> Any:
    model = get_user_model()
    user = model(pk=_unused_key(model._meta.pk), password=_password)
    setattr(user, model.USERNAME_FIELD, KEY)
    return user


def _unused_key(field: Any) -> Any:
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
    """Whatever a view that was not held writes, into whichever database."""
    aliases = [alias for alias in connections if connections[alias].vendor != "unknown"]
    with ExitStack() as stack:
        for alias in aliases:
            stack.enter_context(transaction.atomic(using=alias))
        try:
            yield
        finally:
            for alias in aliases:
                transaction.set_rollback(True, using=alias)


@contextmanager
def unlogged() -> Iterator[None]:
    """A view may fail over a user who does not exist; whether it is reached is all that counts."""
    logger = logging.getLogger("django.request")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def probe() -> list[tuple[str, bool, bool]]:
    """(request, was it held, should it be), through the site's own middleware; writes nothing."""
    hosts = [host for host in settings.ALLOWED_HOSTS if not host.startswith((".", "*"))]
    factory = RequestFactory(SERVER_NAME=hosts[0] if hosts else "localhost")
    results = []
    probing = override_settings(
        SESSION_ENGINE=__name__,
        AUTHENTICATION_BACKENDS=[f"{__name__}.Backend"],
        ALLOWED_HOSTS=[*settings.ALLOWED_HOSTS, "localhost"],
    )
    with probing, unlogged(), heard() as paths, rolled_back():
        handler = BaseHandler()
        handler.load_middleware()
        for method, path, wanted in _requests():
            request = factory.generic(method, path, secure=True, headers={"accept": "text/html"})
            request.COOKIES[settings.SESSION_COOKIE_NAME] = KEY
            request._dont_enforce_csrf_checks = True  # type: ignore[attr-defined]
            before = len(paths)
            handler.get_response(request)
            results.append((f"{method} {path}", len(paths) > before, wanted))
    return results


def _requests() -> Iterator[tuple[str, str, bool]]:
    yield "GET", "/", True
    yield "POST", "/", True
    yield "GET", f"/{KEY}-no-such-page/", True
    free = []
    with suppress(ChangeURLNotFound):
        free.append(urlsplit(find_url(conf.change_url)).path)
    for name in (*EXEMPT, conf.reset_url, *sorted(conf.exempt_views)):
        with suppress(NoReverseMatch):
            free.append(reverse(name))
    for path in dict.fromkeys(free):
        yield "GET", path, False

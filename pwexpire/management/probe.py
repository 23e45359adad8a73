"""Proof that enforcement is on: a user who does not exist, in a session that is nowhere stored."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY, get_user_model
from django.contrib.auth.hashers import make_password
from django.contrib.sessions.backends.base import SessionBase
from django.core.handlers.base import BaseHandler
from django.db import models, transaction
from django.test import RequestFactory, override_settings
from django.urls import NoReverseMatch, reverse

from pwexpire.conf import conf
from pwexpire.constants import SESSION_FLAG
from pwexpire.exceptions import ChangeURLNotFound
from pwexpire.feed import feed
from pwexpire.responses import find_url
from pwexpire.signals import expiry_enforced

KEY = "pwexpire-check"
EXEMPT = ("pwexpire:password_change_done", "password_reset", "logout", "admin:logout")


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
    with probing, heard() as paths, transaction.atomic(using=feed.using):
        handler = BaseHandler()
        handler.load_middleware()
        for method, path, wanted in _requests():
            request = factory.generic(method, path, secure=True, headers={"accept": "text/html"})
            request.COOKIES[settings.SESSION_COOKIE_NAME] = KEY
            request._dont_enforce_csrf_checks = True  # type: ignore[attr-defined]
            before = len(paths)
            handler.get_response(request)
            results.append((f"{method} {path}", len(paths) > before, wanted))
        transaction.set_rollback(True, using=feed.using)
    return results


def _requests() -> Iterator[tuple[str, str, bool]]:
    yield "GET", "/", True
    yield "POST", "/", True
    yield "GET", f"/{KEY}-no-such-page/", True
    try:
        yield "GET", find_url(conf.change_url), False
    except ChangeURLNotFound:
        yield "GET", conf.change_url, False
    for name in EXEMPT:
        try:
            yield "GET", reverse(name), False
        except NoReverseMatch:
            continue

from __future__ import annotations

import functools
from contextlib import contextmanager

import pytest
from asgiref.sync import async_to_sync
from django.core.cache import caches
from django.db import connection
from django.test import AsyncClient, Client
from django.test.utils import CaptureQueriesContext

from pwexpire import testing
from tests.factories import AdminFactory, UserFactory

ENGINES = ["db", "cached_db", "cache", "file", "signed_cookies"]
METHODS = ["get", "head", "post", "put", "patch", "delete", "options", "generic"]


class AsyncBrowser:
    """An ``AsyncClient`` with the methods of a ``Client``."""

    def __init__(self) -> None:
        self.client = AsyncClient()
        for name in METHODS:
            setattr(self, name, functools.partial(self._send, name))

    def _send(self, name, *args, **kwargs):
        async def send():
            return await getattr(self.client, name)(*args, **kwargs)

        return async_to_sync(send)()

    @property
    def cookies(self):
        return self.client.cookies


class Server:
    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self):
        """A new browser."""
        return Client() if self.name == "wsgi" else AsyncBrowser()


@pytest.fixture(autouse=True)
def fresh_view():
    testing.reset()
    yield
    testing.reset()


@pytest.fixture(params=ENGINES)
def engine(request, settings, tmp_path):
    settings.SESSION_ENGINE = f"django.contrib.sessions.backends.{request.param}"
    settings.SESSION_FILE_PATH = str(tmp_path)
    from django.contrib.sessions.backends.file import SessionStore

    SessionStore._storage_path = str(tmp_path)
    yield settings.SESSION_ENGINE
    del SessionStore._storage_path
    caches["default"].clear()


@pytest.fixture(params=["wsgi", "asgi"])
def server(request):
    return Server(request.param)


@pytest.fixture
def users(db):
    return UserFactory.create_batch


@pytest.fixture
def alice(db):
    return UserFactory(username="alice")


@pytest.fixture
def bob(db):
    return UserFactory(username="bob")


@pytest.fixture
def eve(db):
    return UserFactory(username="eve")


@pytest.fixture
def root(db):
    return AdminFactory(username="root")


@pytest.fixture
def count_queries():
    @contextmanager
    def count():
        with CaptureQueriesContext(connection) as captured:
            yield captured

    return count

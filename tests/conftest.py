from __future__ import annotations

import functools
import os
from contextlib import contextmanager
from unittest import mock

import pytest
from asgiref.sync import async_to_sync
from django.core.cache import caches
from django.db import connection, connections, transaction
from django.test import AsyncClient, Client, TransactionTestCase
from django.test.utils import CaptureQueriesContext

from pwexpire import testing
from tests import servers
from tests.factories import AdminFactory, UserFactory

ENGINES = ["db", "cached_db", "cache", "file", "signed_cookies"]
METHODS = ["get", "head", "post", "put", "patch", "delete", "options", "generic"]


REQUIRED = os.environ.get("PWEXPIRE_TEST_REQUIRE") == "1"


def pytest_configure(config):
    config.addinivalue_line("markers", "needs(*servers): skipped where one of them does not answer")
    if "memcached" in servers.chosen():
        # Its client leaves the sockets of threads that ended to the garbage collector.
        for ignored in (
            "ignore:unclosed <socket:ResourceWarning",
            "ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning",
        ):
            config.addinivalue_line("filterwarnings", ignored)


def pytest_sessionstart(session):
    for name in servers.chosen():
        if not servers.answers(name):
            said = f"{name}, or its package, is not at {servers.address(name)}: tests are skipped."
            pytest.exit(said, returncode=int(REQUIRED))


def pytest_runtest_setup(item):
    for mark in item.iter_markers("needs"):
        for name in mark.args:
            if not servers.answers(name):
                said = f"{name}, or its package, is not at {servers.address(name)}"
                (pytest.fail if REQUIRED else pytest.skip)(said)


# Made by migrate, changed by no test.
KEPT = {"django_migrations", "django_content_type", "auth_permission", "django_site"}


@functools.cache
def tables(alias):
    names = connections[alias].introspection.django_table_names(only_existing=True)
    return [connections[alias].ops.quote_name(name) for name in names if name not in KEPT]


@pytest.fixture(autouse=True, scope="session")
def quick_flush():
    """Empty the tables instead of truncating them and running all that follows a migration."""

    def empty(self):
        for alias in self._databases_names(include_mirrors=False):
            connection = connections[alias]
            with connection.constraint_checks_disabled(), transaction.atomic(using=alias):
                with connection.cursor() as cursor:
                    wipes = [f"DELETE FROM {name}" for name in tables(alias)]
                    together = connection.vendor == "postgresql"
                    for statement in ["; ".join(wipes)] if together else wipes:
                        cursor.execute(statement)

    with mock.patch.object(TransactionTestCase, "_fixture_teardown", empty):
        yield


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

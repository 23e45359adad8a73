"""What a logged-in user who has nothing to change pays for the middleware: calls, and no more."""

from __future__ import annotations

import asyncio
import itertools
import math
import sys
from copy import copy
from datetime import timedelta
from unittest import mock

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth import SESSION_KEY
from django.core.handlers.asgi import ASGIHandler, ASGIRequest
from django.core.handlers.wsgi import WSGIHandler
from django.db import connections
from django.http import HttpResponse
from django.test import AsyncRequestFactory, RequestFactory, override_settings
from django.urls import path

from pwexpire import decision, services
from pwexpire.constants import SESSION_DEMAND, SESSION_FLAG, SESSION_STAMP
from pwexpire.feed import View, feed
from pwexpire.middleware import PasswordExpiryMiddleware, enforcement
from pwexpire.policy import Policy
from pwexpire.session_state import HIJACKERS, RequestState, read_session_state

OURS = "pwexpire.middleware.PasswordExpiryMiddleware"
DJANGOS = "django.contrib.auth.middleware.LoginRequiredMiddleware"
BARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]


def home(request):
    return HttpResponse(request.user.username)


async def ahome(request):
    return HttpResponse((await request.auser()).username)


urlpatterns = [path("", home), path("async/", ahome)]


class Calls:
    """Function calls of a thread while it is watched."""

    def __init__(self):
        self.number = 0

    def see(self, frame, event, argument):
        self.number += event in ("call", "c_call")


TURNS = 8  # the fewest calls of several: in one of them the counter may be polled


def count_wsgi(client):
    handler, key = WSGIHandler(), client.cookies["sessionid"].value

    def ask():
        environ = RequestFactory()._base_environ(PATH_INFO="/", HTTP_COOKIE=f"sessionid={key}")
        calls = Calls()
        sys.setprofile(calls.see)
        try:
            response = handler(environ, lambda *args: None)
        finally:
            sys.setprofile(None)
        assert response.content == b"alice"
        return calls.number

    return min(ask() for _ in range(TURNS))


def count_asgi(client):
    """With those of the thread in which synchronous code runs."""
    handler, key = ASGIHandler(), client.cookies["sessionid"].value
    scope = AsyncRequestFactory()._base_scope(path="/async/")
    scope["headers"] = [(b"cookie", f"sessionid={key}".encode())]
    watch_thread = sync_to_async(sys.setprofile)

    async def ask():
        calls = Calls()
        await watch_thread(calls.see)
        sys.setprofile(calls.see)
        try:
            response = await handler.get_response_async(ASGIRequest(scope, None))
        finally:
            sys.setprofile(None)
            await watch_thread(None)
        assert response.content == b"alice"
        return calls.number

    async def ask_often():
        try:
            return min([await ask() for _ in range(TURNS)])
        finally:
            await sync_to_async(connections.close_all)()

    return asyncio.run(ask_often())


def count_all(count, client):
    found = {}
    # Twice, for the first run of all leaves things behind that the others find.
    for extra in 2 * (None, OURS, DJANGOS):
        with override_settings(
            MIDDLEWARE=[*BARE, extra] if extra else BARE, ROOT_URLCONF="tests.test_idle"
        ):
            found[extra] = min(count(client), found.get(extra, math.inf))
    return found


@pytest.fixture
def quiet(settings):
    settings.PWEXPIRE_POLL_SECONDS = 3600


@pytest.mark.parametrize("policy", [None, Policy(max_age=timedelta(days=90))])
@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("count", [count_wsgi, count_asgi])
def test_an_idle_request_costs_at_most_twice_as_many_calls_as_djangos_own(
    quiet, settings, transactional_db, alice, bob, client, count, older, policy
):
    """``older``: it began before the last demand, which is on somebody else."""
    settings.PWEXPIRE_POLICY = policy
    client.force_login(alice)
    if older:
        services.expire_passwords(bob)
    found = count_all(count, client)
    added, least = (found[extra] - found[None] for extra in (OURS, DJANGOS))
    assert added <= 2 * least, found
    assert found[OURS] <= 1.013 * found[None], found


# What a session may say, beside what ``login()`` puts into it: the key, and values of it.
SAID = {
    "n": (-1, 40, 50, 60),
    "b": (40, 50, 60),
    "p": (None, "policy", "other"),
    "a": (None, 10.0, 1e12),
}
VIEWS = [
    View(counter=counter, floor=floor, users=users, policy_key=policy_key, fresh_until=fresh)
    for counter, floor, users, policy_key, fresh in itertools.product(
        (0, 50), (0, 45), ({}, {"1": 45}), (None, "policy"), (0.0, float("inf"))
    )
]
MORE = [
    {},
    {SESSION_FLAG: True},
    {SESSION_FLAG: True, SESSION_DEMAND: 45},
    {SESSION_DEMAND: 45},
    {HIJACKERS: ["2"]},
    {"loginas_from_user": "2:signed"},
    {SESSION_KEY: None},
    {SESSION_KEY: 1},
    {SESSION_STAMP: "odd"},
    {SESSION_STAMP: {}},
    {SESSION_STAMP: {"n": "50", "b": 50, "a": None, "p": None}},
    {SESSION_STAMP: {"n": 50, "b": 50, "a": None, "p": None, "g": True}},
]


def sessions():
    from django.contrib.sessions.backends.signed_cookies import SessionStore

    login = {SESSION_KEY: "1", "_auth_user_hash": "hash", "_auth_user_backend": "backend"}
    stamps = [dict(zip(SAID, values, strict=True)) for values in itertools.product(*SAID.values())]
    for said in [*({SESSION_STAMP: stamp} for stamp in stamps), *MORE]:
        session = SessionStore("k" * 32)
        session._session_cache = {
            **login,
            SESSION_STAMP: {"n": 50, "b": 50, "a": None, "p": None},
            **said,
        }
        yield session


def test_a_session_passes_at_once_only_where_the_decision_lets_it_pass(rf, alice):
    """The shortest way says the same as the long one, or nothing."""
    middleware, passed = PasswordExpiryMiddleware(lambda request: None), 0
    for session, view in itertools.product(sessions(), VIEWS):
        request, request_state = rf.get("/"), RequestState()
        request.session, request.user = session, alice
        with (
            mock.patch.object(feed, "_views", {enforcement.USUAL: view}),
            mock.patch.object(PasswordExpiryMiddleware, "_is_clear", return_value=False),
        ):
            if not middleware._passes(request, request_state):
                continue
        passed += 1
        state = read_session_state(session)
        for name in ("user_id", "auth_hash", "backend", "stamp", "born", "ages", "policy_key"):
            assert getattr(request_state.state, name) == getattr(state, name)
        assert not (state.flagged or state.flag_number or state.grace)
        assert view.fresh_until and middleware.real_user(request) is None
        assert not decision.is_suspect(state, view, enforcement.time.time())
    assert passed > 50


@pytest.mark.parametrize("name", ["real_user", "get_scope"])
def test_a_hook_that_the_site_overrides_is_called_at_every_request(alice, client, settings, name):
    asked = []

    def hook(self, request):
        asked.append(name)
        return getattr(super(type(self), self), name)(request)

    mine = type("Mine", (PasswordExpiryMiddleware,), {name: hook})
    with mock.patch("tests.test_idle.Mine", mine, create=True):
        settings.MIDDLEWARE = [*BARE, "tests.test_idle.Mine"]
        client.force_login(alice)
        for _ in range(3):
            asked.clear()
            assert client.get("/").status_code == 200
            assert asked


@pytest.mark.parametrize("stands", ["twice", "with a request of its own behind it"])
def test_a_middleware_that_is_not_alone(transactional_db, alice, client, settings, stands):
    """The second one goes on with what the first one knows; one that was lost is decided anew."""

    def another_request(get_response):
        def middleware(request):
            other = copy(request)
            del other._pwexpire
            return get_response(other)

        return middleware

    with mock.patch("tests.test_idle.another", another_request, create=True):
        other = OURS if stands == "twice" else "tests.test_idle.another"
        settings.MIDDLEWARE = [*BARE, OURS, other]
        client.force_login(alice)
        assert client.get("/").status_code == 200
        services.expire_passwords(alice)
        assert client.get("/").status_code == 302

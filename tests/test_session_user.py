"""The user of a session is whom the session names, whoever ``request.user`` is at that moment."""

from __future__ import annotations

from unittest import mock

import pytest
from django import urls
from django.contrib.auth import SESSION_KEY, get_user, get_user_model
from django.contrib.auth.middleware import get_user as get_cached_user
from django.contrib.auth.signals import user_logged_in, user_logged_out
from django.db import OperationalError
from django.http import HttpResponse
from django.test import Client, RequestFactory
from django.utils.deprecation import MiddlewareMixin

from pwexpire.constants import SESSION_STAMP
from pwexpire.feed import feed
from pwexpire.models import SessionEntry
from pwexpire.services import cancel_expiry, expire_everyone, expire_passwords
from tests.support import OLD, is_held, open_session, session_of, store_session
from tests.urls import plain

pytestmark = pytest.mark.django_db(transaction=True)
OURS = "pwexpire.middleware.PasswordExpiryMiddleware"


class SetsUser(MiddlewareMixin):
    """Puts somebody else into ``request.user``, as a token or an impersonation does."""

    def process_request(self, request):
        name = request.headers.get("x-user")
        if name:
            user = get_user_model().objects.get(username=name)
            request.user = user

            async def auser():
                return user

            request.auser = auser


class KeepsUser(MiddlewareMixin):
    """Asks everybody who could know for the user of the request, behind ours."""

    seen: list[str] = []

    def process_request(self, request):
        answers = (request.user, get_user(request), get_cached_user(request))
        self.seen[:] = [user.get_username() for user in answers]


@pytest.fixture
def before(settings):
    at = settings.MIDDLEWARE.index(OURS)
    middleware = list(settings.MIDDLEWARE)
    middleware.insert(at, "tests.test_session_user.SetsUser")
    settings.MIDDLEWARE = middleware


@pytest.fixture
def behind(settings):
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, "tests.test_session_user.SetsUser"]


def logged_in(server, user):
    browser = server()
    assert browser.post(
        "/accounts/login/", {"username": user.username, "password": OLD}
    ).status_code in (200, 302)
    assert session_of(browser)[SESSION_KEY] == str(user.pk)
    return browser


@pytest.mark.parametrize("path", ["/plain/", "/"])
def test_a_user_put_there_by_other_middleware_decides_nothing(
    engine, server, before, alice, bob, path
):
    browser = logged_in(server, alice)
    expire_passwords(alice)
    headers = {"x-user": "bob"}
    assert browser.get(path, headers=headers).status_code == 302
    assert is_held(browser)
    # Neither the process nor the stored session remembers that anything was right.
    assert browser.get(path, headers=headers).status_code == 302
    assert is_held(browser)


def test_an_expired_user_put_there_holds_nobody_else(engine, server, before, alice, bob):
    browser = logged_in(server, alice)
    expire_passwords(bob)
    assert browser.get("/plain/", headers={"x-user": "bob"}).status_code == 200
    assert not is_held(browser)
    assert "password_expired" not in session_of(browser)


def test_a_stale_flag_is_asked_of_the_sessions_own_user(engine, server, before, alice, bob):
    browser = logged_in(server, alice)
    expire_passwords(get_user_model().objects.all())
    assert is_held(browser)
    cancel_expiry(alice)
    assert browser.get("/plain/", headers={"x-user": "bob"}).status_code == 200
    assert not is_held(browser)


def test_a_user_put_there_behind_changes_nothing(engine, server, behind, alice, bob):
    browser = logged_in(server, alice)
    expire_passwords(alice)
    assert browser.get("/plain/", headers={"x-user": "bob"}).status_code == 302
    assert is_held(browser)


def test_a_new_session_key_is_indexed_for_the_sessions_own_user(
    settings, server, behind, alice, bob
):
    browser = logged_in(server, alice)
    assert browser.get("/cycle/", headers={"x-user": "bob"}).status_code == 200
    entries = SessionEntry.objects.values_list("user_id", "session_key")
    assert list(entries) == [(alice.pk, open_session(browser).session_key)]


def test_nobody_put_there_leaves_the_session_with_its_user(engine, server, settings, alice):

    browser = logged_in(server, alice)
    expire_passwords(alice)
    settings.MIDDLEWARE = [
        *settings.MIDDLEWARE[:-1],
        "tests.test_session_user.TakesUserAway",
        settings.MIDDLEWARE[-1],
    ]
    assert browser.get("/plain/").status_code == 302


class TakesUserAway(MiddlewareMixin):
    def process_request(self, request):
        from django.contrib.auth.models import AnonymousUser

        request.user = AnonymousUser()


# Signals.


def test_a_login_without_a_session_makes_none(engine, settings, alice):
    settings.AXES_ENABLED = False  # it makes one
    settings.PWEXPIRE_SESSION_INDEX = True
    request = RequestFactory().post("/token/")
    from importlib import import_module

    request.session = import_module(settings.SESSION_ENGINE).SessionStore()
    user_logged_in.send(sender=type(alice), request=request, user=alice)
    assert request.session.session_key is None
    assert not request.session.modified
    assert not SessionEntry.objects.exists()


def test_a_login_by_token_stamps_nobodys_session(engine, settings, alice, bob):
    browser = Client()
    browser.force_login(alice)
    expire_passwords(bob)
    request = RequestFactory().post("/token/")
    request.session = open_session(browser)
    before = dict(request.session.items())
    entries = list(SessionEntry.objects.values_list("user_id", "session_key"))
    user_logged_in.send(sender=type(bob), request=request, user=bob)
    assert dict(request.session.items()) == before
    assert not request.session.modified
    assert list(SessionEntry.objects.values_list("user_id", "session_key")) == entries


def test_a_login_by_token_uses_no_grace_login(settings, alice):
    settings.PWEXPIRE_POLICY = {"max_age": 30, "grace_logins": 2}
    request = RequestFactory().post("/token/")
    request.session = open_session(Client())
    with mock.patch("pwexpire.receivers.take_grace") as taken:
        user_logged_in.send(sender=type(alice), request=request, user=alice)
    taken.assert_not_called()


@pytest.mark.parametrize("given", [{}, {"_auth_user_id": "1"}, None])
def test_a_session_that_is_none_raises_nothing(settings, alice, given):
    settings.AXES_ENABLED = False  # it asks for the key of the session
    request = RequestFactory().post("/token/")
    if given is not None:
        request.session = given
    before = dict(given or {})
    user_logged_in.send(sender=type(alice), request=request, user=alice)
    user_logged_out.send(sender=type(alice), request=request, user=alice)
    assert (given or {}) == before


def test_a_logout_by_token_leaves_the_index_of_others(settings, alice, bob):
    browser = Client()
    browser.force_login(alice)
    request = RequestFactory().post("/token/")
    request.session = open_session(browser)
    user_logged_out.send(sender=type(bob), request=request, user=bob)
    assert SessionEntry.objects.filter(user_id=alice.pk).count() == 1


# After an end.


def test_after_an_end_nothing_of_the_request_serves_the_user(engine, server, settings, alice):
    settings.MIDDLEWARE = [
        *settings.MIDDLEWARE[:-1],
        "tests.test_session_user.KeepsUser",
        OURS,
        "tests.test_session_user.KeepsUser",
    ]
    browser = logged_in(server, alice)
    expire_everyone(sessions="end")
    cancel_expiry(alice)
    browser.get("/plain/")
    assert KeepsUser.seen == ["", "", ""]


def test_after_an_end_the_asynchronous_user_is_gone_too(engine, alice):
    from asgiref.sync import async_to_sync
    from django.contrib.auth.middleware import auser

    from pwexpire.middleware import PasswordExpiryMiddleware

    request = RequestFactory().get("/")
    request.session = open_session(Client())
    request._acached_user = request._cached_user = request.user = alice
    PasswordExpiryMiddleware(lambda request: HttpResponse())._make_anonymous(request)

    async def ask():
        return await auser(request), await request.auser()

    assert not any(user.is_authenticated for user in async_to_sync(ask)())


# A key that no user can have.


@pytest.mark.parametrize(
    "named", ["8e3a4c35-2b6e-4d75-9d51-4b0a6a1f8f3e", "", "None", [1], {"a": 1}]
)
def test_a_session_that_names_no_possible_user_fails_nowhere(engine, server, alice, named):
    browser = logged_in(server, alice)
    store_session(browser, **{SESSION_KEY: named})
    expire_everyone()
    for path in ("/plain/", "/"):
        assert browser.get(path).status_code == 200


# A demand that is known holds.


def broken(*args, **kwargs):
    raise OperationalError("no such column: pwexpire_batch.new")


def test_a_known_demand_holds_though_the_record_cannot_be_asked(engine, server, alice, bob):
    browser, other = logged_in(server, alice), logged_in(server, bob)
    expire_passwords(alice)
    with mock.patch("pwexpire.middleware.enforcement.read_password_state", broken):
        assert is_held(browser)
        assert not is_held(other)


def test_a_login_that_could_not_be_judged_is_held_by_a_known_demand(engine, server, alice):
    expire_passwords(alice)
    with (
        mock.patch("pwexpire.middleware.enforcement.read_password_state", broken),
        mock.patch("pwexpire.receivers.read_counter_and_state", broken),
    ):
        assert is_held(logged_in(server, alice))


def test_a_known_demand_holds_though_the_feed_stopped(engine, server, alice):
    browser = logged_in(server, alice)
    expire_passwords(alice)
    feed.view(feed.scope())
    with mock.patch.object(type(feed), "_read", broken):
        assert browser.get("/plain/").status_code == 302


def test_a_known_warning_holds_nobody(engine, server, alice):
    browser = logged_in(server, alice)
    expire_passwords(alice, require="warn")
    with mock.patch("pwexpire.middleware.enforcement.read_password_state", broken):
        assert not is_held(browser)


@pytest.mark.parametrize(
    "given",
    [
        {"PWEXPIRE_ENFORCE": "report"},
        {"PWEXPIRE_EXEMPT_BACKENDS": ["django.contrib.auth.backends.ModelBackend"]},
    ],
)
def test_what_never_holds_does_not_when_the_record_cannot_be_asked(server, settings, alice, given):
    browser = logged_in(server, alice)
    for name, value in given.items():
        setattr(settings, name, value)
    expire_passwords(alice)
    with mock.patch("pwexpire.middleware.enforcement.read_password_state", broken):
        assert not is_held(browser)


class TakesSession(MiddlewareMixin):
    """Takes the session away by a header: before ours or behind it, or when the view has run."""

    def take(self, request, moment):
        if request.headers.get("x-moment") != moment:
            return
        how = request.headers["x-how"]
        if how == "del":
            del request.session
        else:
            request.session = {} if how == "empty" else None

    def process_request(self, request):
        if request.headers.get("x-moment"):
            user = request.user
            bool(user.is_authenticated)
        self.take(request, "before")

    def process_response(self, request, response):
        self.take(request, "after")
        return response


class OtherUrls(MiddlewareMixin):
    def process_request(self, request):
        if request.path == "/exempt/":
            request.urlconf = (
                urls.path("exempt/", plain),
                urls.path("", urls.include("tests.urls")),
            )


class ServesRest(TakesSession):
    """Serves what no view does, and without a session."""

    def process_response(self, request, response):
        super().process_response(request, response)
        return HttpResponse("served") if response.status_code == 404 else response


@pytest.mark.parametrize("how", ["del", "empty", "none"])
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("place", ["in front", "behind"])
def test_a_session_that_is_taken_away_fails_nothing(server, settings, alice, how, moment, place):
    at = settings.MIDDLEWARE.index(OURS) + (place == "behind")
    middleware = [*settings.MIDDLEWARE]
    middleware.insert(at, f"{__name__}.ServesRest")
    settings.MIDDLEWARE = middleware
    browser = logged_in(server, alice)
    headers = {"x-moment": moment, "x-how": how}
    for path in ("/plain/", "/exempt/", "/"):
        assert browser.get(path, headers=headers).status_code == 200
    # As for whoever is there by a token: the page is for the user of a session.
    expected = 403 if moment == "before" else 200
    assert browser.get("/account/password-change/", headers=headers).status_code == expected
    assert server().get("/plain/", headers=headers).status_code == 200
    expire_passwords(alice)
    assert is_held(browser)
    if place == "behind":
        for path in ("/", "/no-such-page/"):
            assert browser.get(path, headers=headers).status_code == 302
    assert browser.get("/exempt/", headers=headers).status_code == 200


def test_who_is_held_gets_a_session_back_that_was_taken_away(server, settings, alice):
    """Where the URL was exempt, and the view behind it is not."""
    settings.MIDDLEWARE = [
        *settings.MIDDLEWARE,
        "tests.test_session_user.OtherUrls",
        f"{__name__}.TakesSession",
    ]
    browser = logged_in(server, alice)
    expire_passwords(alice)
    headers = {"x-moment": "before", "x-how": "del"}
    assert browser.get("/exempt/", headers=headers).status_code == 302


@pytest.mark.parametrize("stamp", [{"n": None}, {"n": "x"}, {"n": 0, "b": "x"}, {"a": "x"}, "x"])
def test_an_odd_stamp_is_none(engine, server, alice, stamp):
    browser = logged_in(server, alice)
    store_session(browser, **{SESSION_STAMP: stamp})
    assert not is_held(browser)
    expire_passwords(alice)
    store_session(browser, **{SESSION_STAMP: stamp})
    assert is_held(browser)

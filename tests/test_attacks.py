"""Ways past a forced password change, each tried; the names say which."""

from __future__ import annotations

import threading
from importlib import import_module
from unittest import mock

import pytest
from django.conf import settings as django_settings
from django.contrib.auth import get_user_model
from django.contrib.flatpages.models import FlatPage
from django.contrib.redirects.models import Redirect
from django.contrib.sites.models import Site
from django.test import Client
from django.utils import timezone

from pwexpire import services
from pwexpire.models import PasswordRecord
from pwexpire.session_state import request_state_of
from tests.support import (
    NEW,
    OLD,
    change_password,
    is_held,
    open_session,
    session_of,
    store_session,
)
from tests.testapp.middleware import Behind

pytestmark = pytest.mark.django_db(transaction=True)


def login(server, user, password=OLD):
    browser = server()
    data = {"username": user.username, "password": password}
    assert browser.post("/accounts/login/", data).status_code == 302
    return browser


@pytest.fixture
def held(engine, server, alice):
    browser = login(server, alice)
    services.expire_passwords(alice)
    return browser


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "BREW"])
def test_row_1_another_method(held, method):
    assert held.generic(method, "/cart/", b"item=pen").status_code in (302, 303)
    assert "cart" not in session_of(held)


@pytest.mark.parametrize(
    "headers",
    [
        {"x-requested-with": "XMLHttpRequest"},
        {"accept": "application/json"},
        {"accept": "application/vnd.api+json"},
        {"sec-fetch-mode": "cors"},
    ],
)
def test_row_2_asked_by_a_script(held, headers):
    response = held.get("/json/", headers=headers)
    assert response.status_code == 403
    assert response["Content-Type"] == "application/problem+json"
    problem = response.json()
    assert problem["code"] == "password_expired" and problem["status"] == 403
    assert problem["change_url"] == "/account/password-change/"
    assert held.get("/json.json").status_code == 302


def test_row_5_another_url_reload_new_tab(held):
    for path in ("/", "/", "/cart/", "/json/", "/"):
        assert is_held(held, path)


@pytest.mark.parametrize(
    "path",
    [
        "/static-x/",
        "/mediaX/",
        "/accounts/logoutx/",
        "/account/password-changex/",
        "/account/password-change/x",
        "/x/account/password-change/",
        "/elsewhere/logout/",
    ],
)
def test_row_6_looks_like_an_exempt_path(held, path):
    assert is_held(held, path)


@pytest.mark.parametrize(
    "path",
    [
        "//account/password-change/",
        "/%2e%2e/account/password-change/",
        "/ACCOUNT/password-change/",
        "/account/password-change/;x",
        "/account/password-change",
        "/cart",
        "/de/",
    ],
)
def test_row_7_spelled_otherwise(held, path):
    response = held.get(path)
    assert response.status_code in (301, 302)
    assert "password-change/" in response["Location"]


def test_row_8_content_after_a_404(engine, server, alice, settings):
    settings.MIDDLEWARE = [
        *settings.MIDDLEWARE,
        "django.contrib.flatpages.middleware.FlatpageFallbackMiddleware",
    ]
    Site.objects.get_or_create(pk=1, defaults={"domain": "example.com", "name": "example"})
    page = FlatPage.objects.create(url="/secret/", title="secret", content="secret")
    page.sites.add(1)
    browser = login(server, alice)
    assert b"secret" in browser.get("/secret/").content
    services.expire_passwords(alice)
    assert is_held(browser, "/secret/")


def test_row_9_the_view_does_not_run(held):
    with mock.patch("tests.urls.ran") as ran:
        held.post("/cart/", {"item": "pen"})
    assert not ran.called


def test_row_10_logout_login_second_browser(held, server, alice):
    held.post("/accounts/logout/")
    assert is_held(login(server, alice))
    assert is_held(login(server, alice))


def test_row_11_a_request_in_flight_saves_its_older_copy(engine, server, alice):
    browser = login(server, alice)
    copy = open_session(browser)
    copy.load() if "signed" not in engine else None
    copy["cart"] = ["pen"]
    services.expire_passwords(alice)
    copy.save()
    browser.cookies["sessionid"] = copy.session_key
    assert is_held(browser)
    assert session_of(browser)["cart"] == ["pen"]


def test_row_12_the_row_is_flagged_and_the_cache_is_not(engine, server, alice):
    browser = login(server, alice)
    browser.get("/")
    services.expire_passwords(alice)
    if "db" in engine:
        assert session_of(browser)["password_expired"] is True
    assert is_held(browser)


def test_row_13_replay_of_an_older_cookie(engine, server, alice):
    browser = login(server, alice)
    old = browser.cookies["sessionid"].value
    services.expire_passwords(alice)
    change_password(browser)
    thief = server()
    thief.cookies["sessionid"] = old
    assert thief.get("/").content == b"anonymous"


def test_row_13_replay_of_a_flagged_cookie_holds_nobody_again(engine, server, alice):
    services.expire_passwords(alice)
    browser = login(server, alice)
    data = session_of(browser)
    change_password(browser)
    store_session(
        browser,
        password_expired=True,
        _password_expired_demand=data["_password_expired_demand"],
    )
    assert not is_held(browser)


def test_row_14_the_same_password_again(held):
    page = change_password(held, new=OLD)
    assert page.status_code == 200
    assert page.context["form"].has_error("new_password2", "password_unchanged")
    assert is_held(held)


def test_row_15_change_rules_hold_on_every_path(held, settings):
    settings.AUTH_PASSWORD_VALIDATORS = [
        {"NAME": "django.contrib.auth.password_validation.NumericPasswordValidator"}
    ]
    assert change_password(held, new="1234567890").status_code == 200
    assert is_held(held)


def test_row_16_a_hasher_upgrade_with_a_session_refresh_is_no_change(held, alice, settings):
    settings.PASSWORD_HASHERS = settings.PASSWORD_HASHERS[::-1]
    assert held.post("/exempt/sudo/", {"password": OLD}).status_code == 200
    alice.refresh_from_db()
    assert alice.password.startswith("pbkdf2")
    assert is_held(held)


def test_row_17_a_reset_link_is_used_twice(engine, server, alice):
    from django.contrib.auth.tokens import default_token_generator
    from django.utils.encoding import force_bytes
    from django.utils.http import urlsafe_base64_encode

    services.expire_passwords(alice)
    uid = urlsafe_base64_encode(force_bytes(alice.pk))
    link = f"/accounts/reset/{uid}/{default_token_generator.make_token(alice)}/"
    browser = server()
    start = browser.get(link)
    browser.post(start["Location"], {"new_password1": NEW, "new_password2": NEW})
    assert not services.password_status(alice).must_change
    assert server().get(link).status_code == 200  # the page that says it is spent


def test_row_18_the_user_resets_his_flag(held):
    held.post("/", {"password_expired": ""})
    held.post("/account/password-change/", {"password_expired": "False"})
    assert is_held(held)


@pytest.mark.parametrize("flags", [{"is_staff": True}, {"is_staff": True, "is_superuser": True}])
def test_row_19_staff_and_superusers(engine, server, alice, flags):
    get_user_model().objects.update(**flags)
    browser = login(server, alice)
    services.expire_passwords(alice)
    assert is_held(browser)
    assert browser.get("/admin/")["Location"] == "/admin/password_change/?next=/admin/"
    assert browser.get("/admin/password_change/").status_code == 200
    assert browser.get("/admin/auth/user/")["Location"].startswith("/admin/password_change/")


def test_row_23_guessing_the_old_password(held, settings, alice):
    from pwexpire.conf import conf

    settings.PWEXPIRE_CHANGE_ATTEMPTS = 2
    assert conf.change_attempts == 2
    first = change_password(held, old="wrong")
    assert first.status_code == 200 and first.context["reset_url"] == "/accounts/password_reset/"
    assert change_password(held, old="wrong")["Location"] == "/accounts/login/"
    assert held.get("/").content == b"anonymous"


def test_row_23_a_copied_cookie_gives_no_further_guesses(held, server, settings):
    settings.PWEXPIRE_CHANGE_ATTEMPTS = 1
    cookie = held.cookies["sessionid"].value
    change_password(held, old="wrong")
    thief = server()
    thief.cookies["sessionid"] = cookie
    assert thief.get("/").content == b"anonymous"


@pytest.mark.parametrize(
    "target",
    ["//evil.example", "https:evil.example", "/\\evil.example", "\t//evil", "javascript:alert(1)"],
)
def test_row_24_next_leads_off_the_site(held, target):
    assert change_password(held, next=target)["Location"] == "/account/password-change/done/"


def test_row_24_next_of_the_redirect(held):
    location = held.get("//evil.example/x")["Location"]
    assert "next=//" not in location


def test_row_26_the_change_page_is_itself_held(held, settings):
    settings.PWEXPIRE_CHANGE_URL = "/plain/"
    assert held.get("/plain/").status_code == 200  # named by the site, so it is reachable
    settings.PWEXPIRE_CHANGE_URL = "nowhere"
    assert held.get("/").status_code == 503
    for url in ("/nowhere/", "//evil.example/"):
        settings.PWEXPIRE_CHANGE_URL = url
        assert held.get("/").status_code == 503


def test_row_27_the_database_is_down(held):
    from django.db import OperationalError

    assert is_held(held)
    if "db" in django_settings.SESSION_ENGINE or "signed" in django_settings.SESSION_ENGINE:
        store_session(held, password_expired=True, _password_expired_demand=2**60)
        with (
            mock.patch("pwexpire.middleware.enforcement.feed.current", return_value=None),
            mock.patch("pwexpire.middleware.enforcement.feed.view", side_effect=OperationalError),
        ):
            assert is_held(held)


def test_row_29_a_dead_key_stays_dead(engine, server, alice):
    if "signed" in engine:
        pytest.skip("nothing is stored")
    browser = login(server, alice)
    key = browser.cookies["sessionid"].value
    store = import_module(engine).SessionStore()
    store.delete(key)
    services.expire_passwords(alice)
    assert not store.exists(key)


def test_row_30_clocks_differ(held, alice):
    with mock.patch("django.utils.timezone.now", return_value=timezone.now().replace(year=2001)):
        change_password(held)
    assert not is_held(held)


def elsewhere(server, browser):
    """The same cookies in a browser that talks to a server with the settings of now."""
    other = server()
    other.cookies["sessionid"] = browser.cookies["sessionid"].value
    return other


def test_row_31_another_urlconf(held, server, settings):
    settings.MIDDLEWARE = ["tests.testapp.middleware.OtherWorld", *settings.MIDDLEWARE]
    held = elsewhere(server, held)
    response = held.get("/", headers={"x-urlconf": "tests.testapp.urls_other"})
    assert response["Location"] == "/inner/password-change/?next=/"
    page = held.get("/inner/password-change/", headers={"x-urlconf": "tests.testapp.urls_other"})
    assert page.status_code == 200
    settings.MIDDLEWARE = [*settings.MIDDLEWARE[1:], settings.MIDDLEWARE[0]]
    late = elsewhere(server, held).get(
        "/exempt/", headers={"x-urlconf": "tests.testapp.urls_other"}
    )
    # The change page of that world is none where the middleware looks: a redirect would circle.
    assert late.status_code == 503 and b"/inner/password-change/" in late.content


def test_row_32_an_admin_sets_the_password(held, alice):
    alice.refresh_from_db()
    alice.set_password(OLD)
    alice.save()
    assert services.password_status(alice).must_change
    alice.set_password(NEW)
    alice.save()
    assert not services.password_status(alice).must_change


def test_row_33_two_threads_one_middleware(engine, server, users):
    from django.core.handlers.wsgi import WSGIHandler
    from django.test import RequestFactory

    if "cache" not in engine or "cached" in engine:
        pytest.skip("one engine is enough, and SQLite in memory is for one thread")
    browsers = []
    people = users(4)
    for user in people:
        browsers.append(login(lambda: Client(), user))
    services.expire_passwords(people)
    handler = WSGIHandler()
    wrong = []

    def ask(browser, number):
        for turn in range(20):
            path = f"/cart/?{number}-{turn}"
            request = RequestFactory().get(path)
            request.COOKIES["sessionid"] = browser.cookies["sessionid"].value
            location = handler.get_response(request)["Location"]
            if not location.endswith(f"%3F{number}-{turn}"):
                wrong.append(location)

    with mock.patch("pwexpire.middleware.enforcement.read_password_state") as read_password_state:
        read_password_state.return_value = mock.Mock(ended=0, held=True, demand=2**60, aged=False)
        with mock.patch("pwexpire.middleware.PasswordExpiryMiddleware._examine", hold):
            threads = [
                threading.Thread(target=ask, args=pair)
                for pair in zip(browsers, range(4), strict=True)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    assert wrong == []


def hold(self, request):
    return self._hold(request, request_state_of(request))


def test_row_34_the_second_click(held):
    assert is_held(held) and is_held(held) and is_held(held)


def test_row_36_an_ended_session_comes_back(engine, server, alice):
    browser = login(server, alice)
    copy = open_session(browser)
    data = dict(copy.items())
    services.end_sessions(alice)
    again = import_module(engine).SessionStore()
    again.update(data)
    again.save()
    browser.cookies["sessionid"] = again.session_key
    assert browser.get("/").content == b"anonymous"


def test_a_login_behind_the_middleware_is_held(engine, server, alice, settings):
    services.expire_passwords(alice)
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, "tests.testapp.middleware.LogsIn"]
    browser = server()
    assert browser.get("/", headers={"x-login": "alice"}).status_code == 302
    assert browser.get("/exempt/", headers={"x-login": "alice"}).status_code == 200


def test_htmx_is_led_to_the_page(held):
    response = held.get("/", headers={"hx-request": "true", "accept": "application/json"})
    assert response["HX-Redirect"] == "/account/password-change/"


def test_no_password_is_written_anywhere(engine, server, alice, settings, caplog):
    pytest.importorskip("axes")
    from axes.models import AccessAttempt, AccessFailureLog

    settings.AUTHENTICATION_BACKENDS = [
        "axes.backends.AxesStandaloneBackend",
        *settings.AUTHENTICATION_BACKENDS,
    ]
    settings.AXES_ENABLE_ACCESS_FAILURE_LOG = True
    browser = server()
    with mock.patch.object(django_settings, "AXES_ENABLED", False):
        assert (
            browser.post("/accounts/login/", {"username": "alice", "password": OLD}).status_code
            == 302
        )
    services.expire_passwords(alice)
    caplog.clear()
    change_password(browser, old="Guess-Password-9", new="Fresh-Password-8")
    rows = [*AccessAttempt.objects.values(), *AccessFailureLog.objects.values()]
    assert rows and any(row["username"] == "alice" for row in rows)
    everything = repr(rows) + caplog.text + repr(list(PasswordRecord.objects.values()))
    for secret in ("Guess-Password-9", "Fresh-Password-8", OLD):
        assert secret not in everything


def test_row_8_content_after_a_404_in_another_world(held, server, settings):
    """Exempt where the middleware looked, and not there where the view is looked for."""
    settings.MIDDLEWARE = [
        *settings.MIDDLEWARE,
        "django.contrib.flatpages.middleware.FlatpageFallbackMiddleware",
        "tests.testapp.middleware.OtherWorld",
    ]
    Site.objects.get_or_create(pk=1, defaults={"domain": "example.com", "name": "example"})
    page = FlatPage.objects.create(url="/exempt/sudo/", title="secret", content="secret")
    page.sites.add(1)
    redirect = Redirect.objects.create(site_id=1, old_path="/jsi18n/", new_path="/")
    headers = {"x-urlconf": "tests.testapp.urls_other"}
    response = elsewhere(server, held).get("/exempt/sudo/", headers=headers)
    assert response.status_code == 503 and b"secret" not in response.content
    settings.MIDDLEWARE = [
        *settings.MIDDLEWARE,
        "django.contrib.redirects.middleware.RedirectFallbackMiddleware",
    ]
    moved = elsewhere(server, held).get("/jsi18n/", headers=headers)
    assert moved.status_code == 301 and redirect.new_path == moved["Location"]


def test_an_ended_session_is_anonymous_for_async_views_too(engine, server, alice):
    browser = login(server, alice)
    services.end_sessions(alice)
    assert browser.get("/ahome/").content == b"anonymous"


def test_a_hand_set_flag_and_a_change_behind_the_models_back(engine, server, alice):
    browser = login(server, alice)
    sent = {"password": NEW, "record": "1"}
    assert browser.post("/exempt/hash/", sent).status_code == 200
    assert not is_held(browser)
    assert "password_expired" not in session_of(browser)


@pytest.mark.parametrize("url", ["/accounts/password_change/", "/admin/password_change/"])
def test_row_23_guessing_on_the_pages_of_django_and_the_admin(held, settings, alice, url):
    get_user_model().objects.update(is_staff=True)
    settings.PWEXPIRE_CHANGE_ATTEMPTS = 2
    assert change_password(held, old="wrong", url=url).status_code == 200
    assert is_held(held)
    assert change_password(held, old="wrong", url=url)["Location"] == "/accounts/login/"
    assert held.get("/").content == b"anonymous"


def test_row_24_a_very_long_address_is_not_returned_to(held):
    assert held.get("/?" + "x" * 5_000)["Location"] == "/account/password-change/"


def test_row_9_what_stands_behind_does_not_run(held, server, settings):
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, "tests.testapp.middleware.Behind"]
    Behind.seen.clear()
    browser = elsewhere(server, held)
    assert is_held(browser) and is_held(browser, "/no-such-page/")
    assert Behind.seen == []


def test_a_session_that_is_exchanged_behind_the_middleware(held, server, bob, settings):
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, "tests.testapp.middleware.OtherSession"]
    headers = {"x-session": held.cookies["sessionid"].value}
    free = login(server, bob)
    assert free.get("/", headers=headers).status_code == 302
    assert free.get("/").content == b"bob"


def test_a_flag_that_was_met_leaves_the_copy_of_the_request(engine, server, alice, settings):
    settings.PWEXPIRE_POLL_SECONDS = 60
    browser = login(server, alice)
    number = services.expire_passwords(alice).number
    change_password(browser)
    assert not is_held(browser)
    store_session(browser, password_expired=True, _password_expired_demand=number)
    with mock.patch("pwexpire.middleware.enforcement.read_password_state") as read_password_state:
        assert browser.get("/flag/").content == b"None"
    assert not read_password_state.called

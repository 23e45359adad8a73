"""The promises of the README, each on every session engine, under WSGI and ASGI."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from unittest import mock

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.tokens import default_token_generator
from django.core.management import call_command
from django.db import OperationalError, connection, transaction
from django.test import RequestFactory
from django.utils import timezone
from django.utils.encoding import force_bytes
from django.utils.http import urlsafe_base64_encode

from pwexpire import services
from pwexpire.exceptions import EnforcementUnavailable
from pwexpire.feed import feed
from pwexpire.models import Demand, EnforcementState, PasswordRecord
from pwexpire.services import Reason, SessionAction
from pwexpire.signals import expiry_cleared
from tests.support import (
    NEW,
    OLD,
    change_password,
    is_held,
    open_session,
    session_of,
    store_session,
)

pytestmark = pytest.mark.django_db(transaction=True)
METHODS = ["get", "head", "post", "put", "patch", "delete", "options"]
HTML = {"accept": "text/html"}


def login(server, user, password=OLD):
    browser = server()
    response = browser.post("/accounts/login/", {"username": user.username, "password": password})
    assert response.status_code == 302
    return browser


# 1. Held.


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("path", ["/", "/cart/", "/json/", "/no-such-page/", "/ahome/"])
def test_held_for_every_method_and_url(engine, server, alice, method, path):
    browser = login(server, alice)
    services.expire_passwords(alice)
    response = getattr(browser, method)(path)
    assert response.status_code == (302 if method in ("get", "head") else 303)
    assert response["Location"].startswith("/account/password-change/")
    assert response["Cache-Control"] == "no-store"


def test_held_when_the_flag_is_set_by_hand(engine, server, alice):
    browser = login(server, alice)
    store_session(browser, password_expired=True)
    assert is_held(browser)
    change_password(browser)
    assert not is_held(browser)
    assert "password_expired" not in session_of(browser)


def test_a_flag_set_by_hand_is_released_by_whoever_set_it(engine, server, alice):
    browser = login(server, alice)
    store_session(browser, password_expired=True)
    assert is_held(browser)
    store_session(browser, password_expired=False)
    assert not is_held(browser)


def test_a_flag_set_by_hand_survives_the_same_password(engine, server, alice):
    browser = login(server, alice)
    store_session(browser, password_expired=True)
    change_password(browser, new=OLD, url="/accounts/password_change/")
    assert is_held(browser)


def test_the_view_does_not_run(engine, server, alice):
    browser = login(server, alice)
    services.expire_passwords(alice)
    browser.post("/cart/", {"item": "pen"})
    change_password(browser)
    assert session_of(browser).get("cart") is None


# 2. Everywhere, at once.


def test_every_session_of_the_user_is_held_and_nobody_elses(engine, server, alice, bob):
    first, second, other = login(server, alice), login(server, alice), login(server, bob)
    services.expire_passwords(alice)
    assert is_held(first) and is_held(second) and not is_held(other)


def test_a_lost_flag_does_not_matter(engine, server, alice):
    browser = login(server, alice)
    services.expire_passwords(alice)
    store_session(browser, password_expired=None, _password_expired_demand=None)
    assert is_held(browser)


def test_a_replayed_session_is_held(engine, server, alice):
    browser = login(server, alice)
    cookie = browser.cookies["sessionid"].value
    services.expire_passwords(alice)
    assert is_held(browser)
    thief = server()
    thief.cookies["sessionid"] = cookie
    assert is_held(thief)


def test_a_login_with_the_old_password_is_held(engine, server, alice):
    services.expire_passwords(alice)
    browser = login(server, alice)
    assert session_of(browser)["password_expired"] is True
    assert is_held(browser)


def test_another_process_is_asked_within_the_interval(engine, server, alice, settings):
    settings.PWEXPIRE_POLL_SECONDS = 0.2
    browser = login(server, alice)
    assert not is_held(browser)
    with mock.patch.object(feed, "drop"):  # as if somebody else's process had done it
        services.expire_passwords(alice)
        store_session(browser, password_expired=None, _password_expired_demand=None)
        time.sleep(0.2)
        assert is_held(browser)


def test_everyone_is_one_row_and_holds_all_but_the_excluded(engine, server, alice, bob):
    first, second = login(server, alice), login(server, bob)
    batch = services.expire_everyone(exclude=bob)
    assert batch.users_expired is None and Demand.objects.count() == 0
    assert is_held(first) and not is_held(second)


def test_an_exclusion_keeps_what_stood_before(engine, server, alice):
    browser = login(server, alice)
    first = services.expire_everyone()
    services.expire_everyone(exclude=alice)
    assert is_held(browser)
    services.cancel_expiry(first)
    assert not is_held(browser)


def test_a_user_created_later_is_not_under_it(engine, server, django_user_model):
    services.expire_everyone()
    dave = django_user_model.objects.create_user("dave", password=OLD)
    assert not is_held(login(server, dave))


# 3. Released.


def change_by_form(browser, user):
    change_password(browser)


def change_by_djangos_form(browser, user):
    change_password(browser, url="/accounts/password_change/")


def change_by_link(browser, user):
    uid = urlsafe_base64_encode(force_bytes(user.pk))
    user.refresh_from_db()
    start = browser.get(f"/accounts/reset/{uid}/{default_token_generator.make_token(user)}/")
    done = browser.post(start["Location"], {"new_password1": NEW, "new_password2": NEW})
    assert done.status_code == 302


def change_by_save(browser, user):
    user.refresh_from_db()
    user.set_password(NEW)
    user.save()


def change_by_command(browser, user):
    with mock.patch(
        "django.contrib.auth.management.commands.changepassword.Command._get_pass",
        return_value=NEW,
    ):
        call_command("changepassword", user.username, verbosity=0)


def change_by_update(browser, user):
    from django.contrib.auth.hashers import make_password

    get_user_model().objects.filter(pk=user.pk).update(password=make_password(NEW))
    user.refresh_from_db()
    services.record_password_change(user)


CHANGES = [
    change_by_form,
    change_by_djangos_form,
    change_by_link,
    change_by_save,
    change_by_command,
    change_by_update,
]


@pytest.mark.parametrize("everyone", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_released_by_a_real_change(engine, server, alice, change, everyone):
    browser = login(server, alice)
    services.expire_everyone() if everyone else services.expire_passwords(alice)
    assert is_held(browser)
    change(browser, alice)
    assert not services.password_status(alice).must_change
    if change in (change_by_form, change_by_djangos_form):
        assert not is_held(browser)
        assert "password_expired" not in session_of(browser)
    assert not is_held(login(server, alice, NEW))


def test_the_flag_leaves_in_the_response_to_the_change(engine, server, alice):
    told = []
    browser = login(server, alice)
    services.expire_passwords(alice)
    assert is_held(browser)

    def listen(sender, request, user_id, **kwargs):
        told.append(user_id)

    expiry_cleared.connect(listen)
    try:
        change_password(browser)
    finally:
        expiry_cleared.disconnect(listen)
    assert told == [alice.pk]
    data = session_of(browser)
    assert "password_expired" not in data and "_password_expired_demand" not in data


@pytest.mark.parametrize("url", ["/account/password-change/", "/accounts/password_change/"])
def test_the_same_password_is_no_change(engine, server, alice, url):
    browser = login(server, alice)
    services.expire_passwords(alice)
    change_password(browser, new=OLD, url=url)
    assert is_held(browser)
    assert services.password_status(alice).must_change


def test_a_hasher_upgrade_is_no_change(engine, server, alice, settings):
    services.expire_passwords(alice)
    settings.PASSWORD_HASHERS = settings.PASSWORD_HASHERS[::-1]
    browser = login(server, alice)
    alice.refresh_from_db()
    assert alice.password.startswith("pbkdf2")
    assert is_held(browser)


def test_a_visit_or_a_logout_is_no_change(engine, server, alice):
    browser = login(server, alice)
    services.expire_passwords(alice)
    assert browser.get("/account/password-change/").status_code == 200
    assert is_held(browser)
    browser.post("/accounts/logout/")
    assert is_held(login(server, alice))


@pytest.mark.parametrize("skew", [-30, 30])
def test_clocks_of_two_servers_may_differ(engine, server, alice, skew):
    browser = login(server, alice)
    services.expire_passwords(alice)
    elsewhere = timezone.now() + timedelta(seconds=skew)
    with mock.patch("django.utils.timezone.now", return_value=elsewhere):
        change_password(browser)
    assert not is_held(browser)
    with mock.patch("django.utils.timezone.now", return_value=elsewhere):
        services.expire_passwords(alice)
    assert is_held(browser)


# 4. Nothing else is touched.


@pytest.mark.parametrize("expiry", [None, 0, 120, timedelta(hours=1)])
def test_flagging_keeps_data_and_lifetime(engine, server, alice, expiry):
    browser = login(server, alice)
    browser.post("/cart/", {"item": "pen"})
    if expiry is not None:
        store_session(browser, set_expiry=expiry)
    before, age = session_of(browser), stored_expiry(browser)
    services.expire_passwords(alice)
    is_held(browser)
    after = session_of(browser)
    for key in ("password_expired", "_password_expired_demand"):
        after.pop(key, None)
    assert after == before
    assert stored_expiry(browser) == age


def stored_expiry(browser):
    from pwexpire.sessionstore.registry import get_adapter

    key = browser.cookies["sessionid"].value
    if get_adapter().name == "file":  # its age is its last change
        return os.stat(open_session(browser)._key_to_file()).st_mtime_ns
    return [row.expires for row in get_adapter().sessions() if row.key == key]


def test_a_deleted_session_stays_deleted(engine, server, alice):
    browser = login(server, alice)
    key = browser.cookies["sessionid"].value
    browser.post("/accounts/logout/")
    services.expire_passwords(alice)
    services.flag_sessions(alice)
    if "signed_cookies" not in engine:
        from importlib import import_module

        assert not import_module(engine).SessionStore().exists(key)


def test_the_middleware_saves_no_session(engine, server, alice):
    browser = login(server, alice)
    services.expire_passwords(alice)
    with mock.patch("django.contrib.sessions.backends.base.SessionBase.__setitem__") as write:
        response = browser.get("/")
    assert response.status_code == 302 and not write.called
    assert "sessionid" not in response.cookies


# 5. Free when idle.


def test_an_idle_request_costs_no_query(engine, server, alice, settings, count_queries):
    settings.PWEXPIRE_POLL_SECONDS = 60
    browser = login(server, alice)
    browser.get("/")
    with count_queries() as with_us:
        browser.get("/")
    settings.PWEXPIRE_ENFORCE = False
    with count_queries() as without:
        browser.get("/")
    assert len(with_us) == len(without)


def test_an_anonymous_visitor_costs_nothing(engine, server, settings, count_queries):
    with count_queries() as queries:
        response = server().get("/plain/")
    assert not queries
    assert "Vary" not in response.headers or "Cookie" not in response.headers["Vary"]


@pytest.mark.parametrize("read", [True, False])
def test_a_cookie_of_no_session_costs_what_it_costs_to_look_for_the_session(
    engine, server, alice, settings, count_queries, read
):
    settings.PWEXPIRE_POLL_SECONDS = 60
    services.expire_passwords(alice)
    login(server, alice).get("/")  # the view of this process
    browser = server()
    browser.cookies["sessionid"] = "x" * 32

    def fetch():
        with count_queries() as queries:
            response = browser.get("/" if read else "/plain/")
        kept = response.cookies.get("sessionid"), response.headers.get("Vary")
        browser.cookies["sessionid"] = "x" * 32
        return len(queries), [str(one) for one in kept]

    with_us = fetch()
    settings.MIDDLEWARE = [name for name in settings.MIDDLEWARE if "pwexpire" not in name]
    browser = server()
    browser.cookies["sessionid"] = "x" * 32
    without = fetch()
    loads = not read and engine.endswith("db")
    assert with_us[0] == without[0] + loads
    if not (read and engine.endswith("signed_cookies")):
        assert with_us[1] == without[1]


def test_a_site_that_saves_every_session_takes_a_cookie_of_none_away(server, settings):
    settings.SESSION_SAVE_EVERY_REQUEST = True
    browser = server()
    browser.cookies["sessionid"] = "x" * 32
    response = browser.get("/plain/")
    assert response.status_code == 200 and response.cookies["sessionid"].value == ""


def test_a_view_that_reads_no_session_gets_no_vary(engine, server, alice):
    response = login(server, alice).get("/plain/")
    assert "Cookie" not in response.headers.get("Vary", "")


def test_a_burst_of_expiries_costs_others_nothing(engine, server, alice, eve, settings, users):
    settings.PWEXPIRE_POLL_SECONDS = 0
    browser = login(server, eve)
    browser.get("/")
    for user in users(5):
        services.expire_passwords(user)
    with mock.patch("pwexpire.middleware.enforcement.read_password_state") as read_password_state:
        browser.get("/")
    assert not read_password_state.called


# 6. Resumable: see test_batches. 7. A way out.


@pytest.mark.parametrize(
    "path",
    [
        "/account/password-change/",
        "/account/password-change/done/",
        "/accounts/password_reset/",
        "/accounts/password_reset/done/",
        "/accounts/reset/done/",
        "/jsi18n/",
        "/exempt/",
    ],
)
def test_ways_out_stay_open(engine, server, alice, path):
    browser = login(server, alice)
    services.expire_passwords(alice)
    assert browser.get(path).status_code == 200


def test_logout_language_and_well_known_stay_open(engine, server, alice):
    browser = login(server, alice)
    services.expire_passwords(alice)
    found = browser.get("/.well-known/change-password")
    assert found.status_code == 302 and found["Location"] == "/account/password-change/"
    assert browser.post("/i18n/setlang/", {"language": "de", "next": "/"})["Location"] == "/"
    assert browser.post("/accounts/logout/").status_code in (200, 302)
    assert not is_held(browser)


def test_a_missing_change_page_is_a_503(engine, server, alice, settings):
    settings.PWEXPIRE_CHANGE_URL = "nowhere"
    browser = login(server, alice)
    services.expire_passwords(alice)
    response = browser.get("/")
    assert response.status_code == 503
    assert b"PWEXPIRE_CHANGE_URL" in response.content
    assert response["Cache-Control"] == "no-store"


def test_a_held_session_without_a_user_is_flushed(engine, server, alice):
    browser = login(server, alice)
    services.expire_passwords(alice)
    assert is_held(browser)
    alice.is_active = False
    alice.save()
    assert b"anonymous" in browser.get("/").content


def test_an_unusable_password_satisfies_every_demand(engine, server, alice):
    browser = login(server, alice)
    services.expire_passwords(alice)
    alice.refresh_from_db()
    alice.set_unusable_password()
    alice.save()
    assert not services.password_status(alice).must_change
    assert not is_held(browser)


# 8. No leak.


def test_next_stays_on_the_site(engine, server, alice):
    browser = login(server, alice)
    services.expire_passwords(alice)
    response = change_password(browser, next="https://evil.example/")
    assert response["Location"] == "/account/password-change/done/"


def test_an_anonymous_visitor_learns_nothing(engine, server, alice, bob):
    def answers():
        data = {"username": "alice", "password": "wrong"}
        browser = server()
        page = browser.post("/accounts/login/", data)
        return page.status_code, [str(error) for error in page.context["form"].non_field_errors()]

    before = answers()
    services.expire_passwords(alice)
    assert answers() == before


# 9. Faults.


@pytest.fixture
def broken():
    def fail(*args, **kwargs):
        raise OperationalError("the database is down")

    return mock.patch("pwexpire.middleware.enforcement.feed.view", side_effect=fail), mock.patch(
        "pwexpire.middleware.enforcement.feed.current", return_value=None
    )


def test_known_flags_hold_while_the_database_is_down(engine, server, alice, broken):
    services.expire_passwords(alice)
    browser = login(server, alice)
    with broken[0], broken[1]:
        assert is_held(browser)


@pytest.mark.parametrize("closed", [False, True])
def test_others_are_the_sites_choice(engine, server, alice, broken, settings, closed):
    settings.PWEXPIRE_FAIL_CLOSED = closed
    browser = login(server, alice)
    with broken[0], broken[1]:
        assert browser.get("/").status_code == (503 if closed else 200)


@pytest.mark.parametrize("error", [OperationalError("down"), EnforcementUnavailable("down")])
def test_a_cookie_of_no_session_fails_no_page_while_the_database_is_down(server, settings, error):
    browser = server()
    browser.cookies["sessionid"] = "x" * 32
    with mock.patch("pwexpire.middleware.ended.feed.view", side_effect=error):
        assert browser.get("/plain/").status_code == 200


# Ending sessions.


def test_ended_sessions_are_anonymous_everywhere(engine, server, alice, bob):
    first, second, other = login(server, alice), login(server, alice), login(server, bob)
    cookie = first.cookies["sessionid"].value
    services.expire_passwords(alice, sessions=SessionAction.END)
    for browser in (first, second):
        assert b"anonymous" in browser.get("/").content
    assert b"bob" in other.get("/").content
    thief = server()
    thief.cookies["sessionid"] = cookie
    assert b"anonymous" in thief.get("/").content
    assert is_held(login(server, alice))


def test_end_sessions_demands_no_change(engine, server, alice):
    browser = login(server, alice)
    services.end_sessions(alice)
    assert b"anonymous" in browser.get("/").content
    assert not is_held(login(server, alice))


# Policy.


def test_a_password_ages_out_of_an_open_session(engine, server, alice, settings, count_queries):
    from pwexpire.policy import Policy

    settings.PWEXPIRE_POLICY = Policy(max_age=timedelta(days=90))
    settings.SESSION_COOKIE_AGE = 365 * 24 * 3600
    browser = login(server, alice)
    assert not is_held(browser)
    later = time.time() + timedelta(days=91).total_seconds()
    PasswordRecord.objects.filter(pk=alice.pk).update(
        changed_at=timezone.now() - timedelta(days=91)
    )
    with mock.patch("time.time", return_value=later):
        assert is_held(browser)
        assert is_held(browser)
    status = services.password_status(alice)
    assert status.must_change and status.reason == Reason.AGE
    change_password(browser)
    assert not is_held(browser)


def test_a_policy_costs_no_query_until_the_password_ages_out(
    engine, server, alice, settings, count_queries
):
    from pwexpire.policy import Policy

    settings.PWEXPIRE_POLL_SECONDS = 60
    settings.PWEXPIRE_POLICY = Policy(max_age=timedelta(days=90))
    browser = login(server, alice)
    browser.get("/")
    with mock.patch("pwexpire.middleware.enforcement.read_password_state") as read_password_state:
        browser.get("/")
    assert not read_password_state.called


def test_installing_locks_nobody_out(engine, server, alice, settings):
    from pwexpire.policy import Policy

    PasswordRecord.objects.all().delete()
    settings.PWEXPIRE_POLICY = Policy(max_age=timedelta(days=1))
    get_user_model().objects.update(date_joined=timezone.now() - timedelta(days=900))
    browser = login(server, alice)
    assert not is_held(browser)
    settings.PWEXPIRE_ASSUME_CHANGED = "joined"
    assert is_held(login(server, alice))


# Rollback.


def test_a_rollback_leaves_nothing(engine, server, alice):
    browser = login(server, alice)
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        batch = services.expire_passwords(alice)
        assert batch.users_expired is None and batch.number is None
        raise ZeroDivisionError
    assert Demand.objects.count() == 0 and not is_held(browser)
    assert "password_expired" not in session_of(browser)


def test_a_commit_puts_it_in_force(engine, server, alice):
    browser = login(server, alice)
    with transaction.atomic():
        batch = services.expire_passwords(alice)
        assert batch.users_expired is None
    assert batch.users_expired == 1 and is_held(browser)


def test_a_restored_database_goes_on_above_everything_issued(engine, server, alice):
    browser = login(server, alice)
    services.expire_passwords(alice)
    change_password(browser)
    EnforcementState.objects.update(counter=5)
    PasswordRecord.objects.update(satisfied=0)
    batch = services.expire_passwords(alice)
    assert batch.number > 1_000_000_000_000
    assert is_held(browser)


def test_key_rotation_is_no_change(engine, server, alice, settings):
    services.expire_passwords(alice)
    browser = login(server, alice)
    if "signed_cookies" in engine:
        pytest.skip("the cookie itself is signed with the key")
    settings.SECRET_KEY_FALLBACKS = [settings.SECRET_KEY]
    settings.SECRET_KEY = "another-" + settings.SECRET_KEY
    assert is_held(browser)
    browser.get("/account/password-change/")
    assert is_held(browser)


def test_under_atomic_requests(engine, server, alice):
    browser = login(server, alice)
    services.expire_passwords(alice)
    with mock.patch.dict(connection.settings_dict, {"ATOMIC_REQUESTS": True}):
        if server.name == "asgi":
            pytest.skip("Django refuses async views under ATOMIC_REQUESTS")
        change_password(browser)
        assert not is_held(browser)


def test_a_request_factory_without_sessions_says_what_is_missing():
    from django.core.exceptions import ImproperlyConfigured

    from pwexpire.middleware import PasswordExpiryMiddleware

    with pytest.raises(ImproperlyConfigured, match="after them in MIDDLEWARE"):
        PasswordExpiryMiddleware(lambda request: None)(RequestFactory().get("/"))


@pytest.mark.parametrize("place", [3, 5])
def test_beside_djangos_login_required_middleware(engine, server, alice, settings, place):
    required = "django.contrib.auth.middleware.LoginRequiredMiddleware"
    settings.MIDDLEWARE = [*settings.MIDDLEWARE[:place], required, *settings.MIDDLEWARE[place:]]
    browser = login(server, alice)
    services.expire_passwords(alice)
    assert is_held(browser) and is_held(browser, "/no-such-page/")
    assert browser.get("/account/password-change/").status_code == 200
    change_password(browser)
    assert not is_held(browser)
    assert server().get("/")["Location"] == "/accounts/login/?next=/"
    assert server().get("/account/password-change/")["Location"].startswith("/accounts/login/")

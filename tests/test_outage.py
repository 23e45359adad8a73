"""An outage: a page that needs nothing of ours answers as without us; the log can be read."""

from __future__ import annotations

from contextlib import ExitStack
from importlib import import_module
from unittest import mock

import pytest
from django.db import OperationalError

from pwexpire import faults, services
from pwexpire.feed import feed
from pwexpire.middleware import PasswordExpiryMiddleware
from tests.support import OLD, is_held, store_session

pytestmark = pytest.mark.django_db(transaction=True)
DOWN = OperationalError("the server closed the connection")
SAID = "could not be asked"


@pytest.fixture
def browser(engine, server, alice):
    found = server()
    found.post("/accounts/login/", {"username": "alice", "password": OLD})
    return found


@pytest.fixture
def outage(engine):
    """Neither the session store nor the database answers."""
    store = import_module(engine).SessionStore

    def stop():
        stack = ExitStack()
        for name in ("load", "aload"):
            stack.enter_context(mock.patch.object(store, name, side_effect=DOWN))
        stack.enter_context(mock.patch.object(type(feed), "_read", side_effect=DOWN))
        return stack

    return stop


def test_a_public_view_answers_though_no_session_can_be_loaded(browser, outage):
    with outage():
        response = browser.get("/plain/")
    assert response.status_code == 200
    assert "Vary" not in response.headers  # the session was not read
    assert not is_held(browser)


def test_a_public_view_answers_to_a_flagged_session_too(browser, outage, alice):
    """Nobody can know whose session it is, and the view reads nothing of it."""
    services.expire_passwords(alice)
    with outage():
        assert browser.get("/plain/").status_code == 200
    assert is_held(browser)


def test_a_site_that_fails_closed_answers_nothing(browser, outage, settings):
    settings.PWEXPIRE_FAIL_CLOSED = True
    with outage():
        assert browser.get("/plain/").status_code == 503


def test_a_trial_run_holds_nobody_in_an_outage_either(browser, outage, settings):
    settings.PWEXPIRE_FAIL_CLOSED = True
    settings.PWEXPIRE_ENFORCE = "report"
    with outage():
        assert browser.get("/plain/").status_code == 200


def test_a_view_that_reads_the_session_fails_as_without_us(browser, outage):
    with outage(), pytest.raises(OperationalError):
        browser.get("/")


@pytest.fixture
def behind(settings):
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, "tests.test_outage.reads_the_session"]


def test_a_session_that_is_read_again_behind_is_decided_on(behind, browser, outage, alice):
    services.expire_passwords(alice)
    with outage() as down:
        Later.comes = down.close
        assert is_held(browser, "/plain/")


class Later:
    comes = None


def reads_the_session(get_response):
    """The server answers again, before the view is called."""

    def middleware(request):
        if Later.comes is not None:
            Later.comes, now = None, Later.comes
            now()
            request.session.get("x")
        return get_response(request)

    return middleware


def test_one_line_a_minute_and_a_count(browser, outage, caplog):
    with mock.patch("pwexpire.faults.time.monotonic") as clock:
        clock.return_value = 1000.0
        with outage():
            for _ in range(20):
                assert browser.get("/plain/").status_code == 200
            assert caplog.text.count(SAID) == 1 and caplog.text.count("closed") == 1
            clock.return_value += faults.EVERY_SECONDS
            browser.get("/plain/")
    assert caplog.text.count(SAID) == 2
    assert "(19 more since the last line)" in caplog.text


def test_one_line_for_a_record_that_cannot_be_read(browser, caplog):
    with mock.patch.object(type(feed), "_read", side_effect=DOWN):
        for _ in range(5):
            assert browser.get("/plain/").status_code == 200
    assert caplog.text.count(SAID) == 1
    assert "closed the connection" in caplog.text


def test_one_line_where_the_last_view_is_good_enough(engine, server, alice, settings, caplog):
    settings.PWEXPIRE_POLL_SECONDS = 60
    with mock.patch("pwexpire.feed.time.monotonic") as clock:
        clock.return_value = 1000.0
        browser = server()
        browser.post("/accounts/login/", {"username": "alice", "password": OLD})
        browser.get("/plain/")
        clock.return_value += 61
        with mock.patch.object(type(feed), "_read", side_effect=DOWN):
            for _ in range(5):
                clock.return_value += 2
                assert browser.get("/plain/").status_code == 200
    assert caplog.text.count("could not be read") == 1


@pytest.mark.parametrize("what", ["flag", "clear"])
def test_what_cannot_be_written_changes_no_decision(engine, server, alice, caplog, what):
    browser = server()
    browser.post("/accounts/login/", {"username": "alice", "password": OLD})
    if what == "flag":
        services.expire_passwords(alice)
        store_session(browser, password_expired=None, _password_expired_demand=None)
    else:
        store_session(browser, password_expired=True, _password_expired_demand=2**60)
    with mock.patch(f"pwexpire.sessionstore.rows.RowAdapter.{what}", side_effect=DOWN) as write:
        assert is_held(browser) is (what == "flag")
    assert write.called is ("db" in engine)
    assert ("could not be" in caplog.text) is write.called


def test_an_end_that_cannot_be_stored_ends_all_the_same(alice, rf, caplog):
    request = rf.get("/")
    request.session, request.user = mock.Mock(), alice
    request.session.flush.side_effect = DOWN
    PasswordExpiryMiddleware(lambda request: None)._make_anonymous(request)
    assert not request.user.is_authenticated and request.session.modified is False
    assert "could not be ended" in caplog.text

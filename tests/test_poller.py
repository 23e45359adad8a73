"""The thread that polls: a database that hangs keeps no request waiting."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from unittest import mock

import pytest
from asgiref.sync import async_to_sync
from django.core import mail
from django.db import OperationalError, transaction
from django.test import AsyncClient

from pwexpire import feed as module
from pwexpire import poller, testing
from pwexpire.demand_view import View
from pwexpire.exceptions import EnforcementUnavailable
from pwexpire.feed import Feed, feed
from pwexpire.poller import Poller

INTERVAL = 60
SCOPE = ("default", "")
DOWN = OperationalError("the server closed the connection")


class Database:
    """Counts the polls and the threads that they are in; answers, hangs, or is down."""

    def __init__(self):
        self.answers = threading.Event()
        self.answers.set()
        self.counter, self.error, self.threads = 0, None, []

    def read(self, using, old):
        self.threads.append(threading.current_thread())
        assert self.answers.wait(10)
        if self.error is not None:
            raise self.error
        self.counter += 1
        return View(self.counter)


@pytest.fixture
def aside(monkeypatch, settings):
    """As in a server: no test runner is at work."""
    settings.PWEXPIRE_POLL_SECONDS = INTERVAL
    monkeypatch.delattr(mail, "outbox", raising=False)


@pytest.fixture
def database(aside):
    database = Database()
    with mock.patch.object(Feed, "_read", staticmethod(database.read)):
        yield database
        database.answers.set()


@pytest.fixture
def fresh(database):
    fresh = Feed()
    fresh.view(SCOPE)
    yield fresh
    database.answers.set()
    end(fresh)


def thread_of(fresh):
    worker = fresh._poller._workers.get(SCOPE)
    return None if worker is None else worker.thread


def end(fresh):
    threads = [one.thread for one in (*fresh._poller._workers.values(), *fresh._poller._hanging)]
    fresh.reset()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def grow_old(fresh, intervals):
    """Move all that is known of the time of the view."""
    view = fresh._views[SCOPE]
    view.started = time.monotonic() - intervals * INTERVAL
    view.fresh_until = view.started + INTERVAL
    view.due = min(view.due, view.started + INTERVAL / 2)
    return view


def until(is_so):
    end = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.005)


def timed_view(fresh):
    began = time.monotonic()
    try:
        return fresh.view(SCOPE), time.monotonic() - began
    except EnforcementUnavailable as error:
        return error, time.monotonic() - began


def test_a_request_asks_for_the_next_poll_and_goes_on(fresh, database):
    assert database.threads == [threading.current_thread()]  # the first of a process
    assert fresh.view(SCOPE).counter == 1 and len(database.threads) == 1  # young
    view = grow_old(fresh, 0.6)
    assert fresh.current(SCOPE) is view
    until(lambda: fresh._views[SCOPE] is not view)
    assert fresh.current(SCOPE).counter == 2
    assert database.threads[1].daemon and database.threads[1] is thread_of(fresh)


def test_a_poll_that_hangs_delays_nobody_while_the_view_is_young(fresh, database):
    database.answers.clear()
    view = grow_old(fresh, 0.6)
    for _ in range(50):
        found, seconds = timed_view(fresh)
        assert found is view and seconds < 0.04
    until(lambda: len(database.threads) == 2)
    grow_old(fresh, 0.9)
    assert timed_view(fresh)[0] is view and len(database.threads) == 2


def test_after_that_it_delays_for_a_moment(fresh, database, monkeypatch):
    database.answers.clear()
    view = grow_old(fresh, 0.6)
    fresh.current(SCOPE)
    until(lambda: len(database.threads) == 2)
    monkeypatch.setattr(poller, "PATIENCE_SECONDS", 0)
    object.__setattr__(fresh._poller._asked[SCOPE], "patience", 0)
    grow_old(fresh, 1.5)
    found, seconds = timed_view(fresh)
    assert found is view and 0.04 < seconds < 0.2
    grow_old(fresh, 2.5)
    found, seconds = timed_view(fresh)
    assert isinstance(found, EnforcementUnavailable) and seconds < 0.2
    assert "does not answer" in str(found)
    # What has to be read in the thread of the request does not wait for it much longer either.
    monkeypatch.setattr(module, "BEGUN_HERE_SECONDS", 0)
    fresh.drop()
    with fresh._lock:  # another request is at it
        found, seconds = timed_view(fresh)
    assert isinstance(found, EnforcementUnavailable) and seconds < 0.2


def test_a_poll_that_only_began_is_waited_for(fresh, database):
    """A process that was idle has to connect first: nobody passes meanwhile."""
    database.answers.clear()
    grow_old(fresh, 5)
    threading.Timer(0.15, database.answers.set).start()
    found, seconds = timed_view(fresh)
    assert found.counter == 2 and seconds > 0.1
    assert database.threads[1] is thread_of(fresh)


def test_the_first_requests_of_a_process_wait_for_one_of_them(database):
    fresh = Feed()
    database.answers.clear()
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(timed_view(fresh)[0])) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.15)
    database.answers.set()
    for thread in threads:
        thread.join(10)
    assert [view.counter for view in found] == [1] * 4 and len(database.threads) == 1
    end(fresh)


def test_what_this_process_wrote_is_read_by_its_next_request(fresh, database):
    fresh.drop()
    assert fresh.view(SCOPE).counter == 2
    assert database.threads[1] is threading.current_thread()


def test_a_connection_that_fails_is_tried_again_later(fresh, database, caplog):
    database.error = DOWN
    view = grow_old(fresh, 0.6)
    fresh.current(SCOPE)
    until(lambda: (SCOPE, True) in fresh._failed and view.due < float("inf"))
    assert view.due > time.monotonic() + 0.5 and "could not be read" in caplog.text
    grow_old(fresh, 2.5)
    for _ in range(5):
        found, seconds = timed_view(fresh)
        assert "closed the connection" in str(found) and seconds < 0.2
    # Once by the thread of a request as well, and then backed off.
    assert len(database.threads) == 3 and database.threads[2] is threading.current_thread()
    assert caplog.text.count("could not be read") == 1
    database.error = None
    for key, (_, said) in fresh._failed.items():
        fresh._failed[key] = time.monotonic() - module.BACKOFF_SECONDS, said
    assert timed_view(fresh)[0].counter == 2 and (SCOPE, True) not in fresh._failed


def test_a_thread_that_gets_no_connection_leaves_it_to_the_request(fresh, database):
    """There is a limit of connections, and the request has one already."""
    mine = threading.current_thread()

    def read(using, old):
        if threading.current_thread() is not mine:
            raise OperationalError("too many connections for role")
        return database.read(using, old)

    grow_old(fresh, 5)
    with mock.patch.object(Feed, "_read", staticmethod(read)):
        assert timed_view(fresh)[0].counter == 2


def test_after_a_connection_that_was_lost_another_one_is_tried(fresh, database, monkeypatch):
    monkeypatch.setattr(poller, "LOST_SECONDS", 0.1)
    monkeypatch.setattr(poller, "PATIENCE_SECONDS", 0)
    lost, read = threading.Event(), []

    def hang(using, old):
        read.append(threading.current_thread())
        if len(read) == 1:
            assert lost.wait(10)
        return database.read(using, old)

    with mock.patch.object(Feed, "_read", staticmethod(hang)):
        grow_old(fresh, 5)
        assert isinstance(timed_view(fresh)[0], EnforcementUnavailable)
        time.sleep(0.1)
        until(lambda: isinstance(timed_view(fresh)[0], View))
        view = fresh.view(SCOPE)
        assert view.counter == 2 and read[1] is thread_of(fresh) is not read[0]
        lost.set()  # what it read is older by now
        read[0].join(10)
        assert fresh.view(SCOPE) is view


def test_the_more_threads_hang_the_longer_it_takes_until_another_is_tried():
    go = threading.Event()
    one = Poller(lambda scope: go.wait(10))
    for seconds in (2, 4, 8, 16, 32, 60, 60):
        asked = one.ask(SCOPE)
        object.__setattr__(asked, "began", time.monotonic() - seconds + 1)
        assert one.ask(SCOPE) is asked
        object.__setattr__(asked, "began", time.monotonic() - seconds)
    assert one.ask(SCOPE) is not asked and len(one._hanging) == 7
    threads = [worker.thread for worker in (*one._hanging, *one._workers.values())]
    go.set()
    one.stop()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_a_scope_that_hangs_delays_no_other():
    go, polled = threading.Event(), []
    one = Poller(lambda scope: go.wait(10) if scope == SCOPE else polled.append(scope))
    one.ask(SCOPE)
    assert one.ask(("other", "")).done.wait(10) and polled == [("other", "")]
    go.set()
    one.stop()


def test_what_is_written_while_a_poll_is_kept_is_not_forgotten(fresh, database, monkeypatch):
    def drop(*args):
        fresh.drop()
        return False

    grow_old(fresh, 5)
    monkeypatch.setattr(fresh, "_may_poll_aside", drop)
    fresh.view(SCOPE)
    assert fresh.current(SCOPE) is None


def test_where_no_thread_begins_the_request_polls(fresh, database):
    grow_old(fresh, 2.5)
    with mock.patch.object(threading.Thread, "start", side_effect=RuntimeError("no threads")):
        assert fresh.view(SCOPE).counter == 2
    grow_old(fresh, 2.5)
    assert fresh.view(SCOPE).counter == 3  # from then on, always
    assert set(database.threads) == {threading.current_thread()}
    assert fresh._views[SCOPE].due == float("inf")


def test_a_thread_that_died_is_replaced():
    polls = []
    one = Poller(polls.append)
    with mock.patch.object(one, "_run"):
        lost = one.ask(SCOPE)
        until(lambda: not one._workers[SCOPE].thread.is_alive())
    asked = one.ask(SCOPE)
    assert asked is not lost and asked.done.wait(10) and polls[-1] == SCOPE
    one.stop()
    one._workers[SCOPE].thread.join(10)
    one.stop()


def test_several_who_ask_get_the_same_poll():
    go = threading.Event()
    one = Poller(lambda scope: go.wait(10))
    asked = one.ask(SCOPE)
    assert one.ask(SCOPE) is asked and one.ask(("other", "")) is not asked
    go.set()
    assert asked.done.wait(10)
    one.stop()
    one._workers[SCOPE].thread.join(10)


def test_the_connection_is_closed_as_at_the_end_of_a_request():
    with (
        mock.patch.object(poller, "close_old_connections") as close,
        mock.patch.object(poller.connections, "close_all") as close_all,
    ):
        one = Poller(lambda scope: None)
        assert one.ask(SCOPE).done.wait(10)
        until(lambda: close.called)
        assert not close_all.called
        one.stop()
        one._workers[SCOPE].thread.join(10)
        assert close_all.called


@pytest.mark.parametrize("seconds", [0, None])
def test_without_an_interval_there_is_no_thread(database, settings, seconds):
    settings.PWEXPIRE_POLL_SECONDS = seconds
    fresh = Feed()
    for _ in range(2):
        fresh.view(SCOPE)
        fresh.drop()
    assert thread_of(fresh) is None


def test_in_the_tests_of_a_project_there_is_no_thread(fresh, database, monkeypatch):
    monkeypatch.setattr(mail, "outbox", [], raising=False)
    grow_old(fresh, 5)
    assert fresh.view(SCOPE).due == float("inf") and thread_of(fresh) is None


def test_a_poll_of_a_process_that_was_reset_is_kept(database):
    fresh = Feed()
    fresh._poll_aside(SCOPE)
    assert fresh.view(SCOPE).counter == 1 and len(database.threads) == 1


def test_a_tenant_is_read_by_the_connection_of_the_request(database):
    fresh, scope = Feed(), ("default", "north")
    assert fresh.view(scope).due == float("inf")


@pytest.mark.django_db(transaction=True)
def test_in_a_transaction_the_request_itself_looks(fresh, database):
    grow_old(fresh, 5)
    with transaction.atomic():
        fresh.view(SCOPE)
    assert database.threads[-1] is threading.current_thread()
    assert thread_of(fresh) is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_begins_with_a_thread_of_its_own(database):
    feed.reset()
    feed.view(SCOPE)
    grow_old(feed, 0.6)
    feed.current(SCOPE)
    until(lambda: len(database.threads) == 2)
    parent = feed._poller
    child = os.fork()
    if not child:  # pragma: no cover
        code = 1
        with suppress(BaseException):
            assert feed._views == {} and feed._poller is not parent
            feed.view(SCOPE)
            grow_old(feed, 0.6)
            feed.current(SCOPE)
            until(lambda: thread_of(feed) in database.threads)
            code = 0
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert feed._poller is parent and parent._workers[SCOPE].thread.is_alive()
    end(feed)


@pytest.mark.django_db(transaction=True)
def test_under_asgi_nothing_hops_threads_for_a_poll(alice, settings, database):
    """The middleware stands alone, so that each hop would be one of ours."""
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
    browser = AsyncClient()

    async def ask():
        await browser.aforce_login(alice)
        await browser.get("/plain/")
        view = grow_old(feed, 0.6)
        database.answers.clear()
        with mock.patch("pwexpire.middleware.password_expiry.sync_to_async") as hop:
            assert (await browser.get("/plain/")).status_code == 200
        assert not hop.called and view.due == float("inf")

    testing.reset()
    async_to_sync(ask)()
    until(lambda: thread_of(feed) in database.threads)
    database.answers.set()
    end(feed)

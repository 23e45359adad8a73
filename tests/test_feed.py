from __future__ import annotations

import os
import threading
import time
from unittest import mock

import pytest
from django.db import OperationalError, ProgrammingError, connection, transaction

from pwexpire import demand_view, services, testing
from pwexpire.demand_view import Clearance, View
from pwexpire.exceptions import EnforcementUnavailable
from pwexpire.feed import Feed, feed
from pwexpire.models import Demand, EnforcementState
from tests.support import is_held

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def fresh():
    return Feed()


def test_a_young_view_is_used_as_it_is(fresh, settings, count_queries):
    settings.PWEXPIRE_POLL_SECONDS = 60
    view = fresh.view(fresh.scope())
    with count_queries() as queries:
        assert fresh.view(fresh.scope()) is view
    assert not queries


def test_never_polled_with_none_but_after_an_expiry_here(alice, settings, count_queries):
    settings.PWEXPIRE_POLL_SECONDS = None
    scope = feed.scope()
    feed.view(scope)
    with count_queries() as queries:
        feed.view(scope)
    assert not queries
    services.expire_passwords(alice)
    assert feed.view(scope).is_demanded_after(0, str(alice.pk))


def test_a_poll_reads_one_number_until_it_moves(fresh, alice, count_queries):
    fresh.view(fresh.scope())
    with count_queries() as queries:
        fresh.view(fresh.scope())
    assert len(queries) == 1
    batch = services.expire_passwords(alice)
    assert fresh.view(fresh.scope()).users == {str(alice.pk): batch.number}


def test_a_counter_that_went_back_resets_the_view(fresh, alice):
    services.expire_passwords(alice)
    assert fresh.view(fresh.scope()).users
    Demand.objects.all().delete()
    EnforcementState.objects.update(counter=5)
    assert fresh.view(fresh.scope()).users == {}


def test_verdicts_are_bounded(monkeypatch):
    monkeypatch.setattr(demand_view, "CLEARANCES_MAX", 2)
    view = View()
    for number in range(5):
        view.remember((str(number), "", 0), Clearance(1, None, None))
    assert len(view.clearances) == 2
    monkeypatch.setattr(demand_view, "CLEARANCES_MAX", -1)
    view.clearances.clear()
    view.remember(("1", "", 0), Clearance(1, None, None))
    assert not view.clearances


def test_a_fault_is_no_view(fresh, settings):
    settings.PWEXPIRE_POLL_SECONDS = 60
    scope = fresh.scope()
    with mock.patch.object(fresh, "_read", side_effect=OperationalError("down")) as read:
        with pytest.raises(EnforcementUnavailable):
            fresh.view(scope)
        with pytest.raises(EnforcementUnavailable):
            fresh.view(scope)
        assert read.call_count == 1  # backed off
    fresh._failed.clear()
    view = fresh.view(scope)
    view.started = time.monotonic() - 90
    view.fresh_until = 0
    with mock.patch.object(fresh, "_read", side_effect=OperationalError("down")):
        assert fresh.view(scope) is view  # less than two intervals old
        view.started = time.monotonic() - 130
        fresh._failed.clear()
        with pytest.raises(EnforcementUnavailable):
            fresh.view(scope)


def test_one_polls_and_the_others_go_on(fresh, settings):
    settings.PWEXPIRE_POLL_SECONDS = 60
    scope = fresh.scope()
    view = fresh.view(scope)
    view.started = time.monotonic() - 90
    view.fresh_until = 0
    with fresh._lock:
        assert fresh.view(scope) is view


def test_who_waited_takes_what_was_read_meanwhile(fresh):
    scope = fresh.scope()
    found = []
    fresh._lock.acquire()
    fresh._began = time.monotonic()
    thread = threading.Thread(target=lambda: found.append(fresh.view(scope)))
    thread.start()
    time.sleep(0.1)
    now = time.monotonic()
    fresh._views[scope] = view = View(started=now, fresh_until=now + 60)
    fresh._lock.release()
    thread.join()
    assert found == [view]


@pytest.mark.parametrize(
    "text",
    ['relation "pwexpire_x" does not exist', "no such table: x", "Table 'x' doesn't exist"],
)
def test_code_before_migrate_lets_everybody_in(fresh, text, caplog):
    with mock.patch.object(fresh, "_read", side_effect=ProgrammingError(text)):
        assert fresh.view(fresh.scope()).counter == 0
        fresh._failed.clear()
        assert not fresh.view(fresh.scope()).is_demanded_after(0, "1")
    assert caplog.text.count("manage.py migrate") == 1


def test_other_errors_are_no_missing_table(fresh):
    from django.db import IntegrityError

    with mock.patch.object(fresh, "_read", side_effect=IntegrityError("no such table")):
        with pytest.raises(EnforcementUnavailable):
            fresh.view(fresh.scope())


def test_what_an_open_transaction_shows_is_used_once(fresh, settings):
    settings.PWEXPIRE_POLL_SECONDS = 60
    with transaction.atomic():
        fresh.view(fresh.scope())
        assert fresh.current(fresh.scope()) is None
    fresh.view(fresh.scope())
    assert fresh.current(fresh.scope()) is not None


def test_tenants_by_schema_have_views_of_their_own(monkeypatch):
    fresh = Feed()
    monkeypatch.setattr(connection, "schema_name", "north", raising=False)
    assert fresh.scope() == ("default", "north")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_view_does_not_survive_a_fork(fresh):
    feed.view(feed.scope())
    feed.reset()
    assert feed._views == {}


def test_for_tests_of_projects(alice, client):
    client.force_login(alice)
    testing.reset()
    batch = testing.expire(alice, note="n")
    assert batch.users_expired == 1 and is_held(client)
    with testing.committed():
        services.cancel_expiry(alice)
    assert not is_held(client)


def test_inside_a_test_case_that_never_commits(alice, client):
    client.force_login(alice)
    testing.expire(alice)
    assert is_held(client)

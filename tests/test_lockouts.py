"""Lockouts: counted within a window, or followed by a login from elsewhere."""

from __future__ import annotations

import threading
from datetime import timedelta
from unittest import mock

import pytest
from django.db import OperationalError, connection, connections, transaction
from django.http import HttpRequest
from django.test import Client, RequestFactory
from django.utils import timezone, translation

from pwexpire import services
from pwexpire.models import Demand, ExpiryBatch, PasswordRecord
from pwexpire.services import lockouts
from pwexpire.services.lockouts import (
    after_login,
    clean_address,
    client_address,
    expire_after_lockout,
    lockout_report,
)
from tests.support import NEW, OLD, is_held

pytestmark = pytest.mark.django_db(transaction=True)

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
ATTACKER, ELSEWHERE = "192.0.2.1", "198.51.100.7"


@pytest.fixture(params=[True, "success"])
def mode(request, settings):
    settings.PWEXPIRE_EXPIRE_ON_LOCKOUT = request.param
    return settings


@pytest.fixture
def hook(settings):
    settings.PWEXPIRE_EXPIRE_ON_LOCKOUT = True
    return settings


@pytest.fixture
def success(settings):
    settings.PWEXPIRE_EXPIRE_ON_LOCKOUT = "success"
    return settings


@pytest.fixture
def clock():
    """Time passes; the records do not know."""

    class Clock:
        def __init__(self):
            self.now = timezone.now()

        def __call__(self):
            return self.now

        def forward(self, delta):
            self.now += delta

    clock = Clock()
    with mock.patch("django.utils.timezone.now", clock):
        yield clock


def lock(user, address=ATTACKER):
    return expire_after_lockout(user, window=HOUR, address=address)


def known(user):
    record = PasswordRecord.objects.get(pk=user.pk)
    return record.lockouts, record.lockouts_since, record.lockout_at, record.lockout_address


def log_in(user, address=ELSEWHERE, browser=None):
    browser = browser or Client(REMOTE_ADDR=address)
    data = {"username": user.get_username(), "password": OLD}
    assert browser.post("/accounts/login/", data, REMOTE_ADDR=address).status_code == 302
    return browser


# Several lockouts.


def test_several_within_the_window(hook, alice, clock):
    hook.PWEXPIRE_LOCKOUT_THRESHOLD = 3
    begin = clock.now
    for count in (1, 2):
        assert lock(alice) is None
        assert known(alice) == (count, begin, clock.now, ATTACKER)
        clock.forward(2 * HOUR)
    batch = lock(alice, "2001:db8::1")
    assert batch.users_expired == 1
    since = begin.isoformat(" ", "minutes")
    assert batch.note == f"3 lockouts since {since}. The last one came from 2001:db8::1."
    assert known(alice) == (3, begin, clock.now, "2001:db8::1")
    services.cancel_expiry(alice)
    clock.forward(2 * HOUR)
    assert lock(alice) is None
    assert known(alice)[:2] == (1, clock.now), "that count has had its expiry"


def test_the_count_begins_anew_after_the_window(hook, alice, clock):
    hook.PWEXPIRE_LOCKOUT_THRESHOLD = 2
    lock(alice)
    clock.forward(DAY)
    assert lock(alice) is None
    assert known(alice) == (1, clock.now, clock.now, ATTACKER)
    clock.forward(DAY - timedelta(seconds=1))
    assert lock(alice) is not None


def test_signals_of_one_lockout_count_once(mode, alice, clock, count_queries):
    mode.PWEXPIRE_LOCKOUT_THRESHOLD = 2
    lock(alice)
    before = known(alice)
    with count_queries() as queries:
        for _ in range(50):
            clock.forward(timedelta(minutes=1))
            lock(alice, ELSEWHERE)
    assert known(alice) == before
    assert {query["sql"].split()[0] for query in queries} == {"SELECT"}


def test_an_expiry_that_was_lifted_is_not_made_again_by_the_same_lockout(hook, alice, clock):
    lock(alice)
    services.cancel_expiry(alice)
    clock.forward(HOUR / 2)
    assert lock(alice) is None
    clock.forward(HOUR)
    assert lock(alice) is not None


def test_a_count_of_an_earlier_release(hook, alice):
    hook.PWEXPIRE_LOCKOUT_THRESHOLD = 3
    PasswordRecord.objects.update(lockouts=2, lockout_at=timezone.now() - DAY)
    assert lock(alice) is None
    assert known(alice)[0] == 1


def test_without_a_record_and_without_an_address(mode, alice):
    mode.PWEXPIRE_LOCKOUT_THRESHOLD = 2
    PasswordRecord.objects.all().delete()
    assert lock(alice, None) is None
    assert known(alice)[0] == 1 and known(alice)[3] is None


def test_a_note_without_an_address_in_the_language_of_the_site(hook, alice):
    spoken = []

    def listen(*words):
        spoken.append(translation.get_language())
        return words[0]

    with translation.override("de"), mock.patch.object(lockouts, "ngettext", listen):
        batch = lock(alice, "unix:")
    assert spoken == ["en-us"]
    assert batch.note.startswith("1 lockout since ") and batch.note.endswith(".")
    assert "address" not in batch.note and "from" not in batch.note


def test_whom_it_does_not_concern(mode, alice, bob, eve):
    mode.PWEXPIRE_APPLIES_TO = lambda user: user.pk != alice.pk
    bob.set_unusable_password()
    bob.save()
    services.expire_passwords(eve)
    for user in (alice, bob, eve):
        assert lock(user) is None
    assert not PasswordRecord.objects.exclude(lockout_at=None).exists()


def test_the_cool_down_after_a_change(mode, alice, clock):
    alice.set_password(NEW)
    alice.save()
    clock.forward(DAY - HOUR)
    lock(alice)
    assert known(alice)[0] == 0
    clock.forward(HOUR)
    lock(alice)
    assert known(alice)[2] == clock.now


@pytest.mark.parametrize("threshold", [1, 2])
def test_servers_that_see_the_same_lockout_count_it_once(hook, alice, threshold):
    hook.PWEXPIRE_LOCKOUT_THRESHOLD = threshold
    stale = PasswordRecord.objects.get(pk=alice.pk)
    lock(alice)
    with mock.patch.object(lockouts, "read_password_state", return_value=mock.Mock(demand=0)):
        with mock.patch("django.db.models.query.QuerySet.first", return_value=stale):
            assert lock(alice) is None
    assert ExpiryBatch.objects.count() == (1 if threshold == 1 else 0)


def in_threads(count, work):
    """At the same time, as far as the database lets them."""
    together, faults = threading.Barrier(count), []

    def run(number):
        try:
            together.wait()
            work(number)
        except Exception as error:
            faults.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []


def no_threads():
    return connection.vendor == "sqlite" and connection.is_in_memory_db()


def test_many_servers_at_once(hook, alice, clock):
    if no_threads():
        pytest.skip("a database in memory belongs to one thread")
    hook.PWEXPIRE_LOCKOUT_THRESHOLD = 3
    for count in (1, 2):
        in_threads(6, lambda number: lock(alice, f"192.0.2.{number}"))
        assert known(alice)[0] == count
        clock.forward(2 * HOUR)
    in_threads(6, lambda number: lock(alice))
    assert ExpiryBatch.objects.count() == Demand.objects.count() == 1


# A login after them.


def test_a_guess_that_hit_is_held(success, alice, engine, clock):
    lock(alice)
    assert not ExpiryBatch.objects.exists()
    intruder = log_in(alice)
    assert is_held(intruder)
    batch = ExpiryBatch.objects.get()
    since = clock.now.isoformat(" ", "minutes")
    assert batch.reason == "lockout" and batch.note == (
        f"1 lockout since {since}. The last one came from {ATTACKER}. "
        "Then a login from another address succeeded."
    )
    assert ELSEWHERE not in batch.note
    assert known(alice) == (0, None, clock.now, None)


def test_the_session_of_the_login_is_held_at_once(success, alice):
    """Where the login is looked at before its session is judged."""
    lock(alice)
    request = RequestFactory().post("/", REMOTE_ADDR=ELSEWHERE)
    assert after_login(request, alice) is not None
    assert services.password_status(alice).must_change
    browser = log_in(alice, ATTACKER)
    assert browser.session["password_expired"] is True


def test_under_atomic_requests(success, alice, monkeypatch):
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)
    lock(alice)
    assert is_held(log_in(alice))


@pytest.mark.parametrize("noted", [ATTACKER, f"::ffff:{ATTACKER}", f" {ATTACKER}"])
@pytest.mark.parametrize("seen", [ATTACKER, f"::ffff:{ATTACKER}"])
def test_a_login_from_the_same_address(success, alice, noted, seen):
    lock(alice, noted)
    before = known(alice)
    browser = log_in(alice, seen)
    assert not is_held(browser) and known(alice) == before
    assert is_held(log_in(alice)), "what was noted is still there"
    assert is_held(browser)


@pytest.mark.parametrize(("noted", "seen"), [(None, ELSEWHERE), (ATTACKER, ""), (None, "")])
def test_an_unknown_address_is_another(success, alice, noted, seen):
    lock(alice, noted)
    assert is_held(log_in(alice, seen))


def test_without_a_request(success, alice):
    lock(alice)
    assert after_login(None, alice) is not None


@pytest.mark.parametrize(("passed", "held"), [(DAY - HOUR, True), (DAY, False)])
def test_the_window_before_a_login(success, alice, clock, passed, held):
    lock(alice)
    clock.forward(passed)
    assert is_held(log_in(alice)) is held


def test_a_login_after_fewer_lockouts_than_the_threshold(success, alice, clock):
    success.PWEXPIRE_LOCKOUT_THRESHOLD = 2
    lock(alice)
    clock.forward(2 * HOUR)
    assert not is_held(log_in(alice))
    lock(alice)
    assert not ExpiryBatch.objects.exists()
    assert is_held(log_in(alice))


def test_a_change_clears_what_was_noted(success, alice):
    lock(alice)
    alice.set_password(OLD + "x")
    alice.save()
    assert known(alice) == (0, None, None, None)
    assert after_login(None, alice) is None


def test_once_only(success, alice, count_queries):
    lock(alice)
    for _ in range(3):
        log_in(alice)
        lock(alice)
    assert ExpiryBatch.objects.count() == 1


def test_logins_that_it_does_not_concern(success, alice, bob, eve, settings):
    for user in (alice, bob, eve):
        lock(user)
    services.expire_passwords(alice)
    bob.set_unusable_password()
    settings.PWEXPIRE_APPLIES_TO = lambda user: user.pk != eve.pk
    for user in (alice, bob, eve):
        assert after_login(None, user) is None
    assert not ExpiryBatch.objects.filter(reason="lockout").exists()


@pytest.mark.parametrize("value", [False, True])
def test_a_login_costs_nothing_where_nobody_wants_it(settings, alice, count_queries, value):
    settings.PWEXPIRE_EXPIRE_ON_LOCKOUT = value
    PasswordRecord.objects.update(lockouts=1, lockout_at=timezone.now())
    with count_queries() as queries:
        assert after_login(None, alice) is None
    assert len(queries) == 0


def test_a_login_without_lockouts_costs_one_query(success, alice, count_queries):
    with count_queries() as queries:
        assert after_login(None, alice) is None
    assert len(queries) == 1


def test_a_fault_keeps_nobody_out(success, alice, caplog):
    lock(alice)
    with mock.patch.object(lockouts, "expire_passwords", side_effect=OperationalError("down")):
        assert not is_held(log_in(alice))
    assert "down" in caplog.text
    assert is_held(log_in(alice)), "it was not forgotten"


def test_a_fault_leaves_the_transaction_whole(success, alice):
    def break_it(*args):
        with connection.cursor() as cursor:
            cursor.execute("SELECT * FROM there_is_no_such_table")

    with transaction.atomic(), mock.patch.object(lockouts, "_expire_after_success", break_it):
        assert after_login(None, alice) is None
        alice.email = "kept@example.com"
        alice.save()
    alice.refresh_from_db()
    assert alice.email == "kept@example.com"


def test_two_logins_at_once(success, alice):
    if no_threads():
        pytest.skip("a database in memory belongs to one thread")
    lock(alice)
    in_threads(4, lambda number: after_login(None, alice))
    assert Demand.objects.count() == 1
    assert ExpiryBatch.objects.filter(number__isnull=False).count() == 1


# Addresses.


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::FFFF:192.0.2.1", "192.0.2.1"),
        ("2001:DB8:0::1", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("192.0.2.1:8000", None),
        ("unix:", None),
        ("", None),
        (None, None),
        (7, None),
        ("' OR 1=1", None),
    ],
)
def test_one_spelling_for_each_address(given, found):
    assert clean_address(given) == found


def test_the_address_of_a_client(settings):
    request = RequestFactory().get("/", REMOTE_ADDR=ATTACKER)
    assert client_address(request) == ATTACKER
    assert client_address(None) is client_address(HttpRequest()) is None
    settings.AXES_CLIENT_IP_CALLABLE = lambda request: ELSEWHERE
    with mock.patch.object(lockouts.apps, "is_installed", return_value=False):
        assert client_address(request) == ATTACKER


def test_the_address_as_django_axes_sees_it(settings):
    if "axes" not in settings.INSTALLED_APPS:
        pytest.skip("django-axes is not installed")
    settings.AXES_CLIENT_IP_CALLABLE = lambda request: ELSEWHERE
    assert client_address(RequestFactory().get("/", REMOTE_ADDR=ATTACKER)) == ELSEWHERE


# What it did.


def test_the_report(hook, users, clock, monkeypatch):
    monkeypatch.setattr(lockouts, "PAGE", 2)
    people = users(5)
    begin = clock.now
    batches = []
    for user in people:
        batches.append(lock(user))
        clock.forward(HOUR)
    people[0].set_password(NEW)
    people[0].save()
    services.cancel_expiry(people[1])
    services.cancel_expiry(batches[2])
    found = list(lockout_report().expiries)
    assert [one.user for one in found] == [user.pk for user in reversed(people)]
    assert [one.batch for one in found] == [batch.pk for batch in reversed(batches)]
    assert [one.still_open for one in found] == [True, True, False, False, False]
    assert all(one.note.startswith("1 lockout since") for one in found)
    assert [one.when for one in found][-1] == begin
    later = lockout_report(since=begin + 3 * HOUR)
    assert [one.user for one in later.expiries] == [people[4].pk, people[3].pk]


def test_the_report_of_what_was_only_noted(success, users, clock):
    assert (lockout_report().users_noted, lockout_report().lockouts_noted) == (0, 0)
    for user in users(3):
        lock(user)
    clock.forward(2 * HOUR)
    lock(user)
    report = lockout_report()
    assert list(report.expiries) == []
    assert (report.users_noted, report.lockouts_noted) == (3, 4)
    report = lockout_report(since=clock.now - HOUR)
    assert (report.users_noted, report.lockouts_noted) == (1, 2)


def test_the_report_takes_few_queries(hook, users, count_queries):
    for user in users(20):
        lock(user)
    with count_queries() as queries:
        assert len(list(lockout_report().expiries)) == 20
    assert len(queries) <= 3

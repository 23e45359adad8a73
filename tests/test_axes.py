from __future__ import annotations

from datetime import timedelta
from unittest import mock

import pytest
from django.db import transaction
from django.test import RequestFactory
from django.utils import timezone

from pwexpire import services
from pwexpire.models import ExpiryBatch, PasswordRecord
from tests.support import NEW, OLD, change_password, is_held

pytest.importorskip("axes")
from axes.signals import user_locked_out

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def hook(settings):
    settings.PWEXPIRE_EXPIRE_ON_LOCKOUT = True
    return settings


def lock(username, request=None):
    user_locked_out.send(
        "axes",
        request=request or RequestFactory().post("/"),
        username=username,
        ip_address="127.0.0.1",
    )


def test_off_by_default(alice):
    lock("alice")
    assert not ExpiryBatch.objects.exists()


def test_a_lockout_expires_the_user_and_holds_the_open_session(hook, engine, server, alice, bob):
    browser, other = server(), server()
    browser.post("/accounts/login/", {"username": "alice", "password": OLD})
    other.post("/accounts/login/", {"username": "bob", "password": OLD})
    lock("alice")
    assert is_held(browser) and not is_held(other)
    assert services.password_status(alice).reason == "lockout"


@pytest.mark.parametrize("name", [None, "", "nobody", "ALICE", "alice\x00", "\x00", 7, b"alice"])
def test_row_35_odd_names_write_nothing(hook, alice, name):
    lock(name)
    assert not ExpiryBatch.objects.exists()
    assert not PasswordRecord.objects.exclude(lockouts=0).exists()


def test_row_28_a_hundred_attempts_write_once(hook, alice, count_queries):
    lock("alice")
    with count_queries() as queries:
        for _ in range(100):
            lock("alice")
    assert not [q for q in queries if q["sql"].startswith(("INSERT", "UPDATE", "DELETE"))]
    assert ExpiryBatch.objects.count() == 1


def test_the_threshold_counts_one_per_window(hook, alice):
    hook.PWEXPIRE_LOCKOUT_THRESHOLD = 2
    for _ in range(100):
        lock("alice")
    assert PasswordRecord.objects.get(pk=alice.pk).lockouts == 1
    assert not ExpiryBatch.objects.exists()
    PasswordRecord.objects.update(lockout_at=timezone.now() - timedelta(days=2))
    lock("alice")
    assert services.password_status(alice).must_change


def test_two_servers_count_one_lockout_once(hook, alice):
    from pwexpire.services import attempts

    hook.PWEXPIRE_LOCKOUT_THRESHOLD = 2
    PasswordRecord.objects.all().delete()
    stale = PasswordRecord(user=alice)
    PasswordRecord.objects.create(user=alice, lockout_at=timezone.now(), lockouts=1)
    with mock.patch.object(attempts.PasswordRecord.objects, "using") as using:
        records = using.return_value
        records.filter.return_value.first.return_value = stale
        records.filter.return_value.update.return_value = 0
        with mock.patch.object(attempts, "judge", return_value=mock.Mock(demand=0)):
            assert attempts.expire_after_lockout(alice, window=timedelta(days=1)) is None
    assert not ExpiryBatch.objects.exists()


def test_the_first_lockout_of_a_user_without_a_record(hook, alice):
    hook.PWEXPIRE_LOCKOUT_THRESHOLD = 2
    PasswordRecord.objects.all().delete()
    lock("alice")
    assert PasswordRecord.objects.get(pk=alice.pk).lockouts == 1


def test_a_cool_down_after_a_change(hook, alice):
    lock("alice")
    alice.set_password(NEW)
    alice.save()
    lock("alice")
    assert not services.password_status(alice).must_change
    PasswordRecord.objects.update(renewed_at=timezone.now() - timedelta(days=2))
    lock("alice")
    assert services.password_status(alice).must_change


def test_unusable_passwords_do_not_apply(hook, alice):
    alice.set_unusable_password()
    alice.save()
    lock("alice")
    assert not ExpiryBatch.objects.exists()


def test_it_never_raises_and_leaves_the_transaction_whole(hook, alice):
    with (
        mock.patch("pwexpire.contrib.axes.expire_after_lockout", side_effect=ZeroDivisionError),
        transaction.atomic(),
    ):
        lock("alice")
        alice.email = "kept@example.com"
        alice.save()
    alice.refresh_from_db()
    assert alice.email == "kept@example.com"


def test_inside_a_transaction_it_waits_for_the_commit(hook, alice):
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        lock("alice")
        raise ZeroDivisionError
    assert not ExpiryBatch.objects.exists()
    with transaction.atomic():
        lock("alice")
    assert services.password_status(alice).must_change


def test_the_change_page_does_not_feed_the_hook(hook, client, alice):
    from django.contrib.auth.signals import user_login_failed

    hook.AXES_FAILURE_LIMIT = 1
    hook.AUTHENTICATION_BACKENDS = [
        "axes.backends.AxesStandaloneBackend",
        "django.contrib.auth.backends.ModelBackend",
    ]
    seen = []

    def listen(sender, request, **kwargs):
        seen.append((request.GET, request.POST, request.META.get("HTTP_COOKIE")))

    user_login_failed.connect(listen)
    client.force_login(alice, "django.contrib.auth.backends.ModelBackend")
    try:
        change_password(client, old="wrong")
    finally:
        user_login_failed.disconnect(listen)
    assert len(seen) == 1 and not seen[0][0] and not seen[0][1] and seen[0][2] is None
    assert not ExpiryBatch.objects.exists()


@pytest.mark.parametrize("limit", [3, lambda request, credentials: 3])
def test_the_change_page_stops_before_the_limit_of_axes(settings, limit):
    from pwexpire.conf import conf

    settings.AXES_FAILURE_LIMIT = limit
    assert conf.change_attempts == (2 if limit == 3 else 5)

from __future__ import annotations

import re
from datetime import timedelta
from unittest import mock

import pytest
from django.contrib.auth import get_user_model
from django.db import OperationalError, transaction
from django.test import Client, RequestFactory
from django.utils import timezone

from pwexpire import services
from pwexpire.models import ExpiryBatch, PasswordRecord
from pwexpire.services.lockouts import after_login
from tests.support import NEW, OLD, change_password, is_held

pytest.importorskip("axes")
from axes.handlers.proxy import AxesProxyHandler
from axes.signals import user_locked_out
from axes.utils import reset

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


def test_another_spelling_that_finds_the_user_is_a_guess_at_their_password(hook, alice):
    lock("ALICE")
    found = get_user_model().objects.filter(username="ALICE").exists()  # by the database
    assert services.password_status(alice).must_change == found


def test_a_login_that_ignores_case_is_guessed_at_in_any_case(hook, alice, monkeypatch):
    manager = type(get_user_model()._default_manager)

    def find(self, username):
        return self.get(username__iexact=username)

    monkeypatch.setattr(manager, "get_by_natural_key", find)
    lock("ALICE")
    assert services.password_status(alice).reason == "lockout"


@pytest.mark.parametrize("name", [None, "", "nobody", "ALICIA", "alice\x00", "\x00", 7, b"alice"])
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
    assert not PasswordRecord.objects.exclude(lockouts=0).exists()
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


MODEL_BACKEND = "django.contrib.auth.backends.ModelBackend"
HANDLERS = ["database.AxesDatabaseHandler", "cache.AxesCacheHandler"]
PARAMETERS = [
    ["username"],
    [["username", "ip_address"]],
    ["ip_address"],
    ["username", "ip_address"],
]
DOORS = ["/accounts/login/", "/admin/login/"]


@pytest.fixture
def axes(hook):
    """Real failed logins, up to the lockout."""
    from django.core.cache import cache

    hook.AUTHENTICATION_BACKENDS = ["axes.backends.AxesStandaloneBackend", MODEL_BACKEND]
    hook.MIDDLEWARE = [*hook.MIDDLEWARE, "axes.middleware.AxesMiddleware"]
    hook.AXES_COOLOFF_TIME = timedelta(hours=1)

    def use(handler, parameters=("username",)):
        hook.AXES_HANDLER = f"axes.handlers.{handler}"
        hook.AXES_LOCKOUT_PARAMETERS = list(parameters)
        AxesProxyHandler.get_implementation(force=True)
        return hook

    yield use
    cache.clear()
    AxesProxyHandler.implementation = None


def attempts(door, name="alice", password="guess", count=4, **extra):
    browser = Client()
    data = {"username": name, "password": password}
    return [browser.post(door, data, **extra) for _ in range(count)]


def told(responses):
    """What can be seen from outside; the token of a form is another one each time."""
    forms = [
        re.sub(rb'name="csrfmiddlewaretoken" value="[^"]*"', b"", one.content) for one in responses
    ]
    return [
        (one.status_code, one["Content-Type"], form)
        for one, form in zip(responses, forms, strict=True)
    ]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("parameters", PARAMETERS)
@pytest.mark.parametrize("handler", HANDLERS)
def test_real_failures_expire_and_are_answered_as_ever(axes, root, handler, parameters, door):
    hook = axes(handler, parameters)
    hook.PWEXPIRE_EXPIRE_ON_LOCKOUT = False
    before = told(attempts(door, "root", REMOTE_ADDR="192.0.2.1"))
    assert not ExpiryBatch.objects.exists()
    AxesProxyHandler.get_implementation().cache.clear() if "cache" in handler else reset()
    hook.PWEXPIRE_EXPIRE_ON_LOCKOUT = True
    assert told(attempts(door, "root", REMOTE_ADDR="192.0.2.1")) == before
    assert before[-1][0] == 429
    assert services.password_status(root).reason == "lockout"
    assert "192.0.2.1" in ExpiryBatch.objects.get().note


@pytest.mark.parametrize("wrong", [ZeroDivisionError, OperationalError])
@pytest.mark.parametrize("handler", HANDLERS)
def test_a_fault_of_ours_changes_no_answer(axes, alice, caplog, handler, wrong):
    axes(handler)
    with mock.patch("pwexpire.contrib.axes.expire_after_lockout", side_effect=wrong):
        codes = [one.status_code for one in attempts("/accounts/login/")]
    assert codes == [200, 200, 429, 429]
    assert "could not be followed up" in caplog.text


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("handler", HANDLERS)
def test_a_refused_login_counts_as_a_wrong_one(axes, alice, bob, handler, reset):
    hook = axes(handler)
    hook.PWEXPIRE_EXPIRE_ON_LOCKOUT = False
    hook.AXES_RESET_ON_SUCCESS = reset
    hook.AUTHENTICATION_BACKENDS = [
        "axes.backends.AxesStandaloneBackend",
        "pwexpire.backends.PasswordExpiryBackend",
    ]
    services.expire_passwords(alice, require=services.Require.RESET)
    right = attempts("/accounts/login/", "alice", OLD)
    wrong = attempts("/accounts/login/", "bob", "guess")
    assert [one.status_code for one in right] == [200, 200, 429, 429]
    assert [one.status_code for one in wrong] == [200, 200, 429, 429]


@pytest.mark.parametrize("handler", HANDLERS)
def test_a_lockout_is_noted_and_a_login_from_elsewhere_expires(axes, alice, handler):
    hook = axes(handler)
    hook.PWEXPIRE_EXPIRE_ON_LOCKOUT = "success"
    attempts("/accounts/login/", REMOTE_ADDR="192.0.2.1")
    record = PasswordRecord.objects.get(pk=alice.pk)
    assert (record.lockouts, record.lockout_address) == (1, "192.0.2.1")
    assert not ExpiryBatch.objects.exists()
    request = RequestFactory().post("/", REMOTE_ADDR="192.0.2.2")
    batch = after_login(request, alice)
    assert batch is not None and services.password_status(alice).reason == "lockout"

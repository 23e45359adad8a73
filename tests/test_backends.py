"""Logins that are refused, and passwords that are looked at while they are in clear."""

from __future__ import annotations

import base64
import logging
from contextlib import contextmanager
from datetime import timedelta
from unittest import mock

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth import aauthenticate, authenticate, get_user_model
from django.contrib.auth.backends import BaseBackend, ModelBackend
from django.contrib.auth.hashers import MD5PasswordHasher
from django.contrib.auth.signals import user_login_failed
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import OperationalError, ProgrammingError, connection, transaction
from django.test import Client, RequestFactory
from django.utils import timezone

from pwexpire import backends, services
from pwexpire.backends import PasswordExpiryBackend, PasswordExpiryMixin
from pwexpire.models import Demand, ExpiryBatch, PasswordRecord, Require
from pwexpire.policy import Policy
from tests.support import NEW, OLD, change_password, is_held, session_of

pytestmark = pytest.mark.django_db(transaction=True)

OURS = "pwexpire.backends.PasswordExpiryBackend"
HERE = "tests.test_backends."
LOCKS = [Require.RESET, Require.DENY]


@pytest.fixture(autouse=True)
def guarded(settings):
    settings.AUTHENTICATION_BACKENDS = [OURS]
    settings.ROOT_URLCONF = "tests.testapp.urls_login"
    return settings


@pytest.fixture
def staff(alice):
    alice.is_staff = True
    alice.save()
    return alice


@contextmanager
def failures():
    seen = []

    def listen(sender, credentials, request, **kwargs):
        seen.append((credentials, getattr(request, "pwexpire_refused", None)))

    user_login_failed.connect(listen)
    yield seen
    user_login_failed.disconnect(listen)


def by_form(browser, password):
    return browser.post("/accounts/login/", {"username": "alice", "password": password})


def by_admin(browser, password):
    return browser.post("/admin/login/?next=/", {"username": "alice", "password": password})


def by_json(browser, password):
    return browser.post("/api/login/", {"username": "alice", "password": password})


def by_async(browser, password):
    return browser.post("/api/async-login/", {"username": "alice", "password": password})


def by_basic(browser, password):
    given = base64.b64encode(f"alice:{password}".encode()).decode()
    return browser.get("/api/basic/", headers={"authorization": f"Basic {given}"})


DOORS = [by_form, by_admin, by_json, by_async, by_basic]


@pytest.mark.parametrize("require", LOCKS)
@pytest.mark.parametrize("door", DOORS)
def test_a_right_password_is_answered_as_a_wrong_one(staff, server, door, require):
    services.expire_passwords(staff, require=require)
    browser, other = server(), server()
    with failures() as seen:
        right, wrong = door(browser, OLD), door(other, "wrong")
    assert right.status_code == wrong.status_code
    assert "_auth_user_id" not in session_of(browser)
    hidden = {"username": "alice", "password": "*" * 20}
    assert seen == [(hidden, require.value), (hidden, None)]
    staff.refresh_from_db()
    assert staff.last_login is None, "a login would kill the mailed link"


@pytest.mark.parametrize("door", DOORS)
def test_a_reset_password_is_let_in(staff, server, door):
    services.expire_passwords(staff, require=Require.RESET)
    staff.set_password(NEW)
    staff.save()
    with failures() as seen:
        assert door(server(), NEW).status_code in (200, 302)
    assert seen == []


def test_a_change_is_demanded_inside(alice, client):
    services.expire_passwords(alice, require=Require.CHANGE)
    assert by_form(client, OLD).status_code == 302
    assert is_held(client)


class Anyone(BaseBackend):
    """Lets everybody in, and keeps whom it was asked for."""

    asked: list[str] = []

    def authenticate(self, request, username=None, password=None):
        self.asked.append(username)
        return get_user_model().objects.get(username=username)


def test_no_other_backend_is_asked(guarded, alice):
    services.expire_passwords(alice, require=Require.RESET)
    guarded.AUTHENTICATION_BACKENDS = [OURS, HERE + "Anyone"]
    Anyone.asked.clear()
    assert authenticate(None, username="alice", password=OLD) is None
    assert Anyone.asked == []
    assert authenticate(None, username="alice", password="wrong") == alice
    assert Anyone.asked == ["alice"]


def cost_of(username, password, count_queries):
    hashings = []
    encode = MD5PasswordHasher.encode

    def counted(self, *args, **kwargs):
        hashings.append(args)
        return encode(self, *args, **kwargs)

    with mock.patch.object(MD5PasswordHasher, "encode", counted), count_queries() as queries:
        assert authenticate(None, username=username, password=password) is None
    return len(hashings), len(queries)


def test_a_wrong_password_costs_what_it_costs_without_us(alice, bob, count_queries):
    services.expire_passwords(alice, require=Require.RESET)
    costs = {cost_of(name, "wrong", count_queries) for name in ("alice", "bob", "nobody")}
    assert costs == {(1, 1)}


def test_an_inactive_user_is_not_judged(alice):
    alice.is_active = False
    alice.save()
    with mock.patch.object(backends, "read_password_state") as password_state:
        assert authenticate(None, username="alice", password=OLD) is None
    assert not password_state.called


@pytest.mark.parametrize("enforce", [False, "report"])
def test_nobody_is_refused_while_nothing_is_enforced(guarded, alice, enforce):
    services.expire_passwords(alice, require=Require.RESET)
    guarded.PWEXPIRE_ENFORCE = enforce
    guarded.PWEXPIRE_FAIL_CLOSED = True
    assert authenticate(None, username="alice", password=OLD) == alice
    with mock.patch.object(backends, "read_password_state", side_effect=OperationalError("down")):
        assert authenticate(None, username="alice", password=OLD) == alice


def test_with_enforcement_switched_off_nobody_is_asked_about(guarded, alice):
    guarded.PWEXPIRE_ENFORCE = False
    with mock.patch.object(backends, "read_password_state") as password_state:
        assert authenticate(None, username="alice", password=OLD) == alice
        assert async_to_sync(aauthenticate)(None, username="alice", password=OLD) == alice
    assert not password_state.called


@pytest.mark.parametrize(
    ("closed", "fault", "let_in"),
    [
        (False, OperationalError("down"), True),
        (True, OperationalError("down"), False),
        (True, ProgrammingError('relation "pwexpire_demand" does not exist'), True),
    ],
)
def test_a_fault_of_the_database(guarded, alice, caplog, closed, fault, let_in):
    guarded.PWEXPIRE_FAIL_CLOSED = closed
    with mock.patch.object(backends, "read_password_state", side_effect=fault), failures() as seen:
        user = authenticate(RequestFactory().post("/"), username="alice", password=OLD)
    assert (user == alice) is let_in
    assert len(seen) == (0 if let_in else 1)
    assert str(fault) in caplog.text and OLD not in caplog.text


def test_a_fault_leaves_the_transaction_whole(alice):
    def break_it(user):
        with connection.cursor() as cursor:
            cursor.execute("SELECT * FROM there_is_no_such_table")

    with transaction.atomic(), mock.patch.object(backends, "read_password_state", break_it):
        assert authenticate(None, username="alice", password=OLD) == alice
        alice.email = "kept@example.com"
        alice.save()
    alice.refresh_from_db()
    assert alice.email == "kept@example.com"


def test_a_login_under_atomic_requests(alice, client, monkeypatch):
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)
    services.expire_passwords(alice, require=Require.RESET)
    assert by_form(client, OLD).status_code == 200
    assert "_auth_user_id" not in session_of(client)


def test_an_aged_password_that_has_to_be_reset(guarded, alice):
    guarded.PWEXPIRE_POLICY = Policy(max_age=timedelta(days=1), require="reset")
    assert authenticate(None, username="alice", password=OLD) == alice
    PasswordRecord.objects.update(changed_at=timezone.now() - timedelta(days=2))
    assert authenticate(None, username="alice", password=OLD) is None
    guarded.PWEXPIRE_POLICY = Policy(max_age=timedelta(days=1), require="reset", grace_logins=1)
    assert authenticate(None, username="alice", password=OLD) == alice
    services.expire_passwords(alice, require=Require.RESET)
    assert authenticate(None, username="alice", password=OLD) is None, "no grace for a demand"


def test_a_temporary_password_that_ran_out(guarded, alice):
    guarded.PWEXPIRE_POLICY = Policy(
        change_after_admin_reset=True, temporary_for=timedelta(hours=1)
    )
    PasswordRecord.objects.update(given_at=timezone.now(), given_new=False)
    assert authenticate(None, username="alice", password=OLD) == alice
    PasswordRecord.objects.update(given_at=timezone.now() - timedelta(hours=2))
    assert authenticate(None, username="alice", password=OLD) is None


class Lenient(PasswordExpiryBackend):
    def should_refuse(self, request, user, password_state):
        return not user.is_superuser


def test_a_site_has_its_own_rules(guarded, alice, root):
    guarded.AUTHENTICATION_BACKENDS = [HERE + "Lenient"]
    services.expire_passwords([alice, root], require=Require.DENY)
    assert authenticate(None, username="alice", password=OLD) is None
    assert authenticate(None, username="root", password=OLD) == root


class Tokens:
    """No subclass of anything, as LDAP's; other credentials."""

    def authenticate(self, request, token):
        return get_user_model().objects.filter(username=token).first()


class TokenBackend(PasswordExpiryMixin, Tokens):
    pass


class SyncOnly(BaseBackend):
    def authenticate(self, request, username=None, password=None):
        user = get_user_model().objects.get(username=username)
        return user if user.check_password(password) else None


class SyncOnlyBackend(PasswordExpiryMixin, SyncOnly):
    pass


def test_other_credentials_are_for_other_backends(guarded, alice):
    guarded.AUTHENTICATION_BACKENDS = [HERE + "TokenBackend", OURS]
    assert authenticate(None, username="alice", password=OLD).backend == OURS
    assert authenticate(None, token="alice").backend == HERE + "TokenBackend"
    services.expire_passwords(alice, require=Require.RESET)
    assert authenticate(None, token="alice") is None
    assert async_to_sync(PasswordExpiryBackend().aauthenticate)(None, 1, 2, 3) is None


def test_given_by_position(guarded, alice):
    guarded.PWEXPIRE_LOGIN_VALIDATORS = [{"NAME": HERE + "Refuses"}]
    assert PasswordExpiryBackend().authenticate(None, "alice", OLD) == alice
    assert Demand.objects.count() == 1
    services.expire_passwords(alice, require=Require.DENY)
    with pytest.raises(PermissionDenied):
        PasswordExpiryBackend().authenticate(None, "alice", OLD)


def test_a_backend_that_knows_nothing_of_async_is_judged_once(guarded, alice):
    guarded.AUTHENTICATION_BACKENDS = [HERE + "SyncOnlyBackend"]
    with mock.patch.object(
        backends, "read_password_state", wraps=backends.read_password_state
    ) as password_state:
        assert async_to_sync(aauthenticate)(None, username="alice", password=OLD) == alice
    assert password_state.call_count == 1
    services.expire_passwords(alice, require=Require.RESET)
    assert async_to_sync(aauthenticate)(None, username="alice", password=OLD) is None


def test_async_hashing_is_left_to_django(alice):
    inner = ModelBackend.aauthenticate
    with mock.patch.object(
        ModelBackend, "aauthenticate", autospec=True, side_effect=inner
    ) as asked:
        assert async_to_sync(aauthenticate)(None, username="alice", password=OLD) == alice
        assert async_to_sync(aauthenticate)(None, username="alice", password="wrong") is None
    assert asked.call_count == 2


# Weak at login.


class Refuses:
    """``code``: of the error. Keeps what it was shown."""

    shown: list[tuple[str, str]] = []

    def __init__(self, code="too_plain"):
        self.code = code

    def validate(self, password, user=None):
        self.shown.append((password, user.get_username()))
        raise ValidationError("no", code=self.code)


class Former(Refuses):
    at_login = False


class Broken:
    def validate(self, password, user=None):
        raise ZeroDivisionError(f"over {password}")


def refusing(*codes):
    return [{"NAME": HERE + "Refuses", "OPTIONS": {"code": code}} for code in codes]


@pytest.fixture
def shown():
    Refuses.shown.clear()
    return Refuses.shown


def test_off_by_default(guarded, alice, client, shown):
    guarded.AUTH_PASSWORD_VALIDATORS = refusing("weak")
    by_form(client, OLD)
    assert not is_held(client) and shown == []


@pytest.mark.parametrize("door", [by_form, by_admin, by_json, by_async])
def test_the_session_of_a_weak_password_is_held(guarded, staff, engine, server, door, shown):
    guarded.PWEXPIRE_LOGIN_VALIDATORS = refusing("too_plain", "password_breached")
    browser = server()
    door(browser, OLD)
    assert is_held(browser)
    assert shown == [(OLD, "alice")] * 2
    batch = ExpiryBatch.objects.get()
    assert (batch.reason, batch.note) == ("compromised", "too_plain, password_breached")


def test_held_at_once_and_not_again(guarded, alice, client, shown):
    guarded.PWEXPIRE_LOGIN_VALIDATORS = refusing("too_plain")
    by_form(client, OLD)
    assert session_of(client)["password_expired"] is True
    for _ in range(3):
        by_form(Client(), OLD)
    assert len(shown) == ExpiryBatch.objects.count() == 1
    assert ExpiryBatch.objects.get().reason == "policy"
    guarded.PWEXPIRE_LOGIN_VALIDATORS = []
    change_password(client)
    assert not is_held(client)


def test_a_wrong_password_is_not_looked_at(guarded, alice, client, shown):
    guarded.PWEXPIRE_LOGIN_VALIDATORS = refusing("too_plain")
    by_form(client, "wrong")
    assert shown == [] and not ExpiryBatch.objects.exists()


def test_the_validators_of_the_site(guarded, alice, client, shown):
    guarded.PWEXPIRE_LOGIN_VALIDATORS = True
    guarded.AUTH_PASSWORD_VALIDATORS = [
        {
            "NAME": "django.contrib.auth.password_validation.MinimumLengthValidator",
            "OPTIONS": {"min_length": 40},
        },
        {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
        {"NAME": HERE + "Former"},
    ]
    alice.set_password("alice@example.co")
    alice.save()
    by_form(client, "alice@example.co")
    assert is_held(client) and shown == []
    assert ExpiryBatch.objects.get().note == "password_too_short, password_too_similar"


def test_validators_are_made_once(guarded, alice):
    guarded.PWEXPIRE_LOGIN_VALIDATORS = [{"NAME": HERE + "Broken"}]
    made = backends._login_validators()
    assert backends._login_validators() is made
    guarded.PWEXPIRE_LOGIN_VALIDATORS = refusing("weak")
    assert [type(one) for one in backends._login_validators()] == [Refuses]


def test_an_error_without_a_code_and_one_with_a_long_one(guarded, alice, client):
    guarded.PWEXPIRE_LOGIN_VALIDATORS = refusing(None, "x" * 500)
    by_form(client, OLD)
    assert ExpiryBatch.objects.get().note == "invalid, " + "x" * 50


def test_a_broken_validator_keeps_nobody_out_and_not_the_others(guarded, alice, client, caplog):
    guarded.PWEXPIRE_LOGIN_VALIDATORS = [{"NAME": HERE + "Broken"}]
    by_form(client, OLD)
    assert not is_held(client)
    assert "ZeroDivisionError" in caplog.text and OLD not in caplog.text
    guarded.PWEXPIRE_LOGIN_VALIDATORS = [{"NAME": HERE + "Broken"}, *refusing("weak")]
    by_form(client, OLD)
    assert is_held(client)


def test_a_validator_that_is_not_there(guarded, alice, client, caplog):
    guarded.PWEXPIRE_LOGIN_VALIDATORS = [{"NAME": "nowhere.Validator"}]
    by_form(client, OLD)
    assert not is_held(client) and "ImproperlyConfigured" in caplog.text


def test_a_fault_while_expiring_keeps_nobody_out(guarded, alice, client, caplog):
    guarded.PWEXPIRE_LOGIN_VALIDATORS = refusing("weak")
    with mock.patch.object(backends, "expire_passwords", side_effect=OperationalError(OLD)):
        by_form(client, OLD)
    assert not is_held(client)
    assert "OperationalError" in caplog.text and OLD not in caplog.text


def test_users_whom_it_does_not_concern(guarded, alice, bob, shown):
    guarded.PWEXPIRE_LOGIN_VALIDATORS = refusing("weak")
    guarded.PWEXPIRE_APPLIES_TO = lambda user: user.get_username() != "alice"
    authenticate(None, username="alice", password=OLD)
    assert shown == [] and not ExpiryBatch.objects.exists()
    authenticate(None, username="bob", password=OLD)
    assert [one.user for one in Demand.objects.all()] == [bob]


def test_a_login_without_a_password(guarded, alice, shown):
    guarded.AUTHENTICATION_BACKENDS = [HERE + "TokenBackend"]
    guarded.PWEXPIRE_LOGIN_VALIDATORS = refusing("weak")
    assert authenticate(None, token="alice") == alice
    assert shown == []


@pytest.mark.parametrize(("enforce", "looked"), [(False, 0), ("report", 1)])
def test_what_is_not_enforced_is_still_counted(guarded, alice, client, shown, enforce, looked):
    guarded.PWEXPIRE_ENFORCE = enforce
    guarded.PWEXPIRE_LOGIN_VALIDATORS = refusing("weak")
    by_form(client, OLD)
    assert client.get("/").content == b"alice"
    assert len(shown) == Demand.objects.count() == looked


def test_under_atomic_requests_the_next_request_is_held(guarded, alice, client, monkeypatch):
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)
    guarded.PWEXPIRE_LOGIN_VALIDATORS = refusing("weak")
    by_form(client, OLD)
    assert is_held(client)


def all_that_is_stored():
    found = []
    with connection.cursor() as cursor:
        for table in connection.introspection.table_names(cursor):
            cursor.execute(f"SELECT * FROM {connection.ops.quote_name(table)}")
            found += [str(row) for row in cursor.fetchall()]
    return "\n".join(found)


@pytest.mark.parametrize("codes", [(), ("too_plain", "password_breached")])
def test_the_password_is_nowhere(guarded, staff, server, caplog, codes):
    caplog.set_level(logging.DEBUG)
    guarded.PWEXPIRE_LOGIN_VALIDATORS = [{"NAME": HERE + "Broken"}, *refusing(*codes)]
    for door in DOORS:
        door(server(), OLD)
    services.expire_passwords(staff, require=Require.RESET)
    for door in DOORS:
        door(server(), OLD)
    stored = all_that_is_stored()
    assert "alice" in stored and OLD not in stored
    assert OLD not in caplog.text
    assert not any(OLD in batch.note for batch in ExpiryBatch.objects.all())

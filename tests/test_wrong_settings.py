"""What is not valid holds people; what lets somebody in past a withdrawn password is named."""

from __future__ import annotations

import re
from datetime import timedelta
from time import time
from unittest import mock

import pytest
from django.contrib.auth.backends import BaseBackend, ModelBackend, RemoteUserBackend
from django.core.exceptions import ObjectDoesNotExist
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection
from django.test import Client

from pwexpire import checks, services
from pwexpire.backends import PasswordExpiryMixin
from pwexpire.conf import conf
from pwexpire.exceptions import InvalidRequest
from pwexpire.feed import feed
from pwexpire.models import OldPassword, PasswordRecord
from pwexpire.policy import Policy
from pwexpire.services import Require
from tests.support import change_password, is_held
from tests.test_ways import ago

pytestmark = pytest.mark.django_db(transaction=True)
OURS = "pwexpire.backends.PasswordExpiryBackend"
HERE = f"{__name__}."


def by_error(user):
    raise ZeroDivisionError


def by_fault(user):
    raise OperationalError("down")


def by_conflict(user):
    raise OperationalError("database is locked")


def by_table(user):
    with connection.cursor() as cursor:
        cursor.execute("SELECT plan FROM no_such_table")


def named(value):
    """A name without an address, which differs by process."""
    return re.sub(" at 0x[0-9a-f]+", "", str(value))


@pytest.mark.parametrize("value", ["True", "on", "reports", 1, 0, None, "False", [], True])
def test_only_false_and_report_switch_enforcement_off(alice, client, settings, value):
    settings.PWEXPIRE_ENFORCE = value
    services.expire_passwords(alice)
    client.force_login(alice)
    assert is_held(client)
    if value is not True:
        assert [one.id for one in checks.configuration.check_settings(None)] == ["pwexpire.E006"]
    for off in (False, "report"):
        settings.PWEXPIRE_ENFORCE = off
        assert not is_held(client) and checks.configuration.check_settings(None) == []


WRONG = [
    ("APPLIES_TO", "no.such.thing"),
    ("APPLIES_TO", "tests.support.OLD"),
    ("APPLIES_TO", HERE + "by_error"),
    ("SECOND_FACTOR", "no.such.thing"),
    ("SECOND_FACTOR", HERE + "by_error"),
    ("POLICY", "no-such-preset"),
    ("POLICY", "no.such.policy"),
    ("POLICY", "tests.support.OLD"),
    ("POLICY", HERE + "by_error"),
    ("POLICY", {"default": "no-such-preset"}),
    ("POLICY", {"default": 5, 1: "nist"}),
]
WRONG_TYPES = [
    ("POLICY", 90),
    ("APPLIES_TO", 5),
    ("POLL_SECONDS", "1"),
    ("POLL_SECONDS", -1),
    ("CHANGE_URL", None),
    ("EXEMPT_VIEWS", 5),
    ("EXEMPT_VIEWS", [["home"]]),
    ("EXEMPT_BACKENDS", 5),
    ("EXEMPT_BACKENDS", [["x"]]),
    ("LOCKOUT_THRESHOLD", "1"),
]


@pytest.mark.parametrize(("name", "value"), WRONG + WRONG_TYPES, ids=str)
def test_a_setting_that_leads_nowhere_holds_and_is_never_a_500(
    alice, client, settings, caplog, name, value
):
    setattr(settings, f"PWEXPIRE_{name}", value)
    if name == "SECOND_FACTOR":
        settings.PWEXPIRE_POLICY = Policy(max_age=timedelta(days=1), single_factor_only=True)
    form = {"username": "alice", "password": "old-Password-1"}
    assert client.post("/accounts/login/", form).status_code == 302
    assert not is_held(client)
    services.expire_passwords(alice)
    assert is_held(client) and is_held(client)
    assert client.get("/account/password-change/").status_code == 200
    if (name, value) in WRONG and name != "SECOND_FACTOR":
        said = [one for one in caplog.messages if f"PWEXPIRE_{name}" in one]
        assert len(said) == len(set(said)) == 1


def test_who_has_a_second_factor_is_not_known_where_the_question_raises(alice, settings):
    settings.PWEXPIRE_POLICY = Policy(max_age=timedelta(days=1), single_factor_only=True)
    settings.PWEXPIRE_SECOND_FACTOR = by_error
    assert conf.second_factor(alice) is False
    settings.PWEXPIRE_APPLIES_TO = by_error
    assert conf.applies_to(alice) is True


@pytest.mark.parametrize("name", ["APPLIES_TO", "POLICY"])
def test_what_another_transaction_did_is_no_answer(alice, settings, name):
    setattr(settings, f"PWEXPIRE_{name}", by_conflict)
    asked = conf.applies_to if name == "APPLIES_TO" else conf.policy
    with pytest.raises(OperationalError):
        asked(alice)


@pytest.mark.parametrize("name", ["APPLIES_TO", "SECOND_FACTOR", "POLICY"])
@pytest.mark.parametrize("value", [by_table, by_fault], ids=named)
@pytest.mark.parametrize("atomic", [False, True])
def test_a_fault_in_a_table_of_the_site_keeps_no_change_from_being_one(
    alice, client, settings, monkeypatch, name, value, atomic
):
    monkeypatch.setitem(settings.DATABASES["default"], "ATOMIC_REQUESTS", atomic)
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", atomic)
    aging = Policy(max_age=timedelta(days=1), single_factor_only=True, history=2)
    settings.PWEXPIRE_POLICY = aging
    setattr(settings, f"PWEXPIRE_{name}", value)
    client.force_login(alice)
    services.expire_passwords(alice)
    assert is_held(client)
    assert client.get("/account/password-change/").status_code == 200
    assert change_password(client).status_code == 302
    assert not is_held(client)
    assert PasswordRecord.objects.get(pk=alice.pk).renewed_at is not None


@pytest.mark.parametrize(
    ("given", "name"),
    [(None, ""), ("pci-dss", "pci-dss"), ("nothing", ""), (Policy(name="x"), "x")],
)
def test_what_a_policy_callable_may_return(alice, settings, given, name):
    settings.PWEXPIRE_POLICY = lambda user: given
    assert conf.policy(alice).policy.name == name


def test_a_rule_that_leads_nowhere_takes_no_other_with_it(alice, root, settings):
    settings.PWEXPIRE_POLICY = {"staff": "no-such-preset", "default": "cis"}
    assert conf.policy(alice).policy.name == "cis" and conf.policy_key is not None
    assert conf.policy(root).policy.name == "cis"
    settings.PWEXPIRE_POLICY = {"staff": "nist", "superuser": lambda user: None, "default": "cis"}
    assert {policy.name for _, policy in conf.policy(root).each} == {"nist", ""}


def quarterly(user):
    return Policy(max_age=timedelta(days=90))


def by_number(user):
    return 90


def by_callable(user):
    return by_number


def by_row(user):
    raise ObjectDoesNotExist


UNREADABLE = [
    by_error,
    by_number,
    by_callable,
    HERE + "by_error",
    "no-such-preset",
    90,
    True,
    {"default": by_error},
    {"default": "no-such-preset"},
]


@pytest.fixture
def aged(alice, settings, client):
    """A session that was held because of an age, before the policy went wrong."""
    settings.PWEXPIRE_POLICY = quarterly
    client.force_login(alice)
    ago(alice, days=91)
    with mock.patch("time.time", lambda: time() + 3601):
        assert is_held(client)


@pytest.mark.parametrize("value", UNREADABLE, ids=named)
def test_a_policy_that_cannot_be_read_lets_no_held_session_go(aged, alice, client, settings, value):
    settings.PWEXPIRE_POLICY = value
    assert is_held(client) and is_held(client)
    assert change_password(client).status_code == 302
    assert not is_held(client)
    other = Client()
    other.force_login(alice)
    assert not is_held(other)


def test_nor_does_a_login_of_the_time_before(engine, alice, settings, client):
    settings.PWEXPIRE_POLICY = quarterly
    ago(alice, days=91)
    client.force_login(alice)
    settings.PWEXPIRE_POLICY = by_error
    assert is_held(client) and change_password(client).status_code == 302
    assert not is_held(client)


def test_with_fail_closed_nobody_passes_a_policy_that_cannot_be_read(alice, settings, client):
    settings.PWEXPIRE_POLICY, settings.PWEXPIRE_FAIL_CLOSED = by_error, True
    client.force_login(alice)
    with mock.patch("time.time", lambda: time() + 61):
        assert client.get("/").status_code == 503
    settings.PWEXPIRE_ENFORCE = "report"
    assert not is_held(client)


def test_a_policy_that_is_read_again_counts_within_a_minute(alice, settings, client, monkeypatch):
    settings.PWEXPIRE_POLICY = HERE + "by_error"
    ago(alice, days=91)
    client.force_login(alice)
    assert not is_held(client)
    monkeypatch.setitem(globals(), "by_error", quarterly)
    settings.PWEXPIRE_POLICY = HERE + "by_error"
    monkeypatch.setattr("time.time", lambda: time() + 61)
    assert is_held(client)


def test_old_passwords_are_kept_while_nobody_knows_how_many(alice, settings):
    settings.PWEXPIRE_POLICY = lambda user: Policy(history=4)
    for password in ("one-Password", "two-Password"):
        alice.set_password(password)
        alice.save()
    settings.PWEXPIRE_POLICY = by_error
    alice.set_password("three-Password")
    alice.save()
    assert OldPassword.objects.filter(user=alice).count() == 4


@pytest.mark.parametrize("name", ["POLICY", "SECOND_FACTOR", "APPLIES_TO"])
@pytest.mark.parametrize("given", [by_error, HERE + "by_error"], ids=named)
def test_e037_a_callable_that_raises(settings, name, given):
    setattr(settings, f"PWEXPIRE_{name}", given)
    (error,) = checks.policies.check_answers(None)
    assert error.id == "pwexpire.E037" and error.hint
    assert f"PWEXPIRE_{name} raised ZeroDivisionError" in error.msg
    with pytest.raises(CommandError, match=r"raised ZeroDivisionError.*is not saved"):
        call_command("pwexpire", "check")


@pytest.mark.parametrize("given", [by_number, by_callable])
def test_e037_a_policy_callable_that_names_no_policy(settings, given):
    settings.PWEXPIRE_POLICY = given
    (error,) = checks.policies.check_answers(None)
    assert error.id == "pwexpire.E037" and "which is no policy" in error.msg


@pytest.mark.parametrize("given", [by_fault, by_row, lambda user: None, lambda user: "nist"])
def test_no_e037_where_nobody_knows_better(settings, given):
    settings.PWEXPIRE_POLICY = given
    assert checks.policies.check_answers(None) == []


def test_the_command_asks_about_users_of_the_site(alice, settings):
    settings.PWEXPIRE_POLICY = by_row
    with pytest.raises(CommandError, match=r"raised ObjectDoesNotExist.*about alice"):
        call_command("pwexpire", "check")


def test_the_command_says_that_a_table_of_the_site_is_missing(alice, settings):
    settings.PWEXPIRE_POLICY = by_table
    with pytest.raises(CommandError, match=r"raised OperationalError.*about alice"):
        call_command("pwexpire", "check")


def test_fail_closed_is_read_strictly(settings):
    settings.PWEXPIRE_FAIL_CLOSED = "no"
    assert conf.fail_closed


# Backends.


class ByEmail(BaseBackend):
    def authenticate(self, request, email=None, password=None):
        return None


class TakesAnything(ModelBackend):
    def authenticate(self, request, **credentials):
        return super().authenticate(request, **credentials)


class InAsyncCodeOnly(BaseBackend):
    async def aauthenticate(self, request, **credentials):
        return None


class Permissions(BaseBackend):
    def get_all_permissions(self, user, obj=None):
        return set()


class Guarded(PasswordExpiryMixin, ByEmail):
    pass


class ByLink(BaseBackend):
    def authenticate(self, request, token=None):
        return None


class LookedAfterByItself(ByEmail):
    refuses_expired_passwords = True


class OldStyle:
    def get_user(self, pk):
        return None


LAX = ["ByEmail", "TakesAnything", "InAsyncCodeOnly"]


@pytest.mark.parametrize("name", LAX)
@pytest.mark.parametrize("require", [Require.RESET, Require.DENY])
def test_any_backend_that_accepts_a_withdrawn_password_is_named(alice, settings, name, require):
    settings.AUTHENTICATION_BACKENDS = [OURS, HERE + name]
    (error,) = checks.configuration.check_backends(None)
    assert error.id == "pwexpire.E025" and HERE + name in error.msg and error.hint
    with pytest.raises(InvalidRequest, match=f"{HERE}{name} would not"):
        services.expire_passwords(alice, require=require)
    with pytest.raises(InvalidRequest, match=f"{HERE}{name} would not"):
        services.expire_everyone(require=require)
    settings.PWEXPIRE_EXEMPT_BACKENDS = [HERE + name]
    assert checks.configuration.check_backends(None) == [] and conf.refuses_logins


@pytest.mark.parametrize(
    "name", ["Permissions", "Guarded", "ByLink", "LookedAfterByItself", "OldStyle"]
)
def test_backends_that_check_no_passwords_or_refuse_them(settings, name):
    settings.AUTHENTICATION_BACKENDS = [HERE + name, OURS]
    assert conf.refuses_logins and checks.configuration.check_backends(None) == []


def test_backends_of_django_and_of_django_axes(settings):
    remote = f"{RemoteUserBackend.__module__}.RemoteUserBackend"
    settings.AUTHENTICATION_BACKENDS = [remote, OURS]
    assert conf.lax_backends == []
    pytest.importorskip("axes")
    settings.AUTHENTICATION_BACKENDS = ["axes.backends.AxesStandaloneBackend", OURS]
    assert conf.lax_backends == []
    settings.AUTHENTICATION_BACKENDS = ["axes.backends.AxesBackend", OURS]
    assert conf.lax_backends == ["axes.backends.AxesBackend"]  # Django's aauthenticate()


def test_none_refuses():
    assert not conf.refuses_logins and checks.configuration.check_backends(None) == []


@pytest.mark.parametrize("later", [None, lambda user: True])
def test_who_was_left_out_at_the_login_is_held_as_soon_as_the_setting_is_gone(
    alice, client, settings, later
):
    settings.PWEXPIRE_APPLIES_TO = by_name_of_bob
    services.expire_passwords(alice)
    client.force_login(alice)
    assert not is_held(client)
    settings.PWEXPIRE_APPLIES_TO = later
    feed.reset()  # as a new process
    assert is_held(client)


def by_name_of_bob(user):
    return user.username == "bob"


def test_a_session_from_before_a_policy_was_removed_is_asked_for_once(
    alice, client, settings, django_assert_num_queries
):
    settings.PWEXPIRE_POLICY = Policy(max_age=timedelta(days=30))
    client.force_login(alice)
    settings.PWEXPIRE_POLICY, settings.PWEXPIRE_POLL_SECONDS = None, 600
    feed.reset()
    client.get("/plain/")
    with django_assert_num_queries(1):  # the session
        client.get("/plain/")


@pytest.mark.parametrize("policy", [by_error, "no.such.policy"])
def test_a_login_is_no_way_past_a_policy_that_cannot_be_read(client, bob, settings, policy):
    settings.PWEXPIRE_POLICY, settings.PWEXPIRE_FAIL_CLOSED = policy, True
    for _ in range(2):
        client.force_login(bob)
        assert client.get("/plain/").status_code == 503
    settings.PWEXPIRE_POLICY = None
    assert client.get("/plain/").status_code == 200

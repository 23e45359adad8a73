"""Ways past policies that were tried."""

from __future__ import annotations

from datetime import timedelta
from unittest import mock

import pytest
from django.core import mail
from django.test import Client
from django.utils import timezone

from pwexpire import services
from pwexpire.policy import Policy
from pwexpire.services import Require
from pwexpire.services.lockouts import expire_after_lockout
from pwexpire.services.notices import announce_expiry, notify_users
from pwexpire.views import PasswordChangeView
from tests.factories import UserFactory
from tests.support import NEW, OLD, change_password
from tests.test_laws import login
from tests.test_ways import OURS, ago, try_login
from tests.truth.people import fetch, follow_link, look
from tests.year.site import Clock

pytestmark = pytest.mark.django_db(transaction=True)
SSO = "tests.testapp.backends.SingleSignOn"
QUARTER = timedelta(days=90)
MINUTE = timedelta(minutes=1)


@pytest.fixture(autouse=True)
def refusing(settings):
    settings.AUTHENTICATION_BACKENDS = [OURS, SSO]


def in_days(days):
    return Clock(timezone.now() + timedelta(days=days)).everywhere()


def test_a_change_that_was_under_way_does_not_meet_a_reset(server, alice):
    """The old password is worth nothing from the moment on at which RESET is in force."""
    browser = login(server, alice)
    valid = PasswordChangeView.form_valid

    def meanwhile(self, form):
        services.expire_passwords(alice, require=Require.RESET)
        return valid(self, form)

    with mock.patch.object(PasswordChangeView, "form_valid", meanwhile):
        change_password(browser)
    assert services.password_status(alice).require == "reset"
    assert look(browser) == "out" and try_login(server, alice, NEW)[1].status_code == 200
    follow_link(server(), fetch(alice), OLD)
    assert not services.password_status(alice).must_change


def test_a_session_of_another_backend_does_not_meet_a_reset(alice, settings, client):
    settings.PWEXPIRE_EXEMPT_BACKENDS = [SSO]
    services.expire_passwords(alice, require=Require.RESET)
    client.force_login(alice, backend=SSO)
    assert look(client) == "free"
    change_password(client)
    assert services.password_status(alice).require == "reset"


def test_a_second_factor_that_is_given_up(engine, alice, settings):
    settings.PWEXPIRE_POLICY = "pci-dss"
    services.record_password_change(alice)
    ago(alice, days=91)
    factors = {alice.pk}
    settings.PWEXPIRE_SECOND_FACTOR = lambda user: user.pk in factors
    browser = login(Client, alice)
    assert look(browser) == "free"
    factors.clear()
    assert services.password_status(alice).must_change
    with in_days(1):
        assert look(browser) == "held"


def test_somebody_to_whom_it_applies_later(alice, settings):
    spared = {alice.pk}
    settings.PWEXPIRE_APPLIES_TO = lambda user: user.pk not in spared
    browser = login(Client, alice)
    services.expire_passwords(alice)
    assert look(browser) == "free"
    spared.clear()
    assert services.password_status(alice).must_change
    with in_days(1):
        assert look(browser) == "held"


def test_a_link_does_not_meet_an_aged_password_that_only_an_administrator_helps(alice, settings):
    settings.PWEXPIRE_POLICY = Policy(max_age=QUARTER, require="deny")
    ago(alice, days=91)
    assert services.password_status(alice).require == "deny"
    follow_link(Client(), fetch(alice), NEW)
    assert try_login(Client, alice, NEW)[1].status_code == 200


def test_taking_over_is_no_guess_that_hit(alice, root, settings, client):
    pytest.importorskip("hijack")
    settings.ROOT_URLCONF = "tests.urls_impersonation"
    settings.HIJACK_PERMISSION_CHECK = "hijack.permissions.superusers_only"
    settings.PWEXPIRE_EXPIRE_ON_LOCKOUT = "success"
    expire_after_lockout(alice, window=MINUTE, address="192.0.2.66")
    client.force_login(root, backend=OURS)
    assert client.post("/hijack/acquire/", {"user_pk": alice.pk}).status_code == 302
    assert not services.password_status(alice).must_change


def test_a_login_by_another_backend_is_no_guess_that_hit(alice, settings, client):
    settings.PWEXPIRE_EXEMPT_BACKENDS = [SSO]
    settings.PWEXPIRE_EXPIRE_ON_LOCKOUT = "success"
    expire_after_lockout(alice, window=MINUTE, address="192.0.2.66")
    client.force_login(alice, backend=SSO)
    assert not services.password_status(alice).must_change


def test_a_warning_can_be_lifted_from_a_user(alice):
    services.expire_passwords(alice, require=Require.WARN)
    services.cancel_expiry(alice)
    assert not services.password_status(alice).warn


def test_whoever_was_logged_out_is_warned_all_the_same(alice):
    services.end_sessions(alice)
    assert services.expire_passwords(alice, require=Require.WARN).users_expired == 1
    assert services.password_status(alice).warn


def test_nobody_is_told_that_a_dead_password_expires_in_days(settings):
    settings.PWEXPIRE_POLICY = Policy(
        max_age=QUARTER,
        warn_before=timedelta(days=14),
        change_on_first_use=True,
        temporary_for=timedelta(days=3),
    )
    carol = UserFactory(username="carol")
    with in_days(80):
        assert services.password_status(carol).require == "reset"
        assert notify_users().sent == 0


def test_an_announcement_to_everyone_goes_to_those_whom_it_holds(alice, bob, eve, settings):
    eve.set_unusable_password()
    eve.save()
    settings.PWEXPIRE_APPLIES_TO = "tests.testapp.policies.is_person"  # not alice
    announce_expiry(services.expire_everyone())
    assert [one.to for one in mail.outbox] == [["bob@example.com"]]

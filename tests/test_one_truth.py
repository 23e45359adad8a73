"""Who has to change the password is one truth: an age is computed, and everybody says the same."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from importlib import import_module
from unittest import mock

import pytest
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from pwexpire import services, testing
from pwexpire.models import Demand, ExpiryBatch, PasswordRecord
from pwexpire.policy import Policy
from pwexpire.services import Require
from tests.support import change_password, is_held, session_of, store_session

DAY = timedelta(days=1)
OURS = "pwexpire.backends.PasswordExpiryBackend"

pytestmark = pytest.mark.django_db(transaction=True)


def ago(user, **delta):
    then = timezone.now() - timedelta(**delta)
    PasswordRecord.objects.filter(pk=user.pk).update(changed_at=then)


@pytest.fixture
def refusing(settings):
    settings.AUTHENTICATION_BACKENDS = [OURS]


def login(server, user):
    browser = server()
    data = {"username": user.username, "password": "old-Password-1"}
    assert browser.post("/accounts/login/", data).status_code == 302
    return browser


# An age is computed, and stored nowhere.


def test_a_corrected_max_age_frees_at_the_next_request(engine, server, alice, settings):
    before = login(server, alice)
    ago(alice, days=91)
    settings.PWEXPIRE_POLICY = Policy(max_age=90 * DAY)
    after = login(server, alice)
    assert is_held(before) and is_held(before) and is_held(after)
    # What a view behind an exempt page writes keeps the flag, on every engine.
    if not engine.endswith("signed_cookies"):
        store_session(before, password_expired=True, _password_expired_demand=1)
    settings.PWEXPIRE_POLICY = Policy(max_age=100 * DAY)
    assert not is_held(before) and not is_held(after)
    assert not services.password_status(alice).must_change
    for browser in (before, after):
        with CaptureQueriesContext(connection) as seen:
            assert not is_held(browser)
        assert not [one for one in seen if "pwexpire_passwordrecord" in one["sql"]]
    settings.PWEXPIRE_POLICY = Policy(max_age=90 * DAY)
    assert is_held(before) and is_held(after)


def test_no_age_writes_a_row(engine, server, alice, settings):
    before = login(server, alice)
    ago(alice, days=91)
    settings.PWEXPIRE_POLICY = Policy(max_age=90 * DAY)
    assert is_held(before) and is_held(before) and is_held(login(server, alice))
    assert not ExpiryBatch.objects.exists() and not Demand.objects.exists()
    change_password(before)
    assert not is_held(before)
    assert not ExpiryBatch.objects.exists()


def test_an_expiry_after_an_aged_flag_holds_when_the_age_is_corrected(
    engine, server, alice, settings
):
    browser = login(server, alice)
    ago(alice, days=91)
    settings.PWEXPIRE_POLICY = Policy(max_age=90 * DAY)
    assert is_held(browser)
    settings.PWEXPIRE_POLICY = None
    assert not is_held(browser)
    # The clock was set back: the number is the lowest that is possible, the one of the flag.
    with mock.patch("pwexpire.services.batches.timezone.now", autospec=True) as now:
        now.return_value = datetime(1970, 1, 1, tzinfo=UTC)
        batch = services.expire_passwords(alice)
    assert batch.number == 1
    assert is_held(browser)


@pytest.mark.parametrize("require", [Require.RESET, Require.DENY])
def test_a_change_that_does_not_satisfy_an_age_leaves_it_as_it_was(
    alice, settings, refusing, require
):
    settings.PWEXPIRE_POLICY = Policy(max_age=90 * DAY, require=require, grace_logins=1)
    ago(alice, days=91)
    PasswordRecord.objects.update(grace_used=1)
    before = PasswordRecord.objects.get().changed_at
    services.record_password_change(alice)  # as a reset link
    record, status = PasswordRecord.objects.get(), services.password_status(alice)
    if require == Require.RESET:
        assert record.changed_at > before and record.grace_used == 0 and not status.must_change
    else:
        assert record.changed_at == before and record.grace_used == 1
        assert status.must_change and status.require == "deny"
        alice.set_password("new-Password-2")
        alice.save()
        assert not services.password_status(alice).must_change
    assert not ExpiryBatch.objects.exists()


def test_a_change_in_a_session_of_grace_does_not_satisfy_a_reset(server, alice, settings, refusing):
    settings.PWEXPIRE_POLICY = Policy(max_age=90 * DAY, require="reset", grace_logins=1)
    ago(alice, days=91)
    before = PasswordRecord.objects.get().changed_at
    browser = login(server, alice)
    assert not is_held(browser)
    assert change_password(browser).status_code == 302
    assert PasswordRecord.objects.get().changed_at == before
    assert services.password_status(alice).require == "reset"
    assert "_auth_user_id" in session_of(browser)


# The batches that ageing wrote in earlier releases.


@pytest.fixture
def upgrade():
    """Run the step that takes them away, as ``migrate`` does."""
    state = MigrationExecutor(connection).loader.project_state(("pwexpire", "0006_computed_age"))
    step = import_module("pwexpire.migrations.0006_computed_age")

    def run():
        with mock.patch.object(step, "CHUNK", 2), connection.schema_editor(atomic=False) as editor:
            step.remove_batches_of_ages(state.apps, editor)
        testing.reset()

    with connection.constraint_checks_disabled():
        yield run


def aged_batch(user, **given):
    """What the request of an aged session, or a change that did not satisfy an age, wrote."""
    return services.expire_passwords(user, **{"reason": "age", **given})


def test_the_upgrade_takes_the_batches_of_ages_away(users, root, upgrade, settings):
    people = users(7)
    for user in people:
        aged_batch(user)
        ago(user, days=91)
    asked = [
        aged_batch(people[0], require=Require.CHANGE, actor=root, sessions="end"),
        aged_batch(people[1], note="an incident", sessions="end"),
        aged_batch(people[2:4], sessions="end"),
        services.expire_passwords(people[4], reason="lockout", sessions="end"),
        services.expire_everyone(reason="age", exclude=people),
    ]
    upgrade()
    assert list(ExpiryBatch.objects.order_by("pk")) == asked
    assert not Demand.objects.exclude(batch__in=asked).exists()
    assert [services.password_status(user).must_change for user in people] == [True] * 5 + [
        False
    ] * 2
    settings.PWEXPIRE_POLICY = Policy(max_age=90 * DAY)
    assert all(services.password_status(user).must_change for user in people)
    assert services.password_status(people[6]).reason == "age"
    upgrade()
    assert list(ExpiryBatch.objects.order_by("pk")) == asked


def test_the_upgrade_keeps_an_age_that_the_last_change_did_not_satisfy(
    alice, bob, upgrade, settings, refusing
):
    settings.PWEXPIRE_POLICY = Policy(max_age=90 * DAY, require="deny")
    kept, satisfied = aged_batch(alice, require="deny"), aged_batch(bob, require="deny")
    for user in (alice, bob):
        services.record_password_change(user)  # as a link, which does not satisfy it
        assert services.password_status(user).must_change
    PasswordRecord.objects.filter(pk=bob.pk).update(satisfied=satisfied.number)
    upgrade()
    assert list(ExpiryBatch.objects.all()) == [kept]
    assert services.password_status(alice).require == "deny"
    assert not services.password_status(bob).must_change


def test_the_upgrade_frees_no_session_that_was_ended(engine, server, alice, upgrade, refusing):
    browser = login(server, alice)
    cookie = browser.cookies["sessionid"].value
    data = session_of(browser)
    batch = aged_batch(alice, require="reset")
    PasswordRecord.objects.update(ended=1, changed_at=timezone.now() - 91 * DAY)
    upgrade()
    assert PasswordRecord.objects.get().ended == batch.number
    if engine.endswith("signed_cookies"):
        browser.cookies["sessionid"] = cookie
    else:
        store_session(browser, **data)
    assert browser.get("/").content == b"anonymous"
    assert not is_held(login(server, alice))  # the age was corrected


def test_the_upgrade_goes_back(upgrade):
    operation = import_module("pwexpire.migrations.0006_computed_age").Migration.operations[0]
    assert operation.reversible

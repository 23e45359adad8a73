"""Who has to change the password is one truth: an age is computed, and everybody says the same."""

from __future__ import annotations

import io
import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from importlib import import_module
from random import Random
from unittest import mock

import pytest
from django.contrib import admin
from django.contrib.auth import get_user_model
from django.contrib.auth.hashers import make_password
from django.contrib.auth.models import Group
from django.core.management import call_command
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from pwexpire import services, testing
from pwexpire.admin import PasswordExpiredListFilter
from pwexpire.management.verdict import explain
from pwexpire.models import Demand, EnforcementState, ExpiryBatch, PasswordRecord
from pwexpire.policy import Policy
from pwexpire.services import Require, preview_expiry
from pwexpire.services.batch_report import batch_rows
from pwexpire.services.demands import find_open_batches
from pwexpire.services.expired import find_open_users
from pwexpire.services.report import evaluate
from pwexpire.services.status import read_state
from tests.support import OLD, change_password, is_held, session_of, store_session
from tests.truth.people import look

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
    data = {"username": user.username, "password": OLD}
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


# Law 11: everybody says of a user what the next request does.

GROUPS = {"group:Finance": Policy(max_age=60 * DAY, grace_logins=1, warn_before=9 * DAY)}
GROUPS |= {"staff": Policy(max_age=30 * DAY, require="warn"), "group:Cards": "pci-dss"}
HELD = ("expired", "locked", "grace")
STRICT = Policy(
    max_age=90 * DAY,
    warn_before=14 * DAY,
    grace_logins=2,
    change_on_first_use=True,
    change_after_admin_reset=True,
    temporary_for=3 * DAY,
)
SITES = {
    "no policy": {},
    "one policy": {"POLICY": STRICT},
    "one that resets": {"POLICY": Policy(max_age=90 * DAY, require="reset", grace_logins=1)},
    "one that warns": {"POLICY": Policy(max_age=90 * DAY, require="warn")},
    "since they joined": {"POLICY": STRICT, "ASSUME_CHANGED": "joined"},
    "some are left out": {"APPLIES_TO": lambda user: user.pk % 5 != 0},
    "one, some left out": {"POLICY": STRICT, "APPLIES_TO": lambda user: user.pk % 5 != 0},
    "by group": {"POLICY": {**GROUPS, "default": STRICT}},
    "second factor": {
        "POLICY": {**GROUPS, "default": "pci-dss"},
        "SECOND_FACTOR": lambda user: user.pk % 3 == 0,
        "APPLIES_TO": lambda user: user.pk % 5 != 0,
    },
    "by a callable": {"POLICY": lambda user: STRICT if user.pk % 2 else Policy(max_age=7 * DAY)},
}


def make_people(dice, count):
    """Users in all kinds of states, each with a session from before."""
    now, model = timezone.now(), get_user_model()
    EnforcementState.objects.update(created_at=now - 100 * DAY)
    good, none = make_password(OLD), make_password(None)
    people = model.objects.bulk_create(
        model(
            username=f"person{n}",
            password=none if dice.random() < 0.1 else good,
            is_staff=dice.random() < 0.3,
            date_joined=now - dice.choice([1, 80, 91, 400]) * DAY,
        )
        for n in range(count)
    )
    for name in ("Finance", "Cards"):
        Group.objects.create(name=name).user_set.set(dice.sample(people, count // 3))
    browsers = [Client() for _ in people]
    for user, browser in zip(people, browsers, strict=True):
        browser.force_login(user, backend=OURS)
    make_demands(dice, people)
    for user in dice.sample(people, count * 3 // 4):
        given = dice.choice([None, None, 1, 5])
        PasswordRecord.objects.update_or_create(
            pk=user.pk,
            defaults={
                "changed_at": dice.choice([None, *(now - days * DAY for days in (1, 40, 80, 95))]),
                "assumed": dice.random() < 0.2,
                "given_at": given and now - given * DAY,
                "given_new": dice.random() < 0.5,
                "grace_used": dice.choice([0, 0, 1, 2, 3]),
            },
        )
    return people, browsers


def make_demands(dice, people):
    some = lambda share: dice.sample(people, max(1, int(len(people) * share)))  # noqa: E731
    services.expire_passwords(some(0.1), reason="first_use")
    ExpiryBatch.objects.update(activated_at=timezone.now() - 4 * DAY)
    old = services.expire_everyone(require=dice.choice(["warn", "change"]), exclude=some(0.6))
    for require in Require.values:
        services.expire_passwords(some(0.12), require=require)
    for user in [*some(0.3), *people]:
        if dice.random() < 0.2:
            services.record_password_change(user)
    for require in Require.values:
        services.expire_passwords(some(0.08), require=require)
        kept = services.expire_everyone(require=require, exclude=some(0.9))
        if dice.random() < 0.6:
            services.cancel_expiry(kept)
    services.cancel_expiry(services.expire_passwords(some(0.2)))
    services.cancel_expiry(some(0.2))
    services.end_sessions(some(0.05))
    if dice.random() < 0.5:
        services.cancel_expiry(old)


def filtered(value):
    """The users whom the list filter of the admin shows."""
    model_admin = admin.site.get_model_admin(get_user_model())
    given = {PasswordExpiredListFilter.parameter_name: [value]}
    chosen = PasswordExpiredListFilter(None, given, get_user_model(), model_admin)
    return set(chosen.queryset(None, get_user_model().objects.all()).values_list("pk", flat=True))


def ask(verb, user):
    out = io.StringIO()
    call_command("pwexpire", verb, "--user", user.username, "--format", "json", stdout=out)
    return json.loads(out.getvalue())


def meets(browser, user):
    """Whether a request is held, and whether it was one of a login of grace."""
    met = look(browser)
    if met == "out":  # its session was ended by what is cancelled now
        browser = Client()
        browser.force_login(user, backend=OURS)
        met = look(browser)
    stamp = browser.session.get("_pwexpire", {})
    return met != "free", bool(stamp.get("g"))


def agree(people, browsers):
    said = {user.pk: services.password_status(user) for user in people}
    expired = {pk for pk, one in said.items() if one.must_change}
    warned = {pk for pk, one in said.items() if one.warn}
    everybody = {user.pk for user in people}
    assert filtered("yes") & everybody == expired
    assert filtered("no") & everybody == everybody - expired
    assert filtered("warned") & everybody == warned
    rows = {row.user_id: row for row in evaluate(people)}
    assert {pk for pk, row in rows.items() if row.state in HELD} == expired
    assert {pk for pk, row in rows.items() if row.state == "warned"} == warned
    for user, browser in zip(people, browsers, strict=True):
        one, row = said[user.pk], rows[user.pk]
        assert (one.reason, one.require, one.batch) == (row.reason, row.require, row.batch)
        checked = explain(user)
        assert (checked["must_change"], checked["require"]) == (one.must_change, one.require)
        assert (" is held" in checked["sentences"][0]) == one.must_change
        is_met, on_grace = meets(browser, user)
        assert is_met == one.must_change or (on_grace and row.state == "grace"), (one, row)
    for user in people[:25]:
        one = said[user.pk]
        assert preview_expiry(user).already_expired == one.must_change
        assert ask("check", user)["must_change"] == one.must_change
        told = ask("policy", user)
        if rows[user.pk].state != "not_applicable":  # what is demanded of those, if anything were
            assert one.rule in [told["rule"], *told.get("also_matched", [])]
    return expired, rows


@pytest.mark.parametrize("site", SITES)
def test_everybody_says_what_the_next_request_does(settings, refusing, site):
    dice = Random(site)
    read_state()
    people, browsers = make_people(dice, 200)
    for name, value in SITES[site].items():
        setattr(settings, f"PWEXPIRE_{name}", value)
    expired, rows = agree(people, browsers)
    assert 10 < len(expired) < 190
    preview = preview_expiry(people)
    away = [pk for pk, row in rows.items() if row.state == "not_applicable"]
    assert (preview.already_expired, preview.not_applicable) == (len(expired), len(away))
    count_batches(people, away)
    cancel_batches(dice, people)
    expired = find_expired(people)
    batch = services.expire_passwords(people)
    assert (batch.users_already_expired, batch.users_not_applicable) == (len(expired), len(away))
    assert batch.users_expired == 200 - len(expired) - len(away)
    again = services.expire_passwords(people)
    assert (again.users_already_expired, again.users_expired) == (200 - len(away), 0)
    assert filtered("yes") == {user.pk for user in people} - {*away}


def find_expired(people):
    return {row.user_id for row in evaluate(people) if row.state in HELD}


def count_batches(people, away):
    """What a batch is said to want still is whom it wants, and who gets a mail."""
    opened = find_open_batches([user.pk for user in people if user.pk not in away])
    wanted = Counter(batch.pk for batches in opened.values() for batch in batches)
    for row in batch_rows():
        batch = ExpiryBatch.objects.get(pk=row.batch)
        if batch.cancelled_at is None and (batch.everyone or batch.holds):
            assert row.open_demands == len(find_open_users(batch)) == wanted[batch.pk]
            mails = services.announce_expiry(batch, dry_run=True)
            assert sum(mails.steps.values()) == wanted[batch.pk]


def cancel_batches(dice, people):
    """Cancelling says how many are free by it."""
    batches = list(ExpiryBatch.objects.filter(cancelled_at=None, holds=True))
    for batch in [*dice.sample(batches, 3), dice.sample(people, 40)]:
        before, count = find_expired(people), services.cancel_expiry(batch)
        after = find_expired(people)
        assert after <= before and count == len(before - after)


@pytest.mark.parametrize("site", ["one policy", "second factor"])
def test_everybody_says_so_on_every_engine(engine, settings, refusing, site):
    dice = Random(f"{site}/{engine}")
    read_state()
    people, browsers = make_people(dice, 40)
    for name, value in SITES[site].items():
        setattr(settings, f"PWEXPIRE_{name}", value)
    agree(people, browsers)


def test_a_stricter_expiry_counts_who_is_held_as_strictly(users, settings, refusing):
    over, given, aged, fresh, imported = users(5)
    now = timezone.now()
    read_state()  # a flushed database has none
    EnforcementState.objects.update(created_at=now - 100 * DAY)
    PasswordRecord.objects.filter(pk=over.pk).update(given_at=now - 5 * DAY, given_new=True)
    PasswordRecord.objects.filter(pk=given.pk).update(given_at=now - 1 * DAY, given_new=True)
    PasswordRecord.objects.filter(pk=imported.pk).update(changed_at=None, given_at=None)
    get_user_model().objects.filter(pk=imported.pk).update(date_joined=now - 9 * DAY)
    PasswordRecord.objects.filter(pk__in=[aged.pk, fresh.pk]).update(given_at=None)
    ago(aged, days=91)
    settings.PWEXPIRE_POLICY = STRICT
    everybody = [over, given, aged, fresh, imported]
    assert preview_expiry(everybody).already_expired == 4
    assert services.expire_passwords(everybody, require=Require.WARN).users_already_expired == 4
    batch = services.expire_passwords(everybody, require=Require.RESET)
    assert (batch.users_already_expired, batch.users_expired) == (2, 3)  # over and imported

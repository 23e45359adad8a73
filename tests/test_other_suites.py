"""In the test suites and databases of other people: nothing is asked that they did not ask for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from django.apps import apps
from django.contrib.admin.models import LogEntry
from django.contrib.auth import BACKEND_SESSION_KEY, SESSION_KEY, get_user_model
from django.contrib.auth.models import Group
from django.contrib.redirects.models import Redirect
from django.db import connection, connections, router
from django.test import RequestFactory, SimpleTestCase
from django.test.utils import CaptureQueriesContext

from pwexpire import services, testing
from pwexpire.admin_log import log_action, log_refusal
from pwexpire.feed import feed
from pwexpire.models import Cancellation, EnforcementState, ExpiryBatch, PasswordRecord, TraceKind
from pwexpire.receivers import after_migrate
from pwexpire.services.trace import write_trace
from tests.support import change_password, is_held

ROOT = Path(__file__).resolve().parent.parent
BACKEND = "django.contrib.auth.backends.ModelBackend"


class NeverAsked(SimpleTestCase):
    """A request with a session that names a user, in a test case that may not ask a database."""

    def setUp(self):
        testing.reset()
        engine = "django.contrib.sessions.backends.signed_cookies"
        self.enterContext(self.settings(PWEXPIRE_POLL_SECONDS=None, SESSION_ENGINE=engine))

    def open_session(self, **values):
        session = self.client.session
        session.update({SESSION_KEY: "1", BACKEND_SESSION_KEY: BACKEND, **values})
        session.save()
        self.client.cookies["sessionid"] = session.session_key

    def test_a_session_of_a_user(self):
        self.open_session()
        self.assertEqual(self.client.get("/plain/").status_code, 200)

    def test_a_session_that_is_younger_than_what_the_process_knows(self):
        self.open_session(_pwexpire={"n": 10**13, "b": 10**13, "a": None, "p": None})
        self.assertEqual(self.client.get("/plain/").status_code, 200)

    def test_after_a_setting_was_changed(self):
        self.open_session()
        with self.settings(PWEXPIRE_CHANGE_ATTEMPTS=3):
            self.assertEqual(self.client.get("/plain/").status_code, 200)


def test_the_first_request_of_a_process_costs_what_the_second_costs(alice, client, settings):
    settings.PWEXPIRE_POLL_SECONDS = None
    client.force_login(alice)
    testing.reset()
    counts = []
    for _ in range(2):
        with mock.patch.object(feed, "_read", side_effect=AssertionError("asked")):
            with CaptureQueriesContext(connection) as queries:
                assert client.get("/").status_code == 200
        counts.append(len(queries))
    assert counts[0] == counts[1]


def test_nothing_is_asked_after_users_were_made_and_changed(
    transactional_db, client, settings, django_user_model
):
    settings.PWEXPIRE_POLL_SECONDS = None
    alice = django_user_model.objects.create_user("alice", password="old-Password-1")
    client.force_login(alice)
    assert change_password(client).status_code == 302
    with mock.patch.object(feed, "_read", side_effect=AssertionError("asked")):
        assert not is_held(client)


def test_what_this_process_did_holds_and_frees_at_once(transactional_db, alice, client, settings):
    settings.PWEXPIRE_POLL_SECONDS = None
    client.force_login(alice)
    assert not is_held(client)
    services.expire_passwords(alice)
    assert is_held(client)
    services.cancel_expiry(alice)
    assert not is_held(client)
    services.expire_everyone()
    assert is_held(client)
    assert change_password(client).status_code == 302
    assert not is_held(client)
    services.end_sessions(alice)
    assert "_auth_user_id" not in client.session or client.get("/").wsgi_request.user.is_anonymous


def test_a_policy_that_comes_is_asked_for(transactional_db, alice, client, settings):
    settings.PWEXPIRE_POLL_SECONDS = None
    client.force_login(alice)
    assert not is_held(client)
    long_ago = alice.date_joined.replace(year=2000)
    PasswordRecord.objects.update_or_create(user=alice, defaults={"changed_at": long_ago})
    settings.PWEXPIRE_POLICY = "tests.testapp.policies.strict"
    assert is_held(client)


def test_available_apps_without_auth(transactional_db):
    apps.set_available_apps(["django.contrib.redirects", "django.contrib.sites"])
    try:
        Redirect.objects.create(site_id=1, old_path="/a/", new_path="/b/")
    finally:
        apps.unset_available_apps()


def test_a_group_that_is_saved_costs_nothing_of_ours(db, django_assert_num_queries):
    with django_assert_num_queries(1):
        Group.objects.create(name="Finance")


STEPS = {
    "contenttypes": ["contenttypes"],
    "auth": ["auth"],
    "sessions": ["sessions"],
    "an old state": ["pwexpire 0001", "pwexpire 0003", "pwexpire"],
    "zero": ["", "pwexpire zero", "contenttypes", ""],
}


@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
def test_migrate_in_parts(steps, tmp_path):
    environment = {
        **{name: os.environ[name] for name in os.environ if name != "PWEXPIRE_TEST_ON"},
        "DJANGO_SETTINGS_MODULE": "tests.settings_process",
        "PWEXPIRE_TEST_FILE": str(tmp_path / "site.sqlite3"),
        "PWEXPIRE_TEST_ENGINE": "django.contrib.sessions.backends.db",
        "PWEXPIRE_TEST_SESSIONS": str(tmp_path),
        "PYTHONPATH": str(ROOT),
    }
    code = "import django; django.setup()\nfrom django.core.management import call_command\n"
    code += "".join(f"call_command('migrate', *{step.split()}, verbosity=0)\n" for step in steps)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_migrate_of_another_database_makes_no_state(db):
    EnforcementState.objects.all().delete()
    after_migrate(None, using="archive")
    assert not EnforcementState.objects.exists()


class Replica:
    """Reads may come from a replica, and nobody thought of ``allow_relation``."""

    def db_for_read(self, model, **hints):
        return None

    def db_for_write(self, model, **hints):
        return "default"


@pytest.fixture
def from_replica(transactional_db, root, alice):
    """An administrator who was read from a replica."""
    with mock.patch.object(router, "routers", [Replica()]):
        root._state.db = "replica"
        yield root


def test_an_actor_from_a_replica_expires_and_cancels(from_replica, alice):
    batch = services.expire_passwords(alice, actor=from_replica)
    assert batch.actor_id == from_replica.pk
    assert services.cancel_expiry(alice, actor=from_replica, note="n") == 1
    batch = services.expire_everyone(actor=from_replica)
    assert ExpiryBatch.objects.get(pk=batch.pk).actor_id == from_replica.pk
    services.cancel_expiry(batch, actor=from_replica)
    assert Cancellation.objects.filter(actor_id=from_replica.pk).count() == 2


def test_users_and_batches_from_a_replica(from_replica, alice):
    alice._state.db = "replica"
    batch = services.expire_passwords([alice], defer=True)
    batch._state.db = "replica"
    services.resume_expiry(batch)
    assert services.password_status(alice).must_change
    batch._state.db = "replica"
    services.stop_expiry(batch)
    assert services.cancel_expiry(batch) == 1
    services.record_password_change(alice)
    assert PasswordRecord.objects.filter(pk=alice.pk).exists()


def test_the_log_of_an_administrator_from_a_replica(from_replica, alice):
    request = RequestFactory().post("/")
    request.user = from_replica
    log_action(request, [alice.pk], "Expired.", "n")
    log_refusal(request, [alice.pk], TraceKind.EXPIRY_REFUSED, "n")
    write_trace([(None, alice.pk)], actor=from_replica, note="n")
    assert LogEntry.objects.filter(user_id=from_replica.pk).count() == 2


def test_the_router_of_these_tests_refuses_such_relations(from_replica):
    assert "replica" not in connections and get_user_model() is type(from_replica)
    with pytest.raises(ValueError, match="prevents this relation"):
        ExpiryBatch(actor=from_replica)

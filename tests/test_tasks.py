"""Sessions flagged by tasks: in place, by workers of a database queue, by workers of RQ."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import pytest
from django.contrib.auth import get_user_model
from django.core.management import CommandError, call_command
from django.db import transaction
from django.test import Client
from django.urls import reverse

from pwexpire import compat, services, tasks
from pwexpire.checks import configuration
from pwexpire.exceptions import TasksUnavailable
from pwexpire.models import BatchState, ExpiryBatch
from tests.support import is_held, session_of

pytestmark = pytest.mark.django_db(transaction=True)
User = get_user_model()
ROOT = Path(__file__).resolve().parent.parent
FRAMEWORK = compat.find_tasks()
needs_framework = pytest.mark.skipif(FRAMEWORK is None, reason="there is no Tasks framework")


@pytest.fixture
def queue(settings):
    """Tasks that wait until they are asked for."""
    name = FRAMEWORK.__name__
    settings.TASKS = {"default": {"BACKEND": f"{name}.backends.dummy.DummyBackend"}}
    backend = FRAMEWORK.task_backends["default"]
    yield backend
    backend.clear()


@pytest.fixture
def now(settings):
    """Tasks that are done where they are enqueued."""
    name = FRAMEWORK.__name__
    settings.TASKS = {"default": {"BACKEND": f"{name}.backends.immediate.ImmediateBackend"}}


def sign_in(user):
    browser = Client()
    browser.force_login(user)
    return browser


@needs_framework
def test_enqueued_at_the_commit_and_run_twice(alice, queue):
    from pwexpire.tasks import enqueue_expiry, work_at_expiry

    browser = sign_in(alice)
    with transaction.atomic():
        batch = services.expire_passwords(alice, defer=True)
        enqueue_expiry(batch)
        assert queue.results == []
    assert [(result.args, result.kwargs) for result in queue.results] == [([batch.pk], {})] * 2
    assert is_held(browser)
    assert work_at_expiry.call(batch.pk) == work_at_expiry.call(batch.pk) == "done"
    batch.refresh_from_db()
    assert batch.state == BatchState.DONE
    enqueue_expiry(batch)
    assert len(queue.results) == 2


@needs_framework
def test_a_rolled_back_expiry_enqueues_nothing(alice, queue):
    from pwexpire.tasks import enqueue_expiry

    with pytest.raises(ZeroDivisionError), transaction.atomic():
        enqueue_expiry(services.expire_passwords(alice, defer=True))
        raise ZeroDivisionError
    assert queue.results == []


@needs_framework
def test_a_task_hands_over_what_it_cannot_finish_in_time(alice, queue, monkeypatch):
    monkeypatch.setattr(tasks, "TASK_SECONDS", 0)
    batch = services.expire_passwords(alice, defer=True)
    assert tasks.work_at_expiry.call(batch.pk) == "active"
    assert [result.args for result in queue.results] == [[batch.pk]]


@needs_framework
def test_a_task_leaves_alone_what_was_stopped(alice, queue):
    from pwexpire.tasks import work_at_expiry

    batch = services.expire_passwords(alice, defer=True)
    services.stop_expiry(batch)
    assert work_at_expiry.call(batch.pk) == "stopped"
    services.cancel_expiry(batch)
    assert work_at_expiry.call(batch.pk) == "cancelled"
    assert work_at_expiry.call(0) == "gone"


@needs_framework
def test_the_command_enqueues(alice, now, capsys):
    browser = sign_in(alice)
    call_command("pwexpire", "expire", "--user", "alice", "--enqueue")
    assert session_of(browser)["password_expired"] is True
    assert ExpiryBatch.objects.get().state == BatchState.DONE


@needs_framework
def test_resume_enqueues(alice, bob, queue, capsys):
    batch = services.expire_passwords(alice, defer=True)
    other = services.expire_passwords(bob, defer=True)
    call_command("pwexpire", "resume", str(batch.pk), "--enqueue")
    assert [result.args for result in queue.results] == [[batch.pk]] * 2
    call_command("pwexpire", "resume", "--enqueue")
    assert [result.args for result in queue.results][4:] == [[other.pk]] * 2


@needs_framework
@pytest.mark.parametrize("limit", [0, 1, None])
def test_the_admin_enqueues_above_a_number_of_users(alice, root, queue, settings, limit):
    settings.PWEXPIRE_ENQUEUE_ABOVE = limit
    browser, victim = sign_in(root), sign_in(alice)
    page = expire_in_the_admin(browser, alice)
    assert ("in the background" in page) == (limit == 0)
    assert len(queue.results) == (2 if limit == 0 else 0)
    assert is_held(victim)


@needs_framework
def test_queue_and_backend_are_settings(alice, settings):
    name = FRAMEWORK.__name__
    dummy = {"BACKEND": f"{name}.backends.dummy.DummyBackend", "QUEUES": ["slow"]}
    settings.TASKS = {"default": dummy, "other": dummy}
    settings.PWEXPIRE_TASK_BACKEND, settings.PWEXPIRE_TASK_QUEUE = "other", "slow"
    settings.PWEXPIRE_TASKS_PER_BATCH = 3
    from pwexpire.tasks import enqueue_expiry

    enqueue_expiry(services.expire_passwords(alice, defer=True))
    backend = FRAMEWORK.task_backends["other"]
    assert [result.task.queue_name for result in backend.results] == ["slow"] * 3
    backend.clear()


@needs_framework
def test_without_a_framework_it_is_said_before_anything_is_written(alice, root, settings):
    with mock.patch.object(tasks, "framework", None):
        with pytest.raises(CommandError, match="no Tasks framework"):
            call_command("pwexpire", "expire", "--user", "alice", "--enqueue")
        assert not ExpiryBatch.objects.exists()
        with pytest.raises(TasksUnavailable):
            tasks.enqueue_expiry(services.expire_passwords(alice, defer=True))


WRONG_TASKS = [
    {"PWEXPIRE_TASK_QUEUE": "slwo"},
    {"PWEXPIRE_TASK_BACKEND": "nowhere"},
    {"PWEXPIRE_TASK_QUEUE": "slow", "TASKS": {"default": {"BACKEND": "no.such.Backend"}}},
    {"PWEXPIRE_TASK_QUEUE": "slow", "TASKS": {"default": {}}},
]


@pytest.fixture(params=WRONG_TASKS, ids=str)
def wrong_tasks(request, settings):
    backend = f"{FRAMEWORK.__name__}.backends.dummy.DummyBackend"
    settings.TASKS = {"default": {"BACKEND": backend, "QUEUES": ["slow"]}}
    settings.PWEXPIRE_ENQUEUE_ABOVE = 0
    for name, value in request.param.items():
        setattr(settings, name, value)


def expire_in_the_admin(browser, *users):
    return browser.post(
        reverse("admin:auth_user_changelist"),
        {
            "action": "expire_passwords_action",
            "_selected_action": [user.pk for user in users],
            "confirm": "1",
            "reason": "admin",
            "sessions": "flag",
        },
        follow=True,
    ).content.decode()


@needs_framework
def test_e035_tasks_that_the_framework_refuses(wrong_tasks, settings):
    (message,) = configuration.check_tasks(None)
    assert message.id == "pwexpire.E035" and "cannot be used" in message.msg and message.hint
    for name in ("ENQUEUE_ABOVE", "TASK_QUEUE", "TASK_BACKEND"):
        if hasattr(settings, f"PWEXPIRE_{name}"):
            delattr(settings, f"PWEXPIRE_{name}")
    assert configuration.check_tasks(None) == []  # it leaves nothing to tasks


@needs_framework
def test_no_e035_where_tasks_are_right(queue, settings):
    settings.PWEXPIRE_ENQUEUE_ABOVE = 0
    assert configuration.check_tasks(None) == []


@needs_framework
def test_the_command_refuses_a_wrong_queue_before_anything_is_written(alice, wrong_tasks):
    for call in (["expire", "--user", "alice"], ["resume"], ["notify"]):
        with pytest.raises(CommandError, match=r"PWEXPIRE_TASK_QUEUE = .* cannot be used"):
            call_command("pwexpire", *call, "--enqueue")
    assert not ExpiryBatch.objects.exists()


@needs_framework
def test_the_admin_says_that_no_task_works_at_the_sessions(alice, root, wrong_tasks):
    browser, victim = sign_in(root), sign_in(alice)
    page = expire_in_the_admin(browser, alice)
    batch = ExpiryBatch.objects.get()
    assert "cannot be used" in page and f"pwexpire resume {batch.pk} works at" in page
    assert is_held(victim) and batch.is_unfinished
    call_command("pwexpire", "resume", str(batch.pk), verbosity=0)
    batch.refresh_from_db()
    assert batch.state == BatchState.DONE


@needs_framework
def test_a_queue_that_is_down_leaves_a_batch_to_resume(alice, bob, root, queue, settings, caplog):
    from pwexpire.tasks import enqueue_expiry

    settings.PWEXPIRE_ENQUEUE_ABOVE = 0
    down = mock.patch.object(type(queue), "enqueue", side_effect=ConnectionError("broker is down"))
    browser = sign_in(root)
    with down:
        with pytest.raises(CommandError, match=r"broker is down.*: manage\.py pwexpire resume \d+"):
            call_command("pwexpire", "expire", "--user", "alice", "--enqueue")
        with pytest.raises(CommandError, match="no mail was sent"):
            call_command("pwexpire", "notify", "--enqueue")
        assert "broker is down" in expire_in_the_admin(browser, bob)
        with transaction.atomic():
            enqueue_expiry(ExpiryBatch.objects.first())
    assert "broker is down" in caplog.text  # what was committed stands
    assert all(batch.is_unfinished for batch in ExpiryBatch.objects.all())
    assert services.password_status(alice).must_change


@needs_framework
def test_a_worker_imports_the_tasks_whatever_the_settings_are(wrong_tasks):
    kept = dict(vars(tasks))
    try:
        assert not hasattr(importlib.reload(tasks).work_at_expiry, "enqueue")
    finally:
        vars(tasks).update(kept)


def test_no_framework_at_all():
    with mock.patch.object(compat, "import_module", side_effect=ImportError):
        assert compat.find_tasks() is None


WORKERS = {
    "db": ["db_worker", "--batch", "--no-startup-delay", "--queue-name", "QUEUE"],
    "rq": ["rqworker", "QUEUE", "--burst", "--job-class", "django_tasks_rq.Job"],
}
LOGIN = """
from django.contrib.auth import get_user_model
from django.contrib.sessions.backends.db import SessionStore
from pwexpire.models import SessionEntry, EnforcementState
from django.utils import timezone
User = get_user_model()
User.objects.bulk_create(User(username=f"u{n}", password="x") for n in range(300))
for user in User.objects.all():
    for _ in range(20):
        store = SessionStore()
        store["_auth_user_id"], store["cart"] = str(user.pk), ["pen"]
        store.create()
"""
EXPIRE = """
from django.contrib.auth import get_user_model
from pwexpire import services
from pwexpire.services import projection
from pwexpire.tasks import enqueue_expiry
batch = services.expire_passwords(get_user_model().objects.all(), defer=True)
assert batch.is_unfinished
enqueue_expiry(batch)
"""
JUDGE = """
from django.contrib.sessions.backends.db import SessionStore
from django.contrib.sessions.models import Session
from pwexpire.models import ExpiryBatch
batch = ExpiryBatch.objects.get()
rows = list(Session.objects.values_list("session_data", flat=True))
data = [SessionStore().decode(row) for row in rows]
assert all(one["password_expired"] and one["cart"] == ["pen"] for one in data)
print(batch.state, len(rows), batch.sessions_flagged)
"""


@pytest.mark.needs("postgresql")
@pytest.mark.parametrize("kind", ["db", pytest.param("rq", marks=pytest.mark.needs("redis"))])
def test_two_worker_processes(kind, tmp_path):
    if find_spec(f"django_tasks_{kind}") is None:
        pytest.skip(f"django-tasks-{kind} is not installed")
    import psycopg

    name = f"pwexpire_tasks_{os.getpid()}"
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.settings_tasks",
        "PWEXPIRE_TEST_ON": "postgresql",
        "PWEXPIRE_TEST_NAME": name,
        "PWEXPIRE_TEST_TASKS": kind,
        "PWEXPIRE_TEST_ENGINE": "django.contrib.sessions.backends.db",
        "PWEXPIRE_TEST_SESSIONS": str(tmp_path),
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "ignore",
    }
    keywords = {"env": environment, "cwd": ROOT, "text": True, "stdout": subprocess.PIPE}

    def run(*arguments):
        return subprocess.run([sys.executable, *arguments], check=True, **keywords).stdout.strip()

    def shell(code):
        return run("-c", f"import django; django.setup()\n{code}")

    from tests import servers

    entry = servers.database("postgresql")
    where = f"host={entry['HOST']} port={entry['PORT']} user={entry['USER']} dbname=postgres"
    with psycopg.connect(where, password=entry["PASSWORD"] or None, autocommit=True) as admin:
        admin.execute(f'CREATE DATABASE "{name}"')
        try:
            run("-m", "django", "migrate", "-v0")
            shell(LOGIN)
            shell(EXPIRE)
            words = [name if word == "QUEUE" else word for word in WORKERS[kind]]
            call = [sys.executable, "-m", "django", *words]
            workers = [subprocess.Popen(call, stderr=subprocess.PIPE, **keywords) for _ in "ab"]
            said = [worker.communicate(timeout=120) for worker in workers]
            assert [worker.returncode for worker in workers] == [0, 0], said
            assert shell(JUDGE) == "done 6000 6000", said
        finally:
            time.sleep(0.2)
            admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from django.apps import apps
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command
from django.db import OperationalError
from django.test import Client
from django.utils import timezone

from pwexpire import services
from pwexpire.management import probe, selectors
from pwexpire.models import BatchState, ExpiryBatch, PasswordRecord, SessionEntry
from pwexpire.policy import Policy

pytestmark = pytest.mark.django_db(transaction=True)


def run(*args):
    out = io.StringIO()
    call_command("pwexpire", *args, stdout=out)
    return out.getvalue()


def ask(*args):
    return json.loads(run(*args, "--format", "json"))


def test_expire_by_name_and_by_email(alice, bob):
    answer = ask("expire", "--user", "alice", "--user", "BOB@example.com", "--note", "n")
    assert answer["users_expired"] == 2 and answer["state"] == "done"
    assert services.password_status(alice).must_change
    assert "users_expired: 0" in run("expire", "--user", "alice")


def test_users_from_a_file_and_from_standard_input(alice, bob, tmp_path, monkeypatch):
    path = tmp_path / "names.txt"
    path.write_text("\ufeff# leaked\n\nalice\nbob@example.com\n", "utf-8")
    assert ask("preview", "--users-from", str(path))["users"] == 2
    monkeypatch.setattr("sys.stdin", io.StringIO("alice\n"))
    assert ask("expire", "--users-from", "-")["users_expired"] == 1


def test_standard_input_with_a_byte_order_mark(alice, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("\ufeffalice\n"))
    assert ask("preview", "--users-from", "-")["users"] == 1


def test_names_of_both_kinds_are_combined(alice, bob, eve, tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("alice\nbob\n")
    args = ["--user", "bob", "--user", "eve", "--users-from", str(path)]
    assert ask("expire", *args)["users_expired"] == 1
    assert services.password_status(bob).must_change
    assert not services.password_status(eve).must_change


def test_many_names_cost_few_queries(users, tmp_path, count_queries):
    path = tmp_path / "names.txt"
    path.write_text("\n".join(user.username for user in users(60)))
    with count_queries() as captured:
        assert ask("preview", "--users-from", str(path))["users"] == 60
    assert len(captured) < 15


def test_an_email_with_letters_that_only_the_database_compares(users):
    (user,) = users(1)
    user.email = "Élodie@example.com"
    user.save()
    assert ask("preview", "--user", "Élodie@EXAMPLE.com")["users"] == 1


def test_a_name_that_the_column_cannot_hold(alice, settings, monkeypatch):
    monkeypatch.setattr(get_user_model(), "USERNAME_FIELD", "id")
    assert ask("preview", "--user", str(alice.pk))["users"] == 1
    with pytest.raises(CommandError, match="Unknown users, nothing was done: alice"):
        run("preview", "--user", "alice")


def test_unknown_users_are_all_told_and_nothing_is_done(alice, tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("alice\nmallory\nnobody@example.com\n")
    with pytest.raises(CommandError, match=r"mallory, nobody@example\.com"):
        run("expire", "--users-from", str(path))
    assert not ExpiryBatch.objects.exists()


def test_an_ambiguous_email_is_refused(users):
    for user in users(2):
        user.email = "same@example.com"
        user.save()
    with pytest.raises(CommandError, match="more than one"):
        run("expire", "--user", "same@example.com")


def test_groups_staff_and_exclude(alice, bob, root):
    group = Group.objects.create(name="Finance")
    alice.groups.add(group)
    bob.groups.add(group)
    assert ask("preview", "--group", "Finance")["users"] == 2
    assert ask("preview", "--group", "Finance", "--staff")["users"] == 0
    assert ask("preview", "--staff")["users"] == 1
    answer = ask("expire", "--group", "Finance", "--exclude", "bob", "--actor", "root")
    assert answer["users_expired"] == 1
    assert ExpiryBatch.objects.get().actor == root


@pytest.mark.parametrize("moment", ["90d", "1h", "30m", "2026-01-31", "2026-01-31T10:00:00"])
def test_changed_before(alice, moment, settings):
    assert ask("preview", "--changed-before", moment)["users"] == 0
    PasswordRecord.objects.update(changed_at=timezone.now() - timedelta(days=900))
    assert ask("preview", "--changed-before", moment)["users"] == 1
    PasswordRecord.objects.all().delete()
    assert ask("preview", "--changed-before", moment)["users"] == 0
    get_user_model().objects.update(date_joined=timezone.now() - timedelta(days=900))
    settings.PWEXPIRE_ASSUME_CHANGED = "joined"
    assert ask("preview", "--changed-before", moment)["users"] == 1


def test_a_moment_without_time_zones(settings):
    settings.USE_TZ = False
    assert timezone.is_naive(selectors.parse_moment("2026-01-31"))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["expire"], "Select users"),
        (["expire", "--everyone", "--staff"], "goes with no other"),
        (["expire", "--group", "Nope", "--user", "alice"], "Unknown groups"),
        (["expire", "--changed-before", "soon"], "no age or date"),
        (["expire", "--changed-before", "2026-13-45"], "no age or date"),
        (["expire", "--changed-before", "2026-13-45T10:00:00"], "no age or date"),
        (["expire", "--changed-before", "999999d"], "no age or date"),
        (["expire", "--users-from", "/no/such/file"], "cannot be read"),
        (["expire", "--users-from", os.devnull], "names nobody"),
        (["expire", "--user", "alice", "--reason", "whim"], "Unknown reason"),
        (["expire", "--user", "alice", "--require", "reset"], "needs a backend"),
        (["cancel", "--batch", "99"], "no batch 99"),
        (["cancel", "--everyone", "--exclude", "alice"], "takes no --exclude"),
        (["resume", "99"], "no batch 99"),
        (["resume", "--user", "alice"], "Give the ID of the batch"),
        (["sessions", "--limit", "-1"], "0 or more"),
        (["prune", "--chunk", "0"], "1 or more"),
    ],
)
def test_refusals_are_one_sentence(alice, args, words):
    with pytest.raises(CommandError, match=words):
        run(*args)
    assert not ExpiryBatch.objects.exists()


def test_a_user_model_without_the_field(alice, monkeypatch):
    monkeypatch.setattr(selectors, "_has_field", lambda name: False)
    with pytest.raises(CommandError, match="has no field is_staff"):
        run("expire", "--staff")


def test_everyone_and_its_cancellation(alice, bob):
    assert ask("expire", "--everyone", "--exclude", "bob", "--yes")["users_expired"] is None
    assert services.password_status(alice).must_change
    assert ask("cancel", "--everyone")["users_cancelled"] == 1
    assert not services.password_status(alice).must_change


def test_cancel_by_user_and_by_batch(alice):
    batch = services.expire_passwords(alice)
    assert ask("cancel", "--user", "alice", "--note", "n")["users_cancelled"] == 1
    services.expire_passwords(alice)
    last = ExpiryBatch.objects.latest("pk")
    assert ask("cancel", "--batch", str(last.pk))["users_cancelled"] == 1
    assert batch.pk != last.pk


def test_a_batch_is_not_cancelled_for_some_of_its_users(alice, bob):
    batch = services.expire_passwords([alice, bob])
    with pytest.raises(CommandError, match="goes with no selector"):
        run("cancel", "--batch", str(batch.pk), "--user", "alice")
    assert services.password_status(bob).must_change


def test_cancelled_users_are_counted_once(alice, bob):
    services.expire_passwords(alice)
    services.expire_everyone(exclude=bob)
    assert ask("cancel", "--everyone")["users_cancelled"] == 1
    assert not services.password_status(alice).must_change


def test_a_dry_run_writes_nothing(alice, client):
    client.force_login(alice)
    answer = ask("expire", "--everyone", "--dry-run")
    assert answer == {"users": 1, "already_expired": 0, "not_applicable": 0, "sessions": 1}
    assert not ExpiryBatch.objects.exists()


def test_resume_lists_and_resumes(alice, bob):
    services.expire_passwords(alice)
    ExpiryBatch.objects.update(state=BatchState.ACTIVE)
    staging = ExpiryBatch.objects.create(created_at=timezone.now())
    rows = ask("resume")
    assert [row["state"] for row in rows] == ["done", "staging"]
    with pytest.raises(CommandError, match="Select users"):
        run("resume", str(staging.pk))
    assert ask("resume", str(staging.pk), "--user", "bob")["users_expired"] == 1
    assert ask("resume", str(staging.pk))["state"] == "done"


def test_status(alice, bob):
    services.expire_passwords(alice, reason="incident")
    (row,) = ask("status", "--user", "alice")
    assert row["must_change"] and row["reason"] == "incident"
    assert re.search(r"^must_change +no$", run("status", "--user", "bob"), re.MULTILINE)
    assert "T" in row["since"] and datetime.fromisoformat(row["since"]).tzinfo
    totals = ask("status")
    assert totals["open_demands"] == 1 and totals["enforced"] is True
    assert "flag" in totals["session_engine_can"]
    services.cancel_expiry(ExpiryBatch.objects.get())
    assert ask("status")["open_demands"] == 0


def test_sessions_on_every_engine(engine, alice, bob, client, settings):
    settings.PWEXPIRE_SESSION_INDEX = True
    client.force_login(alice)
    key = client.cookies["sessionid"].value
    services.expire_passwords(alice)
    rows = ask("sessions")
    if "signed_cookies" in engine:
        assert rows == []
        return
    assert [row["user"] for row in rows] == [str(alice.pk)]
    assert key not in json.dumps(rows) and rows[0]["session"].startswith(key[:6])
    assert len(ask("sessions", "--flagged")) == ("db" in engine)
    assert len(ask("sessions", "--user", "alice", "--limit", "1")) == 1
    assert ask("sessions", "--user", "bob") == []
    assert key[:6] in run("sessions")


@pytest.mark.parametrize(
    ("backend", "words"), [("signed_cookies", "nothing on the server"), ("cache", "it is off")]
)
def test_sessions_that_cannot_be_listed(alice, settings, backend, words):
    settings.SESSION_ENGINE = f"django.contrib.sessions.backends.{backend}"
    settings.PWEXPIRE_SESSION_INDEX = False
    err = io.StringIO()
    call_command("pwexpire", "sessions", stdout=io.StringIO(), stderr=err)
    assert words in err.getvalue()


def test_many_sessions_are_one_document(alice, users, client):
    for user in [alice, *users(2)]:
        Client().force_login(user)
    assert len(ask("sessions")) == 3 and len(ask("sessions", "--limit", "0")) == 0


def test_check_proves_it_and_creates_nothing(alice):
    def count():
        return {model._meta.label: model.objects.count() for model in apps.get_models()}

    before = count()
    rows = ask("check")
    assert {row["request"]: row["held"] for row in rows}["GET /"] is True
    assert {row["request"]: row["held"] for row in rows}["GET /account/password-change/"] is False
    assert count() == before


def test_check_complains_of_no_view(alice, caplog):
    """The change page asks the record of its user, and finds that he does not exist."""
    assert "held" in str(ask("check")) and not caplog.records


@pytest.mark.parametrize("way", ["middleware", "enforce"])
def test_check_fails_where_nothing_is_held(settings, way):
    settings.ALLOWED_HOSTS = ["example.com"]
    if way == "enforce":
        settings.PWEXPIRE_ENFORCE = False
    else:
        settings.MIDDLEWARE = [name for name in settings.MIDDLEWARE if "pwexpire" not in name]
    words = {"enforce": "PWEXPIRE_ENFORCE is False", "middleware": "in MIDDLEWARE"}[way]
    with pytest.raises(CommandError, match=rf"GET /, POST /.*{words}"):
        run("check")


def test_check_takes_back_what_a_view_writes(settings, alice, monkeypatch):
    from tests import urls

    def write(request):
        # An error of the database would roll back by itself.
        Group.objects.get_or_create(name="written")
        return urls.HttpResponse()

    settings.MIDDLEWARE = [name for name in settings.MIDDLEWARE if "pwexpire" not in name]
    monkeypatch.setattr(urls.urlpatterns[0], "callback", write)
    with pytest.raises(CommandError, match="not held"):
        run("check")
    assert not Group.objects.exists()


def test_check_tells_of_a_way_out_that_is_shut(monkeypatch):
    monkeypatch.setattr(probe, "EXEMPT", ("plain",))
    with pytest.raises(CommandError, match=r"GET /plain/ held, but it has to stay reachable"):
        run("check")


def test_check_without_a_change_page(settings):
    settings.PWEXPIRE_CHANGE_URL = "nowhere"
    with pytest.raises(CommandError, match="'nowhere' leads to no page"):
        run("check")


def test_the_probe_of_a_user_whose_key_is_that_of_another_row():
    assert probe._find_unused_key(PasswordRecord._meta.pk) == 0


@pytest.mark.parametrize(
    "error", [OperationalError("no such table: x\nLINE 1"), ImproperlyConfigured("no such table")]
)
def test_faults_are_one_sentence(alice, monkeypatch, error):
    def fail(*args):
        raise error

    monkeypatch.setattr("pwexpire.management.verbs.status.read_state", fail)
    with pytest.raises(CommandError, match="no such table") as caught:
        run("status")
    assert "\n" not in str(caught.value)


def test_check_explains_a_user(alice, bob, eve):
    services.expire_passwords(alice)
    bob.set_unusable_password()
    bob.save()
    text = run("check", "--user", "alice")
    assert "alice is held since" in text and f"batch {ExpiryBatch.objects.get().pk}." in text
    assert "no usable password" in run("check", "--user", "bob")
    ExpiryBatch.objects.create(created_at=timezone.now())  # staging: it has no number
    answer = ask("check", "--user", "eve")
    assert answer["sentences"][0] == "eve is free: nothing is demanded."
    assert answer["batch"] is None and answer["must_change"] is False


def test_check_explains_age_exclusion_and_what_else_stands_in_the_way(eve, settings):
    batch = services.expire_everyone(exclude=eve)
    settings.PWEXPIRE_POLICY = Policy(max_age=timedelta(days=9))
    settings.PWEXPIRE_ENFORCE = False
    get_user_model().objects.update(is_active=False)
    PasswordRecord.objects.update(changed_at=timezone.now() - timedelta(days=10))
    text = run("check", "--user", "eve")
    assert "age, by its age." in text and "By its age the password expires on" in text
    assert "nobody is held" in text and "is not active" in text
    assert f"of batch {batch.pk}." in text
    PasswordRecord.objects.all().delete()
    settings.PWEXPIRE_POLICY = None
    assert "last change" not in run("check", "--user", "eve")


def test_prune(alice, client):
    client.force_login(alice)
    SessionEntry.objects.create(session_key="dead", user=alice, created_at=timezone.now())
    services.expire_passwords(alice)
    others = {"demands": 0, "cancellations": 0, "old_passwords": 0, "notices": 0}
    others |= {"filters": 0, "future_changes": 0}
    assert ask("prune", "--chunk", "1") == {"entries": 1, "batches": 0, **others}
    alice.set_password("new-Password-2")
    alice.save()
    assert ask("prune") == {"entries": 0, "batches": 0, **others}
    assert SessionEntry.objects.count() == 1


def test_a_progress_bar_on_a_terminal(alice, monkeypatch):
    pytest.importorskip("tqdm")
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", terminal)
    run("expire", "--user", "alice")
    assert "rows" in terminal.getvalue()


def test_no_progress_bar_without_tqdm(alice, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert "users_expired: 1" in run("expire", "--user", "alice")


def test_a_refusal_exits_with_an_error():
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-m", "django", "pwexpire", "expire"],
        cwd=root,
        env={
            **{name: os.environ[name] for name in os.environ if name != "PWEXPIRE_TEST_ON"},
            "DJANGO_SETTINGS_MODULE": "tests.settings",
            "PYTHONPATH": str(root),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1


def test_stop_and_resume(alice):
    batch = services.expire_passwords(alice, defer=True)
    assert ask("stop", str(batch.pk)) == {"batch": batch.pk, "stopped": True, "state": "stopped"}
    assert ask("status")["stopped_batches"] == 1
    assert ask("resume") == []
    assert ask("stop", str(batch.pk))["stopped"] is False
    assert ask("resume", str(batch.pk))["state"] == "done"
    with pytest.raises(CommandError, match="no batch"):
        run("stop", "0")


def test_reindex(alice, client, settings):
    client.force_login(alice)
    SessionEntry.objects.all().delete()
    assert ask("reindex") == {"entries_added": 1}
    assert ask("status")["index_complete"] is True
    settings.PWEXPIRE_SESSION_INDEX = False
    with pytest.raises(CommandError, match="nothing to do"):
        run("reindex")


def test_an_interrupted_command_says_how_to_go_on(alice, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("pwexpire.management.verbs.expire.expire_passwords", interrupted)
    with pytest.raises(CommandError, match="pwexpire resume goes on"):
        run("expire", "--user", "alice")

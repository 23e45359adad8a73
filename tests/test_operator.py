"""An operator's mistake is stopped, and says what it would have done."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group, Permission
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from pwexpire import services
from pwexpire.management.verbs import check, prune
from pwexpire.models import Cancellation, EnforcementState, ExpiryBatch, SessionEntry
from pwexpire.services import ranks
from pwexpire.services.selection import Selection
from tests.factories import StaffFactory

pytestmark = pytest.mark.django_db(transaction=True)


def run(*args):
    out, err = io.StringIO(), io.StringIO()
    call_command("pwexpire", *args, stdout=out, stderr=err)
    return out.getvalue(), err.getvalue()


def ask(*args):
    return json.loads(run(*args, "--format", "json")[0])


@pytest.fixture
def refusing(settings):
    settings.AUTHENTICATION_BACKENDS = ["pwexpire.backends.PasswordExpiryBackend"]


@pytest.fixture
def terminal(monkeypatch):
    def answer(text):
        stdin = io.StringIO(text)
        stdin.isatty = lambda: True
        monkeypatch.setattr("sys.stdin", stdin)

    return answer


@pytest.mark.parametrize("stdin", ["closed", "none", "pipe"])
def test_an_expiry_of_everyone_without_a_terminal_is_refused(alice, bob, monkeypatch, stdin):
    source = io.StringIO("y\n")
    if stdin == "closed":
        source.close()
    monkeypatch.setattr("sys.stdin", None if stdin == "none" else source)
    with pytest.raises(CommandError, match=r"passwords of 2 users .*confirm it with --yes"):
        run("expire", "--everyone")
    assert not ExpiryBatch.objects.exists()
    assert run("expire", "--everyone", "--yes") and ExpiryBatch.objects.count() == 1


def test_more_than_a_hundred_users_or_a_withdrawn_password_want_a_yes(users, refusing):
    users(101)
    group = Group.objects.create(name="all")
    group.user_set.set(get_user_model().objects.all())
    with pytest.raises(CommandError, match="101 users"):
        run("expire", "--group", "all")
    one = get_user_model().objects.first().username
    for require in ("reset", "deny"):
        with pytest.raises(CommandError, match=rf"1 user \(require: {require}\)"):
            run("expire", "--user", one, "--require", require)
    assert not ExpiryBatch.objects.exists()
    assert ask("expire", "--group", "all", "--exclude", one)["users_expired"] == 100


def test_a_terminal_is_asked_with_the_number(alice, bob, terminal):
    for no in ("n\n", "", "yes please\n"):
        terminal(no)
        with pytest.raises(CommandError, match=r"^Nothing was done\.$"):
            run("expire", "--everyone")
    assert not ExpiryBatch.objects.exists()
    terminal("Y\n")
    _, question = run("expire", "--everyone")
    assert "passwords of 2 users" in question and ExpiryBatch.objects.count() == 1


@pytest.mark.parametrize("require", ["reset", "deny"])
def test_the_last_superuser_and_the_actor_are_not_locked_out_by_mistake(
    root, alice, refusing, require
):
    call = ["expire", "--staff", "--yes", "--require", require]
    with pytest.raises(CommandError, match=r"lock out the last active superuser, .*--force"):
        run(*call)
    with pytest.raises(CommandError, match="lock out the actor and the last active superuser"):
        run(*call, "--actor", "root", "--dry-run")
    other = StaffFactory(username="other", is_superuser=True)
    with pytest.raises(CommandError, match="lock out the actor, nothing"):
        run("expire", "--user", "root", "--actor", "root", "--yes", "--require", require)
    assert not ExpiryBatch.objects.exists()
    assert ask("expire", "--user", "other", "--yes", "--require", require)["users_expired"] == 1
    with pytest.raises(CommandError, match="last active superuser"):  # the other one is locked out
        run("expire", "--user", "root", "--yes", "--require", require)
    services.cancel_expiry(other)
    type(other).objects.filter(pk=other.pk).update(is_active=False)
    with pytest.raises(CommandError, match="last active superuser"):
        run("expire", "--user", "root", "--yes", "--require", require)
    assert ask(*call, "--force")["users_expired"] == 2


def test_a_user_model_without_superusers_has_nobody_to_lock_out(alice, monkeypatch):
    monkeypatch.setattr(ranks, "get_user_model", lambda: Group)
    assert ranks.find_lockout(Selection(alice), None) == ranks.Lockout(
        actor=False, last_superuser=False
    )


def test_an_empty_selection_is_refused_and_writes_nothing(alice, bob):
    bob.groups.add(Group.objects.create(name="Finance"))
    call = ["expire", "--user", "alice", "--group", "Finance"]
    for extra in ([], ["--dry-run"]):
        with pytest.raises(CommandError, match=r"No user is selected.* match every kind"):
            run(*call, *extra)
    with pytest.raises(CommandError, match="No user is selected"):
        run("cancel", *call[1:])
    answer = ask(*call, "--allow-empty")
    assert answer["batch"] is None and answer["users_expired"] == 0
    assert ask(*call, "--allow-empty", "--dry-run")["users"] == 0
    assert ask("cancel", *call[1:], "--allow-empty") == {"users_cancelled": 0}
    assert not ExpiryBatch.objects.exists()


def test_different_selectors_mean_and_and_it_is_said(alice, bob):
    alice.groups.add(Group.objects.create(name="Finance"))
    _, notice = run("preview", "--user", "alice", "--user", "bob", "--group", "Finance")
    assert "if they match all of --user, --group" in notice
    assert run("preview", "--user", "alice")[1] == ""
    assert run("preview", "--user", "alice", "--group", "Finance", "-v", "0")[1] == ""


def test_names_of_standard_input_are_read_once(alice, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("alice\n"))
    assert ask("expire", "--users-from", "-", "--dry-run")["users"] == 1


def test_unknown_names_of_a_leak_list_are_counted_and_ten_are_listed(alice, tmp_path):
    path = tmp_path / "leaked.txt"
    path.write_text("alice\n" + "\n".join(f"stranger{i:05}{'x' * 90}" for i in range(1200)))
    call = ["--users-from", str(path)]
    with pytest.raises(CommandError) as refused:
        run("expire", *call)
    words = str(refused.value)
    assert words.count("stranger") == 10 and "1,190 more (1,200 in all)" in words
    assert len(words) < 1000
    out, notice = run("expire", *call, "--ignore-unknown")
    assert "users_expired: 1" in out
    assert "Skipped 1,200 unknown names" in notice and notice.count("stranger") == 10
    with pytest.raises(CommandError, match="Unknown users"):  # a name that was typed is a mistake
        run("expire", "--user", "mallory", *call, "--ignore-unknown")
    path.write_text("alice\n")
    assert run("expire", *call, "--ignore-unknown")[1] == ""


def test_a_list_of_strangers_is_an_empty_selection(alice, tmp_path):
    path = tmp_path / "leaked.txt"
    path.write_text("mallory\n")
    with pytest.raises(CommandError, match="No user is selected"):
        run("expire", "--users-from", str(path), "--ignore-unknown")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--reason", "whim"], "Unknown reason"),
        (["--require", "prayer"], "Unknown require"),
        (["--require", "reset"], "needs a backend"),
        (["--actor", "mallory"], "Unknown users"),
        (["--require", "warn", "--sessions", "end"], "ends no sessions"),
    ],
)
def test_a_dry_run_refuses_what_the_run_refuses(alice, args, words):
    for extra in ([], ["--dry-run"]):
        with pytest.raises(CommandError, match=words):
            run("expire", "--user", "alice", *args, *extra)
    assert not ExpiryBatch.objects.exists()


@pytest.mark.parametrize("call", [["preview"], ["expire", "--dry-run"]])
def test_counting_builds_no_index(alice, call):
    Client().force_login(alice)
    SessionEntry.objects.all().delete()
    EnforcementState.objects.update(index_complete=False)
    with CaptureQueriesContext(connection) as captured:
        assert ask(*call, "--user", "alice")["sessions"] == 1
    written = [q["sql"] for q in captured if re.match("INSERT|UPDATE|DELETE", q["sql"])]
    assert written == [] and not SessionEntry.objects.exists()


def test_options_of_django_stand_after_the_verb():
    root = Path(__file__).resolve().parent.parent
    env = {name: value for name, value in os.environ.items() if name != "PWEXPIRE_TEST_ON"}
    env.pop("DJANGO_SETTINGS_MODULE", None)
    call = [sys.executable, "-m", "django", "pwexpire", "sessions", "--limit", "-1"]
    options = ["-v", "0", "--traceback", "--no-color", "--settings", "tests.settings"]
    done = subprocess.run(
        [*call, *options, "--pythonpath", str(root)], env=env, capture_output=True, text=True
    )
    assert "--limit must be 0 or more" in done.stderr and "Traceback" in done.stderr


def test_an_option_before_the_verb_keeps_its_value(alice):
    assert run("-v", "0", "preview", "--user", "alice", "--changed-before", "0d")[1] == ""


def test_check_ends_with_a_verdict(alice):
    assert run("check")[0].splitlines()[-1] == check.PASSED


def test_answers_are_tables_in_text(alice, bob):
    services.expire_passwords([alice, bob], note="two\nlines")
    assert re.search(r"^session_engine_can  +\w+, ", run("status")[0], re.MULTILINE)
    assert re.search(r"^already_expired +1$", run("preview", "--user", "bob")[0], re.MULTILINE)
    header, line, *rows = run("report")[0].splitlines()
    assert set(line) == {"-", " "} and len(rows) == 2
    at = header.index("user ")
    assert {row[at:].split()[0] for row in rows} == {"alice", "bob"}
    assert "two lines" in run("report", "--batches")[0]
    assert len(run("report", "--lockouts")[0].splitlines()) == 2  # a header alone


@pytest.fixture
def clerk(db):
    user = StaffFactory(username="clerk")
    user.user_permissions.add(Permission.objects.get(codename="expire_passwords"))
    return user


def test_an_actor_needs_what_the_admin_asks_for(alice, root, clerk):
    StaffFactory(username="intern")
    get_user_model().objects.filter(username="root").update(is_active=False)
    services.expire_passwords(alice)
    calls = [
        ["expire", "--user", "alice"],
        ["expire", "--user", "alice", "--dry-run"],
        ["cancel", "--user", "alice"],
        ["cancel", "--batch", str(ExpiryBatch.objects.get().pk)],
    ]
    for call, name in itertools.product(calls, ("alice", "intern", "root")):
        with pytest.raises(CommandError, match=rf"^{name} is not active, or lacks the permission"):
            run(*call, "--actor", name)
    assert ExpiryBatch.objects.count() == 1 and services.password_status(alice).must_change
    assert ask("cancel", "--user", "alice", "--actor", "clerk")["users_cancelled"] == 1
    clerk.is_active = False
    clerk.save()
    with pytest.raises(CommandError, match="clerk is not active"):
        run("expire", "--user", "alice", "--actor", "clerk")


def test_a_user_model_without_permissions_has_none_to_ask_for():
    assert ranks.may_expire(SimpleNamespace(is_active=True))


def test_a_clerk_as_the_actor_of_the_command_has_the_rank_of_a_clerk(alice, root, clerk):
    services.expire_passwords(root)
    for call in (["expire", "--staff"], ["cancel", "--user", "root"]):
        with pytest.raises(CommandError, match=r"clerk is not a superuser .*: root\."):
            run(*call, "--actor", "clerk")
    with pytest.raises(CommandError, match="clerk is not a superuser"):
        run("cancel", "--batch", str(ExpiryBatch.objects.get().pk), "--actor", "clerk")
    assert ExpiryBatch.objects.count() == 1 and services.password_status(root).must_change
    refused = Cancellation.objects.order_by("pk").values_list("kind", "user", "actor")
    kinds = ["expiry_refused", "cancel_refused", "cancel_refused"]
    assert list(refused) == [(kind, root.pk, clerk.pk) for kind in kinds]
    with pytest.raises(CommandError, match="clerk is not a superuser"):
        run("expire", "--staff", "--actor", "clerk", "--dry-run")
    assert Cancellation.objects.count() == 3  # a dry run writes nothing
    assert ask("expire", "--user", "alice", "--actor", "clerk")["users_expired"] == 1
    assert ask("expire", "--staff")["users_already_expired"] == 1  # the operator is trusted


def test_nobody_cancels_a_demand_on_themselves_by_the_command(alice, root):
    batch = services.expire_everyone()
    for call in (["--user", "root"], ["--everyone"], ["--batch", str(batch.pk)]):
        with pytest.raises(CommandError, match="root may not cancel a demand on themselves"):
            run("cancel", *call, "--actor", "root", "--note", "mine")
    traced = Cancellation.objects.values_list("kind", "user", "actor", "note")
    assert list(traced) == [("cancel_refused", root.pk, root.pk, "mine")] * 3
    assert services.password_status(root).must_change
    assert ask("cancel", "--user", "alice", "--actor", "root")["users_cancelled"] == 1
    assert ask("cancel", "--user", "root")["users_cancelled"] == 1
    assert ask("cancel", "--user", "root", "--actor", "root")["users_cancelled"] == 0
    services.expire_passwords(root, require="warn")
    with pytest.raises(CommandError, match="themselves"):
        run("cancel", "--user", "root", "--actor", "root")


@pytest.mark.parametrize(
    "args",
    [
        ("expire", "--staff", "--changed-before", ""),
        ("expire", "--staff", "--users-from", ""),
        ("expire", "--staff", "--user", ""),
        ("expire", "--everyone", "--yes", "--exclude", ""),
        ("cancel", "--staff", "--group", ""),
        ("report", "--changed-before", ""),
        ("notify", "--users-from", ""),
        ("backfill", "--changed-before", ""),
        ("check", "--user", ""),
        ("status", "--user", ""),
        ("policy", "--user", ""),
    ],
)
def test_a_selector_with_an_empty_value_is_refused(root, args):
    with pytest.raises(CommandError, match=rf"^{args[-2]} has an empty value, nothing was done"):
        run(*args)
    assert not ExpiryBatch.objects.exists()


@pytest.fixture
def killed(refusing):
    """A batch whose process was killed while it selected the users."""

    def make(selection, **given):
        given = {"require": "deny", "sessions": "end", **given}
        return ExpiryBatch.objects.create(created_at=timezone.now(), selection=selection, **given)

    return make


def test_a_batch_is_resumed_with_its_own_selection(alice, bob, killed):
    batch = killed("--user …", require="change")
    for other in (("--everyone", "--yes"), ("--staff",), ("--user", "bob", "--user", "alice")):
        with pytest.raises(CommandError, match="is of other users, nothing was done"):
            run("resume", str(batch.pk), *other)
    assert ask("resume", str(batch.pk), "--user", "alice")["users_expired"] == 1
    everyone = killed("--everyone --exclude …", everyone=True, require="change")
    for other in ((), ("--exclude", "bob", "--exclude", "alice")):
        with pytest.raises(CommandError, match="is of other users, nothing was done"):
            run("resume", str(everyone.pk), *other)
    run("resume", str(everyone.pk), "--exclude", "bob", "--yes")
    assert not services.password_status(bob).must_change
    written_by_a_service = killed("alice and friends", require="change")
    assert ask("resume", str(written_by_a_service.pk), "--user", "bob")["users_expired"] == 1


def test_the_safeguards_of_an_expiry_are_those_of_its_resumption(alice, root, killed):
    batch = killed("--staff")
    clerk = StaffFactory()
    for args, words in (
        (("--staff",), "last active superuser"),
        (("--staff", "--force"), "--yes"),
        (("--staff", "--force", "--yes"), None),
    ):
        if words is None:
            assert ask("resume", str(batch.pk), *args)["state"] == "done"
        else:
            with pytest.raises(CommandError, match=words):
                run("resume", str(batch.pk), *args)
            assert not services.password_status(clerk).must_change
    empty = killed("--user … --staff")
    with pytest.raises(CommandError, match="No user is selected"):
        run("resume", str(empty.pk), "--staff", "--user", "alice", "--yes")
    ranked = killed("--user …", actor=clerk)
    with pytest.raises(CommandError, match="may not expire"):
        run("resume", str(ranked.pk), "--user", "root", "--yes", "--force")
    trace = Cancellation.objects.get()
    assert (trace.actor, trace.batch) == (clerk, ranked)


def test_a_batch_on_everyone_that_leaves_superusers_out_is_for_clerks(alice, root, clerk):
    without_root = services.expire_everyone(exclude=[root, clerk])
    with_root = services.expire_everyone(exclude=clerk)
    run("cancel", "--batch", str(without_root.pk), "--actor", "clerk")
    with pytest.raises(CommandError, match="is not a superuser"):
        run("cancel", "--batch", str(with_root.pk), "--actor", "clerk")
    refused = Cancellation.objects.get(kind="cancel_refused")
    assert refused.batch == with_root and refused.user_id == root.pk


def test_pruning_goes_on_where_a_table_is_missing(monkeypatch):
    missing = OperationalError("no such table: pwexpire_cancellation")
    monkeypatch.setitem(prune.PRUNERS, "cancellations", mock.Mock(side_effect=missing))
    out, err = run("prune", "--format", "json")
    assert json.loads(out)["old_passwords"] == 0 and "run manage.py migrate" in err
    full = OperationalError("disk is full")
    monkeypatch.setitem(prune.PRUNERS, "cancellations", mock.Mock(side_effect=full))
    with pytest.raises(CommandError, match="disk is full"):
        run("prune")

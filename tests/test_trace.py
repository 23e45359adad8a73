"""What is left behind: ends that outlive a cancellation, who cancelled what, and what is pruned."""

from __future__ import annotations

import io
import json
import re
from datetime import timedelta
from pathlib import Path
from unittest import mock

import pytest
from django.apps import apps
from django.contrib.auth import get_user_model
from django.contrib.sessions.backends.file import SessionStore
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connections
from django.db.models import F, Value
from django.db.models.expressions import RawSQL
from django.db.models.functions import Lower
from django.db.models.lookups import Exact
from django.test import Client
from django.utils import timezone

from pwexpire import services, testing
from pwexpire.models import (
    BatchState,
    Cancellation,
    Demand,
    EnforcementState,
    Exclusion,
    ExpiryBatch,
    ExpiryChunk,
    OldPassword,
    PasswordRecord,
    SessionEntry,
    TraceKind,
)
from pwexpire.services import Require, SessionAction, cancellations, pruning
from pwexpire.services.history import prune_history
from pwexpire.services.trace import write_trace
from pwexpire.sessionstore import rows
from tests.support import OLD, is_held

PACKAGE = Path(services.__file__).resolve().parent.parent

pytestmark = pytest.mark.django_db(transaction=True)


def log_in(browser, user):
    browser.client.force_login(user) if hasattr(browser, "client") else browser.force_login(user)
    return browser


def whoami(browser):
    return browser.get("/").content.decode()


def end_everyone(user):
    return services.expire_everyone(sessions=SessionAction.END)


def end_these(user):
    return services.expire_passwords(user, sessions=SessionAction.END)


@pytest.mark.parametrize("restart", [False, True], ids=["same process", "another process"])
@pytest.mark.parametrize("whole", [False, True], ids=["one user", "whole batch"])
@pytest.mark.parametrize("end", [end_everyone, end_these])
def test_a_cancellation_undoes_the_demand_and_never_the_end_of_a_session(
    engine, server, alice, end, whole, restart
):
    before = log_in(server(), alice)
    assert whoami(before) == "alice"
    batch = end(alice)
    services.cancel_expiry(batch if whole else alice)
    if restart:
        testing.reset()
    assert whoami(before) == "anonymous"
    assert not services.password_status(alice).must_change
    after = log_in(server(), alice)
    assert whoami(after) == "alice" and not is_held(after)


def test_a_session_that_began_after_the_end_outlives_the_cancellation(engine, client, alice):
    end_these(alice)
    end_everyone(alice)
    client.login(username="alice", password=OLD)
    assert is_held(client)
    services.cancel_expiry(alice)
    assert whoami(client) == "alice"


def test_whom_an_end_left_out_keeps_the_session_whatever_is_cancelled_later(engine, client, alice):
    client.force_login(alice)
    services.expire_everyone(sessions=SessionAction.END, exclude=alice)
    services.expire_passwords(alice)
    services.cancel_expiry(alice)
    assert whoami(client) == "alice"
    assert PasswordRecord.objects.filter(pk=alice.pk, ended__gt=0).count() == 0


def test_a_cancelled_batch_leaves_the_demands_of_other_batches_open(alice):
    services.expire_passwords(alice)
    services.cancel_expiry(end_these(alice))
    assert services.password_status(alice).must_change


def test_the_ends_of_a_large_cancelled_batch_are_kept_in_few_statements(users, count_queries):
    users(300)
    batch = end_these(get_user_model().objects.all())
    with count_queries() as captured:
        services.cancel_expiry(batch)
    assert len(captured) < 30
    assert PasswordRecord.objects.filter(ended=batch.number).count() == 300


def run(*args):
    out = io.StringIO()
    call_command("pwexpire", *args, stdout=out)
    return out.getvalue()


def trace():
    return json.loads(run("report", "--cancellations", "--format", "json"))


def test_a_cancellation_can_be_read_afterwards_who_when_why_whom_and_of_what(alice, bob, root):
    one = services.expire_passwords([alice, bob])
    everyone = services.expire_everyone()
    services.expire_passwords(bob, require=Require.WARN)
    services.end_sessions(alice)
    services.cancel_expiry(alice, actor=root, note="a mistake")
    services.cancel_expiry(everyone, actor=root, note="all clear")
    services.cancel_expiry(everyone, actor=root, note="again")
    found = trace()
    assert [(row["batch"], row["user"], row["by"], row["note"]) for row in found] == [
        (one.pk, "alice", "root", "a mistake"),
        (everyone.pk, "alice", "root", "a mistake"),
        (everyone.pk, None, "root", "all clear"),
    ]
    assert {row["kind"] for row in found} == {"cancelled"} and found[0]["created_at"]
    services.cancel_expiry(alice)
    assert len(trace()) == 3


def test_the_end_of_a_warning_is_a_cancellation_as_well(alice, bob):
    services.expire_passwords(alice, require=Require.WARN)
    services.expire_everyone(require=Require.WARN)
    services.cancel_expiry([alice])
    assert [row["user"] for row in trace()] == ["alice", "alice"]


def test_the_command_keeps_who_cancelled_and_why(alice, root):
    batch = services.expire_passwords(alice)
    run("cancel", "--user", "alice", "--actor", "root", "--note", "x, y")
    assert [(row["user"], row["by"], row["note"]) for row in trace()] == [("alice", "root", "x, y")]
    text, table = run("report", "--cancellations"), run("report", "--cancellations", "--format=csv")
    assert "alice" in text and "root" in text
    assert table.splitlines()[1].split(",")[1:4] == ["cancelled", str(batch.pk), "alice"]
    with pytest.raises(CommandError, match="no selector"):
        run("report", "--cancellations", "--user", "alice")


def test_the_admin_keeps_who_cancelled_and_shows_it_to_be_read_only(client, alice, root):
    services.expire_passwords(alice)
    client.force_login(root)
    data = {"action": "cancel_expiry_action", "_selected_action": [alice.pk], "confirm": "yes"}
    client.post("/admin/auth/user/", {**data, "note": "by hand"})
    row = Cancellation.objects.get()
    assert (row.user, row.actor, row.note) == (alice, root, "by hand")
    page = client.get("/admin/pwexpire/cancellation/").content.decode()
    assert "by hand" in page and "alice" in page
    assert str(row) == f"{row.pk} (cancelled)"
    assert client.get("/admin/pwexpire/cancellation/add/").status_code == 403
    url = f"/admin/pwexpire/cancellation/{row.pk}/"
    assert client.post(f"{url}delete/", {"post": "yes"}).status_code == 403
    assert client.post(f"{url}change/", {"note": "other"}).status_code == 403


def test_a_refusal_is_kept_as_well(alice, root):
    write_trace([(None, root.pk)], actor=alice, note="rank", kind=TraceKind.EXPIRY_REFUSED)
    assert [(row["kind"], row["user"], row["by"], row["batch"]) for row in trace()] == [
        ("expiry_refused", "root", "alice", None)
    ]


def test_a_cancellation_that_fails_leaves_no_trace_and_a_trace_that_fails_cancels_nothing(alice):
    services.expire_passwords(alice)
    with mock.patch.object(cancellations, "write_trace", side_effect=DatabaseError("full")):
        with pytest.raises(DatabaseError):
            services.cancel_expiry(alice)
    assert services.password_status(alice).must_change and not Cancellation.objects.exists()


def stored_texts():
    """Every text in every table of the package."""
    for model in apps.get_app_config("pwexpire").get_models():
        for row in model.objects.all().values():
            yield from (str(value) for value in row.values() if isinstance(value, str))


def test_the_name_of_a_deleted_user_is_nowhere(alice, bob, root):
    people = get_user_model().objects
    for chosen in (
        alice,
        people.filter(username="alice"),
        people.filter(username__in=["bob", "alice"]),
        people.filter(email__istartswith="alice@ex"),
        people.filter(first_name="Alice").exclude(last_name__icontains="Alice"),
        people.filter(pk__in=people.filter(username="alice").values("pk")),
        people.annotate(low=Lower("username")).filter(low="alice"),
        people.filter(Exact(Value("alice"), F("username"))),
        people.filter(is_staff=False).filter(Exact(Value("alice"), F("username"))),
        people.filter(pwexpire_demands__batch__note="alice"),
        people.filter(user_permissions__codename__in=["alice"], groups__name="it"),
        people.extra(
            where=["username = 'alice' or username = 'Alice O''Hara' or username = %s"],
            params=["alice"],
        ),
        people.filter(pk__in=RawSQL("SELECT id FROM auth_user WHERE username = %s", ["alice"])),
    ):
        services.cancel_expiry(alice)
        services.expire_passwords(chosen, actor=root, exclude=people.filter(username="root"))
        services.cancel_expiry(alice, actor=root, note="n")
    run("expire", "--user", "alice", "--actor", "root")
    run("expire", "--everyone", "--exclude", "alice", "--actor", "root", "--yes")
    services.cancel_expiry(ExpiryBatch.objects.latest("pk"), actor=root, note="all clear")
    assert ExpiryBatch.objects.exclude(actor=None).exists()
    alice.delete()
    root.delete()
    left = [text for text in stored_texts() if re.search("alice|root", text, re.IGNORECASE)]
    assert left == []
    assert Cancellation.objects.get(user=None).actor is None


def test_the_domain_and_the_groups_of_a_selection_stay_readable(alice):
    people = get_user_model().objects
    words = services.expire_passwords(people.filter(email__endswith="@example.com")).selection
    assert "'%@example.com'" in words
    words = services.expire_passwords(people.filter(groups__name__in=["payroll", "it"])).selection
    assert "'payroll'" in words and "'it'" in words


@pytest.mark.parametrize("backend", ["cache", "file"])
@pytest.mark.parametrize("index", [None, True])
def test_engines_without_rows_have_no_index_of_session_keys_unless_it_is_asked_for(
    client, alice, settings, tmp_path, backend, index
):
    settings.SESSION_ENGINE = f"django.contrib.sessions.backends.{backend}"
    settings.SESSION_FILE_PATH = str(tmp_path)
    with mock.patch.object(SessionStore, "_storage_path", str(tmp_path), create=True):
        if index is not None:
            settings.PWEXPIRE_SESSION_INDEX = index
        client.force_login(alice)
        assert SessionEntry.objects.exists() is (index is True)
        if index is None:
            SessionEntry.objects.create(session_key="k", user=alice, created_at=timezone.now())
            run("prune")  # of the time when it was kept
            assert not SessionEntry.objects.exists()
        listed = json.loads(run("sessions", "--format", "json"))
        assert len(listed) == (0 if backend == "cache" and index is None else 1)
        services.expire_passwords(alice)
        assert is_held(client)
        services.end_sessions(alice)
        assert whoami(client) == "anonymous"


def test_engines_with_rows_keep_the_index_and_false_keeps_none(alice, client, settings):
    client.force_login(alice)
    assert SessionEntry.objects.count() == 1
    settings.PWEXPIRE_SESSION_INDEX = False
    client.logout()
    client.force_login(alice)
    run("prune")
    assert not SessionEntry.objects.exists()


@pytest.mark.parametrize("pruned", [False, True])
def test_a_session_opened_while_the_index_was_off_is_found_once_it_is_on(
    alice, bob, client, settings, pruned
):
    services.expire_passwords(bob)  # builds the index
    assert EnforcementState.objects.get().index_complete
    settings.PWEXPIRE_SESSION_INDEX = False
    client.force_login(alice)
    if pruned:
        EnforcementState.objects.update(index_complete=True)
        run("prune")
    assert not EnforcementState.objects.get().index_complete
    del settings.PWEXPIRE_SESSION_INDEX
    assert services.expire_passwords(alice).sessions_flagged == 1


def test_a_login_without_an_index_costs_one_statement_of_it(alice, client, settings, count_queries):
    settings.PWEXPIRE_SESSION_INDEX = False
    with count_queries() as captured:
        client.force_login(alice)
    assert len([one for one in captured if "index_complete" in one["sql"]]) == 1


def test_no_cursor_stays_open_on_the_server_between_two_statements(users, settings):
    """A pool in transaction mode gives the next statement to another connection."""
    people = users(3)
    for user in people:
        Client().force_login(user)
        for number in range(3):
            OldPassword.objects.create(user=user, encoded=str(number), created_at=timezone.now())
    everybody = get_user_model().objects.all()
    assert not settings.DATABASES["default"].get("DISABLE_SERVER_SIDE_CURSORS")
    refuse = AssertionError("a cursor on the server")
    with (
        mock.patch.object(type(connections["default"]), "chunked_cursor", side_effect=refuse),
        mock.patch.object(rows, "PAGE", 2),
    ):
        assert services.preview_expiry(everybody).sessions == 3
        assert services.flag_sessions(everybody).flagged == 3
        assert prune_history() == 9
        services.expire_everyone()
        services.cancel_expiry(services.expire_passwords(everybody, sessions=SessionAction.END))
        for what in ("", "--batches", "--lockouts", "--cancellations"):
            run("report", *filter(None, [what or "--everyone"]))
        run("prune")
    found = [path.name for path in PACKAGE.rglob("*.py") if ".iterator(" in path.read_text()]
    assert found == []


def prune():
    return json.loads(run("prune", "--chunk", "2", "--format", "json"))


def age(model, **filters):
    old = timezone.now() - pruning.KEPT_FOR - timedelta(days=1)
    model.objects.filter(**filters).update(created_at=old)


def test_nothing_of_a_cancelled_batch_stays_open(users, root):
    people = users(5)
    batch = services.expire_passwords(people)
    everyone = services.expire_everyone(exclude=people)
    ending = services.expire_everyone(exclude=people, sessions=SessionAction.END)
    kept = services.expire_passwords(root, sessions=SessionAction.END)
    ExpiryChunk.objects.create(batch=batch)
    for one in (batch, everyone, ending):
        services.cancel_expiry(one)
    assert prune()["demands"] == 5 + 5 + 1
    assert [one.batch for one in Demand.objects.all()] == [kept]
    # Their sessions were left alone, and stay so.
    assert Exclusion.objects.filter(batch=ending).count() == Exclusion.objects.count() == 5
    assert prune()["demands"] == 0


def test_batches_that_nobody_has_to_satisfy_any_more_are_finished(users, count_queries):
    alice, bob = users(2)
    bob.set_unusable_password()
    bob.save()
    one, everyone = services.expire_passwords([alice, bob]), services.expire_everyone()
    cancelled = services.expire_passwords(alice, require=Require.WARN)
    services.cancel_expiry(cancelled)

    def states():
        prune()
        table = json.loads(run("report", "--batches", "--format", "json"))
        stored = ExpiryBatch.objects.order_by("pk").values_list("state", flat=True)
        assert [row["state"] for row in table] == list(stored)
        return list(stored)

    assert states() == ["done", "done", "cancelled"]
    alice.set_password("new-Password-2")
    alice.save()
    shown = json.loads(run("report", "--batches", "--format", "json"))
    assert [row["state"] for row in shown] == ["finished", "finished", "cancelled"]
    assert states() == ["finished", "finished", "cancelled"]
    assert services.resume_expiry(one).state == BatchState.FINISHED
    services.cancel_expiry(everyone)
    assert states() == ["finished", "cancelled", "cancelled"]


@pytest.mark.parametrize("reason", ["lockout", "compromised", "policy", "age"])
def test_what_the_site_asked_for_by_itself_goes_a_good_year_after_it_is_satisfied(
    alice, bob, root, reason
):
    batch = services.expire_passwords(alice, reason=reason)
    asked = services.expire_passwords(bob, reason=reason, actor=root)
    age(ExpiryBatch)
    assert prune()["batches"] == 0
    for user in (alice, bob):
        user.set_password("new-Password-2")
        user.save()
    ExpiryBatch.objects.filter(pk=batch.pk).update(created_at=timezone.now())
    assert prune()["batches"] == 0
    age(ExpiryBatch)
    assert prune()["batches"] == 1
    assert list(ExpiryBatch.objects.all()) == [asked]


def test_all_batches_that_are_satisfied_and_old_go_in_one_run(users):
    now = timezone.now()
    old = {"created_at": now - timedelta(days=401), "selection": "user 1"}
    batches = ExpiryBatch.objects.bulk_create(
        ExpiryBatch(reason="lockout", state=BatchState.DONE, number=n, **old)
        for n in range(1, 10_101)
    )
    Cancellation.objects.create(batch=batches[0], created_at=now)
    assert json.loads(run("prune", "--format", "json"))["batches"] == 10_099


def test_cancellations_go_a_good_year_later(users, root):
    people = users(3)
    services.expire_passwords(people)
    services.cancel_expiry(people, actor=root)
    assert prune()["cancellations"] == 0
    age(Cancellation)
    assert prune()["cancellations"] == 3 and not Cancellation.objects.exists()


def test_the_readme_says_of_each_table_what_is_stored_how_long_and_why():
    text = (PACKAGE.parent / "README.md").read_text()
    section = text.partition("## What is stored")[2].partition("\n## ")[0]
    tables = {row.split("|")[1].strip() for row in section.splitlines() if row.startswith("| `")}
    models = apps.get_app_config("pwexpire").get_models()
    assert tables == {f"`{model.__name__}`" for model in models}
    assert f"{pruning.KEPT_FOR.days} days" in section

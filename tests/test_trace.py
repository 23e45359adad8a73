"""What is left behind: ends that outlive a cancellation, who cancelled what, and what is pruned."""

from __future__ import annotations

import io
import json
import re
from unittest import mock

import pytest
from django.apps import apps
from django.contrib.auth import get_user_model
from django.core.management import CommandError, call_command
from django.db import DatabaseError
from django.db.models import F, Value
from django.db.models.functions import Lower
from django.db.models.lookups import Exact

from pwexpire import services, testing
from pwexpire.models import Cancellation, ExpiryBatch, PasswordRecord, TraceKind
from pwexpire.services import Require, SessionAction, cancellations
from pwexpire.services.trace import write_trace
from tests.support import OLD, is_held

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
    ):
        services.cancel_expiry(alice)
        services.expire_passwords(chosen, actor=root, exclude=people.filter(username="root"))
        services.cancel_expiry(alice, actor=root, note="n")
    run("expire", "--user", "alice", "--actor", "root")
    run("expire", "--everyone", "--exclude", "alice", "--actor", "root")
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

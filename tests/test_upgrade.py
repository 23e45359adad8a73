"""From one release to the next, in either order of code and ``migrate``: who was held stays held.

The database is taken back to what an older release had. What that release wrote, and goes on to
write while it is still running somewhere, is written by models that know its columns only.
"""

from __future__ import annotations

from contextlib import nullcontext
from datetime import timedelta
from importlib import import_module
from types import SimpleNamespace
from unittest import mock

import pytest
from django.contrib.auth import get_user_model
from django.contrib.sessions.models import Session
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection, router, transaction
from django.db.migrations.executor import MigrationExecutor
from django.db.models.signals import post_delete, pre_delete
from django.test import Client
from django.utils import timezone

from pwexpire import admin, services, testing
from pwexpire.feed import feed
from pwexpire.models import Cancellation, ExpiryBatch, PasswordRecord
from pwexpire.receivers import after_user_deleted
from pwexpire.services import demand_filters, trace
from tests.factories import UserFactory
from tests.support import NEW, OLD, change_password, is_held, session_of, store_session

V02, V03 = "0002_bulk_runs", "0003_policies"
EVERYONE, SINGLE, AGED = 1_000, 2_000, 3_000
HELD, FREE = ("alice", "carol", "dave"), ("bob", "erin")


def migrate(*target):
    call_command("migrate", *target, verbosity=0)


@pytest.fixture
def old_schema(transactional_db):
    """The tables as they were; the function migrates back to a release."""
    yield lambda release: migrate("pwexpire", release)
    migrate()


def old_models(release):
    """The models of a release, which name its columns in what they insert."""
    executor = MigrationExecutor(connection)
    found = executor.loader.project_state(("pwexpire", release)).apps
    return SimpleNamespace(
        **{
            name: found.get_model("pwexpire", name)
            for name in ("EnforcementState", "ExpiryBatch", "Demand", "Exclusion", "PasswordRecord")
        },
        User=found.get_model(*get_user_model()._meta.label.split(".")),
    )


def write_batch(old, number, *users, **values):
    now = timezone.now()
    given = {"number": number, "state": "done", "created_at": now, "activated_at": now, **values}
    batch = old.ExpiryBatch.objects.create(**given)
    for user in users:
        old.Demand.objects.create(batch=batch, user_id=user.pk)
    old.EnforcementState.objects.filter(counter__lt=number or 0).update(counter=number)
    return batch


def stamp(number, born):
    return {"n": number, "b": born, "a": None, "p": None}


@pytest.fixture
def site(old_schema, engine, settings):
    """A site of 0.3 with open sessions, open demands, and a password that aged out."""
    old_schema(V03)
    settings.PWEXPIRE_POLICY = "tests.testapp.policies.strict"
    old = old_models(V03)
    people = {name: UserFactory(username=name) for name in (*HELD, *FREE)}
    browsers = {}
    for name, user in people.items():
        browsers[name] = Client()
        browsers[name].force_login(user)
    everyone = write_batch(old, EVERYONE, everyone=True, reason="incident")
    for name in ("alice", "bob"):
        old.Exclusion.objects.create(batch=everyone, user_id=people[name].pk)
    write_batch(old, SINGLE, people["alice"], selection=f"user {people['alice'].pk}")
    aged = f"user {people['dave'].pk}"
    write_batch(old, AGED, people["dave"], reason="age", selection=aged)
    for name, days in (("dave", 90), ("erin", 1)):
        old.PasswordRecord.objects.update_or_create(
            user_id=people[name].pk,
            defaults={"changed_at": timezone.now() - timedelta(days=days), "satisfied": EVERYONE},
        )
    for name, flag, number in (("alice", SINGLE, 0), ("dave", AGED, EVERYONE)):
        held = {"password_expired": True, "_password_expired_demand": flag}
        store_session(browsers[name], _pwexpire=stamp(number, number), **held)
    # No flag: the session of carol is held by the record alone.
    store_session(browsers["carol"], _pwexpire=stamp(0, 0))
    store_session(browsers["bob"], _pwexpire=stamp(0, 0))
    store_session(browsers["erin"], _pwexpire=stamp(EVERYONE, EVERYONE), cart=["tea"])
    testing.reset()
    return SimpleNamespace(**people, browsers=browsers, people=people)


def log_in(user):
    browser = Client()
    form = {"username": user.username, "password": OLD}
    assert browser.post("/accounts/login/", form).status_code == 302
    return browser


def check_all(site):
    for browsers in (site.browsers, {name: log_in(user) for name, user in site.people.items()}):
        assert {name: is_held(browser) for name, browser in browsers.items()} == {
            **dict.fromkeys(HELD, True),
            **dict.fromkeys(FREE, False),
        }


def test_all_are_held_or_free_as_before(site):
    check_all(site)
    migrate()
    testing.reset()
    check_all(site)
    assert session_of(site.browsers["erin"])["cart"] == ["tea"]
    assert not ExpiryBatch.objects.filter(reason="age").exists()
    for name in HELD:
        assert change_password(site.browsers[name]).status_code == 302
        assert not is_held(site.browsers[name])


def test_new_code_before_migrate_changes_cancels_and_deletes(site, caplog):
    browsers = site.browsers
    assert change_password(browsers["alice"]).status_code == 302
    assert not is_held(browsers["alice"])
    assert services.cancel_expiry(site.carol, note="n") == 1
    assert "run manage.py migrate" in caplog.text
    assert not is_held(browsers["carol"])
    assert browsers["bob"].post("/accounts/logout/").status_code in (200, 302)
    site.erin.delete()
    get_user_model().objects.filter(pk=site.bob.pk).delete()
    assert "_auth_user_id" not in session_of(browsers["erin"]) or (
        browsers["erin"].get("/").content == b"anonymous"
    )
    services.expire_passwords(site.alice)
    assert is_held(browsers["alice"])
    with pytest.raises(CommandError, match=r"run manage\.py migrate"):
        call_command("pwexpire", "report", "--cancellations")
    migrate()
    testing.reset()
    assert is_held(browsers["alice"]) and not is_held(browsers["carol"])
    assert change_password(browsers["alice"], old=NEW, new="newer-Password-3").status_code == 302
    assert not is_held(browsers["alice"])


def test_an_administrator_cancels_and_deletes_before_migrate(site, root):
    services.cancel_expiry(root)
    admin = log_in(root)
    form = {"action": "cancel_expiry_action", "_selected_action": [site.carol.pk], "note": "n"}
    done = admin.post("/admin/auth/user/", {**form, "confirm": "yes"}, follow=True)
    assert done.status_code == 200
    assert not is_held(site.browsers["carol"])
    assert admin.get(f"/admin/auth/user/{site.erin.pk}/delete/").status_code == 200
    assert (
        admin.post(f"/admin/auth/user/{site.erin.pk}/delete/", {"post": "yes"}).status_code == 302
    )
    assert not get_user_model().objects.filter(pk=site.erin.pk).exists()


def test_code_of_this_release_on_the_tables_of_0_2_holds_who_was_held(old_schema, alice, client):
    client.force_login(alice)
    old_schema(V02)
    write_batch(old_models(V02), SINGLE, alice)
    testing.reset()
    store_session(client, _pwexpire=stamp(0, 0))
    assert is_held(client) and is_held(log_in(alice))
    migrate()
    testing.reset()
    assert is_held(client) and is_held(log_in(alice))


def expire_in_the_admin(browser, user):
    form = {"action": "expire_passwords_action", "_selected_action": [user.pk], "confirm": "yes"}
    return browser.post("/admin/auth/user/", {**form, "reason": "admin", "sessions": "flag"})


# What the filter and the action are answered on the tables of a release.
USER_ADMIN = {"zero": (503, 503), V02: (200, 503), V03: (200, 302)}


@pytest.mark.parametrize("release", USER_ADMIN)
def test_the_admin_says_to_migrate(old_schema, alice, root, client, release):
    batch = services.expire_passwords(alice)
    services.cancel_expiry(alice)
    client.force_login(root)
    batches, traced = "/admin/pwexpire/expirybatch/", "/admin/pwexpire/cancellation/"
    of_batches = [batches, f"{batches}{batch.pk}/change/", f"{batches}{batch.pk}/history/"]
    ours = [*of_batches, traced, f"{traced}{Cancellation.objects.get().pk}/change/"]
    assert {client.get(url).status_code for url in ours} == {200}
    old_schema(release)
    testing.reset()
    client.force_login(root)
    for url in ours:
        answer = client.get(url)
        if url in of_batches and release == V03:
            assert answer.status_code == 200
        else:
            assert answer.status_code == 503 and b"run manage.py migrate" in answer.content
    assert client.get("/admin/auth/user/").status_code == 200
    filtered = client.get("/admin/auth/user/?expiry=yes")
    done = expire_in_the_admin(client, alice)
    assert (filtered.status_code, done.status_code) == USER_ADMIN[release]
    for answer in (filtered, done):
        assert answer.status_code != 503 or b"run manage.py migrate" in answer.content


def test_another_fault_of_the_database_is_none_of_the_tables(transactional_db, root, client):
    client.force_login(root)
    down = mock.patch.object(admin, "is_expired", side_effect=DatabaseError("deadlock"))
    with down, pytest.raises(DatabaseError, match="deadlock"):
        client.get("/admin/auth/user/?expiry=yes")


@pytest.mark.parametrize("release", ["zero", V02, V03])
def test_the_check_of_the_command_wants_the_tables_of_this_release(old_schema, release):
    old_schema(release)
    with pytest.raises(CommandError, match=r"no such|(not|n't) exist|Unknown column") as refused:
        call_command("pwexpire", "check")
    assert str(refused.value).endswith("run manage.py migrate.")
    migrate()
    call_command("pwexpire", "check")


@pytest.mark.parametrize("release", [V02, V03])
def test_an_older_release_after_migrate(transactional_db, alice, bob, client, release):
    client.force_login(alice)
    old = old_models(release)
    write_batch(old, SINGLE, alice)
    assert is_held(client)
    # A change that the older release records.
    PasswordRecord.objects.all().delete()
    old.PasswordRecord.objects.bulk_create([old.PasswordRecord(user_id=bob.pk)])
    record, made = old.PasswordRecord.objects.get_or_create(user_id=alice.pk)
    assert made
    now = timezone.now()
    old.PasswordRecord.objects.filter(pk=record.pk).update(satisfied=SINGLE, changed_at=now)
    old.Demand.objects.filter(user_id=alice.pk).delete()
    testing.reset()
    assert not is_held(client)
    mine = PasswordRecord.objects.get(pk=bob.pk)
    assert (mine.assumed, mine.given_new, mine.grace_used, mine.would_hold) == (False, False, 0, 0)
    assert ExpiryBatch.objects.get().selection == ""


V04 = "0008_selection_names"


@pytest.fixture
def large(monkeypatch):
    """Every batch is large enough for a filter, if there is a table for it."""
    monkeypatch.setattr(demand_filters, "FILTER_FROM", 1)


@pytest.mark.parametrize("inside", [False, True], ids=["outside", "inside a transaction"])
def test_large_expiries_before_the_table_of_filters(old_schema, large, alice, bob, inside):
    old_schema(V04)
    services.expire_passwords([alice])
    with transaction.atomic() if inside else nullcontext():
        assert feed.view(feed.scope()).is_demanded_after(0, str(alice.pk))
        assert not feed.view(feed.scope()).is_demanded_after(0, str(bob.pk))
    browser = log_in(alice)
    assert is_held(browser) and not is_held(log_in(bob))
    call_command("pwexpire", "prune", verbosity=0)
    migrate()
    services.expire_passwords([bob])
    for reset in (lambda: None, testing.reset):
        reset()
        view = feed.view(feed.scope())
        assert len(view.filters) == 1
        assert all(view.is_demanded_after(0, str(user.pk)) for user in (alice, bob))
    assert is_held(browser) and change_password(browser).status_code == 302
    assert not is_held(browser)


def test_a_large_expiry_of_an_older_release_after_migrate(transactional_db, large, alice, bob):
    """It writes rows and no filter, and ignores the filters that there are."""
    services.expire_passwords([alice])
    old = old_models(V04)
    browser = log_in(bob)
    write_batch(old, 2**50, bob)
    assert is_held(browser) and is_held(log_in(alice))
    assert old.Demand.objects.count() == 2
    testing.reset()
    assert is_held(browser)
    old.ExpiryBatch.objects.all().delete()
    testing.reset()
    assert not is_held(log_in(alice))


@pytest.mark.parametrize("release", [V02, V03])
def test_an_older_release_deletes_users_and_batches(transactional_db, alice, root, release):
    batch = services.expire_passwords(alice, actor=root)
    services.cancel_expiry(alice, actor=root)
    assert Cancellation.objects.filter(user_id=alice.pk, actor_id=root.pk).count() == 1
    old = old_models(release)
    old.ExpiryBatch.objects.filter(pk=batch.pk).delete()
    old.User.objects.filter(pk__in=[alice.pk, root.pk]).delete()
    call_command("pwexpire", "report", "--cancellations", verbosity=0)


def test_who_is_deleted_leaves_no_key_in_the_trace(transactional_db, alice, bob, root):
    for user in (alice, bob):
        services.expire_passwords(user)
        services.cancel_expiry(user, actor=root)
    alice.delete()
    root.delete()
    assert list(Cancellation.objects.values_list("user", "actor")) == [(bob.pk, None)]


def test_a_deletion_on_another_database_leaves_the_trace(transactional_db, alice, root):
    services.expire_passwords(alice)
    services.cancel_expiry(alice, actor=root)
    after_user_deleted(type(alice), alice, using="archive")
    assert Cancellation.objects.filter(user=alice.pk).exists()


def test_what_else_the_database_refuses_is_raised(transactional_db, alice, monkeypatch):
    def refuse(*args, **kwargs):
        raise DatabaseError("down")

    monkeypatch.setattr(trace, "savepoint", refuse)
    with pytest.raises(DatabaseError, match="down"):
        alice.delete()


def test_only_users_are_listened_for_when_they_are_deleted():
    assert post_delete.has_listeners(get_user_model())
    assert not post_delete.has_listeners(Session) and not pre_delete.has_listeners(Session)


SAID = {
    "user 17": None,
    "3 given users": None,
    "everyone": None,
    "": None,
    "--user bob --group Finance": "--user … --group Finance",
    """--user 'Bob O'"'"'Hara' --users-from leak.txt --exclude 'eve x'""": (
        "--user … --users-from leak.txt --exclude …"
    ),
    "--staff --user 'cut o…": "--staff --user …",
    """("auth_user"."username" = 'bob' AND "auth_user"."is_staff")""": (
        """("auth_user"."username" = … AND "auth_user"."is_staff")"""
    ),
    """"auth_user"."email" LIKE '%@example.com' ESCAPE""": None,
    """"auth_user"."email" = '…@example.com'""": None,
    """`auth_user`.`username` IN ('al', 'bob')""": "`auth_user`.`username` IN (…, …)",
    """everyone without "auth_group"."name" IN ('it', 'hr')""": None,
    """"auth_user"."date_joined" > '2026-01-01 00:00:00'""": None,
    "UPPER('bob')": "UPPER(…)",
    """"auth_user"."last_name" = 'O'Hara' OR""": """"auth_user"."last_name" = …""",
}


def test_names_that_0_3_kept_of_selections_go(old_schema):
    old_schema(V03)
    old = old_models(V03)
    for said in SAID:
        write_batch(old, None, selection=said)
    migrate()
    found = ExpiryBatch.objects.order_by("pk").values_list("selection", flat=True)
    assert dict(zip(SAID, found, strict=True)) == {said: now or said for said, now in SAID.items()}


def test_the_name_of_who_cancelled_goes_out_of_the_note(old_schema, root):
    old_schema(V03)
    old, now = old_models(V03), timezone.now()
    notes = {
        "Ticket: 4711\nroot: by mistake": "Ticket: 4711\n…: by mistake",
        "Ticket: 4711": None,
        "": None,
    }
    for note in notes:
        write_batch(old, None, note=note, cancelled_at=now)
    write_batch(old, None, note="root: called")
    migrate()
    found = ExpiryBatch.objects.order_by("pk").values_list("note", flat=True)
    assert list(found) == [new or note for note, new in notes.items()] + ["root: called"]


@pytest.mark.parametrize("vendor", ["postgresql", "sqlite"])
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("allowed", [True, False])
def test_the_index_on_the_records_stops_no_writes_on_postgresql(
    transactional_db, monkeypatch, vendor, inside, allowed
):
    module = import_module("pwexpire.migrations.0004_ended_index")
    (operation,) = module.Migration.operations
    assert module.Migration.atomic is operation.atomic is False
    monkeypatch.setattr(router, "allow_migrate_model", lambda *given: allowed)
    state = MigrationExecutor(connection).loader.project_state(("pwexpire", "0004_ended_index"))
    there = SimpleNamespace(vendor=vendor, in_atomic_block=inside, alias="default")
    editor = mock.Mock(connection=there)
    operation.database_forwards("pwexpire", editor, state, state)
    calls = [one[0] for one in editor.method_calls]
    if not allowed:
        assert not calls
    elif vendor == "postgresql" and not inside:
        # What a run left that was killed goes first, or its name would be taken.
        assert calls == ["remove_index", "add_index"]
        assert all(one.kwargs == {"concurrently": True} for one in editor.method_calls)
    else:
        assert calls == ["add_index"] and not editor.add_index.call_args.kwargs

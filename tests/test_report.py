"""What is told to auditors is what holds, user by user."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import stat
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.hashers import make_password
from django.contrib.auth.models import Group
from django.core.management import CommandError, call_command
from django.db.models import Value
from django.utils import timezone

from pwexpire import services
from pwexpire.management import formats
from pwexpire.management.bars import bars
from pwexpire.models import (
    BatchState,
    Demand,
    EnforcementState,
    Exclusion,
    ExpiryBatch,
    PasswordRecord,
    Reason,
    Require,
    SessionAction,
)
from pwexpire.policy import Policy
from pwexpire.services import demands, report
from pwexpire.services.batch_report import BatchRow
from pwexpire.services.selection import Selection
from pwexpire.services.status import (
    judge_users,
    password_status,
    read_password_state,
    read_rules,
)
from tests.support import OLD

pytestmark = pytest.mark.django_db(transaction=True)
User = get_user_model()
NOW = datetime(2026, 7, 1, 12, tzinfo=timezone.get_default_timezone())
DAY = timedelta(days=1)


def run(*args):
    out = io.StringIO()
    call_command("pwexpire", "report", *args, stdout=out)
    return out.getvalue()


def ask(*args):
    return json.loads(run(*args, "--format", "json"))


def read_csv(text):
    return list(csv.DictReader(io.StringIO(text, newline="")))


@pytest.fixture
def frozen(monkeypatch):
    monkeypatch.setattr(timezone, "now", lambda: NOW)
    return NOW


def by_name(user):
    return Policy(name="odd", max_age=40 * DAY) if user.pk % 2 else Policy(max_age=4 * DAY)


STRICT = Policy(
    name="strict",
    max_age=60 * DAY,
    warn_before=(10 * DAY, 5 * DAY),
    grace_logins=3,
    change_on_first_use=True,
    change_after_admin_reset=True,
    temporary_for=7 * DAY,
)
POLICIES = {
    "none": None,
    "strict": STRICT,
    "warns": replace(STRICT, require="warn"),
    "resets": replace(STRICT, require="reset", grace_logins=0, single_factor_only=True),
    "by rules": {
        "group:payroll": STRICT,
        "staff": replace(STRICT, max_age=30 * DAY, require="deny"),
        "superuser": Policy(name="root", max_age=DAY),
        "default": "pci-dss",
    },
    "by a callable": by_name,
}


def maybe(chance, dice):
    return dice.random() < chance


def ago(dice, most=120):
    return NOW - dice.random() * most * DAY


def make_users(count, dice):
    """Some with a record, in a group, from before pwexpire came, without a password."""
    EnforcementState.objects.update_or_create(pk=1, defaults={"created_at": NOW - 50 * DAY})
    usable = make_password(OLD)
    users = User.objects.bulk_create(
        User(
            username=f"user{n}",
            password=make_password(None) if maybe(0.1, dice) else usable,
            is_staff=maybe(0.3, dice),
            is_superuser=maybe(0.2, dice),
            is_active=maybe(0.9, dice),
            date_joined=ago(dice),
        )
        for n in range(count)
    )
    group = Group.objects.create(name="payroll")
    group.user_set.add(*[user for user in users if maybe(0.3, dice)])
    PasswordRecord.objects.bulk_create(
        PasswordRecord(
            user=user,
            satisfied=dice.randrange(30),
            changed_at=ago(dice) if maybe(0.7, dice) else None,
            assumed=maybe(0.3, dice),
            grace_used=dice.randrange(4),
            given_at=ago(dice, 20) if maybe(0.3, dice) else None,
            given_new=maybe(0.5, dice),
            given_by=dice.choice(users) if maybe(0.5, dice) else None,
            lockout_at=ago(dice) if maybe(0.2, dice) else None,
            would_hold=dice.randrange(3),
            would_hold_at=ago(dice) if maybe(0.2, dice) else None,
        )
        for user in users
        if maybe(0.7, dice)
    )
    return users


def make_batches(users, dice):
    for number in range(1, 30):
        warns, everyone = maybe(0.2, dice), maybe(0.2, dice)
        batch = ExpiryBatch.objects.create(
            number=number if maybe(0.9, dice) else None,
            everyone=everyone,
            holds=not warns and maybe(0.9, dice),
            reason=dice.choice([Reason.ADMIN, Reason.FIRST_USE, Reason.INCIDENT]),
            require=Require.WARN if warns else dice.choice([*["change"] * 4, "reset", "deny"]),
            sessions=dice.choice(SessionAction.values),
            actor=dice.choice([None, *users]),
            note=f"note {number}",
            created_at=NOW,
            activated_at=ago(dice, 20),
            cancelled_at=NOW if maybe(0.3, dice) else None,
            state=BatchState.DONE,
        )
        model = Exclusion if everyone else Demand
        few = 0.95 if everyone else 0.05
        model.objects.bulk_create(
            model(batch=batch, user=user) for user in users if maybe(few, dice)
        )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("policy", POLICIES)
def test_a_page_is_judged_as_each_user_is(settings, frozen, policy, seed):
    dice = random.Random(f"{seed} {policy}")
    users = make_users(60, dice)
    make_batches(users, dice)
    settings.PWEXPIRE_POLICY = POLICIES[policy]
    settings.PWEXPIRE_ASSUME_CHANGED = dice.choice(["now", "joined"])
    settings.PWEXPIRE_APPLIES_TO = lambda user: user.pk % 11 != 0
    settings.PWEXPIRE_SECOND_FACTOR = lambda user: user.pk % 5 == 0
    names = {user.pk: user.username for user in users}
    users = list(User.objects.order_by("pk"))
    for user, row in zip(users, report.evaluate(users), strict=True):
        password_state, status = read_password_state(user), password_status(user)
        told = (
            *(row.require, row.reason, row.since, row.password_next_rotation),
            *(row.policy, row.rule, row.batch, row.by),
        )
        assert told == (
            *(status.require, status.reason, status.since, status.expires_at),
            *(status.policy.name, status.rule, status.batch, names.get(status.actor)),
        )
        assert (row.state in ("expired", "grace", "locked")) == status.must_change
        if row.state != "not_applicable":
            assert (row.state == "warned") == status.warn
        assert (row.state == "grace") == (
            password_state.held_by_age_alone and password_state.grace > 0
        )
        assert (row.state == "locked") == (
            password_state.locked and row.state != "grace" and password_state.held
        )
        assert row.pwdReset == (password_state.given is not None)
        assert row.grace_logins_left == password_state.grace


def test_judgements_are_equal_in_all_that_is_read(settings, frozen):
    dice = random.Random(7)
    users = make_users(300, dice)
    make_batches(users, dice)
    settings.PWEXPIRE_POLICY = STRICT
    users = list(User.objects.order_by("pk"))
    for user, _, password_state, _ in judge_users(users, read_rules()):
        assert password_state == replace(read_password_state(user), ended=0)
    assert {row.state for row in report.evaluate(users)} == set(report.STATES)


def test_a_demand_whose_batch_is_gone_is_passed_over(alice, monkeypatch):
    services.expire_passwords(alice)
    read = demands.demands_in_force

    def and_delete(**filters):
        pairs = list(read(**filters).values_list("user_id", "batch_id"))
        ExpiryBatch.objects.all().delete()

        class Read:
            def values_list(self, *names):
                return pairs

        return Read()

    monkeypatch.setattr(demands, "demands_in_force", and_delete)
    assert report.evaluate([alice])[0].state == "ok"


def test_the_statements_of_a_page_do_not_grow(settings, count_queries):
    settings.PWEXPIRE_POLICY = POLICIES["by rules"]
    dice = random.Random(1)
    users = make_users(3_200, dice)
    make_batches(users[:50], dice)

    def statements(some):
        with count_queries() as captured:
            report.evaluate(list(some))
        return len(captured)

    everybody = User.objects.order_by("pk")
    assert statements(everybody[:50]) == statements(everybody) == 8 + 1  # one reads the users
    with count_queries() as captured:
        rows = list(report.rows(Selection(User.objects.all())))
    assert len(captured) <= 5 * (8 + 3)
    assert [row.user_id for row in rows] == [user.pk for user in users]


def test_users_whose_columns_are_deferred_are_reported_all_the_same(alice, bob, settings):
    settings.PWEXPIRE_POLICY = Policy(max_age=DAY)
    PasswordRecord.objects.filter(pk=alice.pk).update(changed_at=timezone.now() - 2 * DAY)
    for users in (User.objects.only("username"), User.objects.defer("password")):
        rows = list(report.rows(Selection(users)))
        assert [(row.user, row.state) for row in rows] == [("alice", "expired"), ("bob", "ok")]


def test_the_columns(alice, root, settings):
    settings.PWEXPIRE_POLICY = Policy(name="yearly", max_age=365 * DAY)
    services.expire_passwords(alice, actor=root, reason="incident")
    (row,) = ask("--user", "alice")
    record = PasswordRecord.objects.get(pk=alice.pk)
    assert tuple(row) == report.UserRow._fields
    assert row["user"] == "alice" and row["user_id"] == alice.pk and row["is_active"] is True
    assert row["password_enabled"] is True and row["policy"] == "yearly"
    assert row["password_last_changed"] == record.changed_at.isoformat()
    assert row["password_last_changed_assumed"] is None
    assert row["state"] == "expired" and row["require"] == "change" and row["reason"] == "incident"
    assert row["by"] == "root" and row["batch"] == ExpiryBatch.objects.get().pk


def test_an_assumed_change_is_not_told_as_a_change(alice, settings):
    settings.PWEXPIRE_POLICY = Policy(max_age=365 * DAY)
    PasswordRecord.objects.update(assumed=True)
    (row,) = ask()
    assert row["password_last_changed"] is None and row["password_last_changed_assumed"]
    PasswordRecord.objects.all().delete()
    (row,) = ask()
    came = EnforcementState.objects.get().created_at
    assert row["password_last_changed"] is None
    assert row["password_last_changed_assumed"] == came.isoformat()


def test_a_user_without_a_password_is_a_row(alice):
    alice.set_unusable_password()
    alice.save()
    services.expire_everyone()
    (row,) = ask()
    assert row["state"] == "not_applicable" and row["password_enabled"] is False
    assert row["password_last_changed_assumed"] is None


def test_whoever_asked_may_be_gone(alice, root):
    services.expire_passwords(alice, actor=root)
    root.delete()
    (row,) = ask()
    assert row["state"] == "expired" and row["by"] is None


def test_selectors_and_exclude(alice, bob, root):
    assert {row["user"] for row in ask()} == {"alice", "bob", "root"}
    assert {row["user"] for row in ask("--exclude", "bob")} == {"alice", "root"}
    assert [row["user"] for row in ask("--staff")] == ["root"]
    assert ask("--staff", "--exclude", "root") == []
    header, _, row = run("--user", "alice").splitlines()
    assert header.split()[:2] == ["user", "user_id"] and "alice" in row.split()[:2]


def test_a_user_model_without_groups(alice, settings, monkeypatch):
    fields = [one for one in User._meta.get_fields() if one.name != "groups"]
    settings.PWEXPIRE_POLICY = by_name
    monkeypatch.setattr(User._meta, "get_fields", lambda: fields)
    assert [row.user_id for row in report.evaluate([alice])] == [alice.pk]


def test_csv(alice, bob):
    services.expire_passwords(alice)
    text = run("--format", "csv")
    rows = read_csv(text)
    assert [row["user"] for row in rows] == ["alice", "bob"] and text.count("\r\n") == 3
    assert [row["state"] for row in rows] == ["expired", "ok"]
    assert rows[0]["is_active"] == "true" and rows[0]["pwdReset"] == "false"
    assert rows[1]["reason"] == "" and "T" in rows[1]["password_last_changed"]
    assert tuple(read_csv(text)[0]) == report.UserRow._fields


def test_csv_of_nobody_has_a_header(alice):
    assert run("--staff", "--format", "csv").startswith("user,user_id,")


@pytest.mark.parametrize("first", ["=", "+", "-", "@", "\t", "\r", "\n", "\0", "＝"])
def test_no_cell_is_a_formula(alice, first):
    assert formats.cell(f"{first}1+1") == f"'{first}1+1"
    if first == "\0":
        return
    name = f'{first}cmd|"/c calc",A1'
    User.objects.update(username=name)
    services.expire_passwords(alice, note=f"{first}2")
    (row,) = read_csv(run("--format", "csv"))
    assert row["user"] == f"'{name}"
    (batch,) = read_csv(run("--batches", "--format", "csv"))
    assert batch["note"] == f"'{first}2"


def test_numbers_are_left_alone():
    assert formats.cell(-5) == -5 and formats.cell(0) == 0


def test_output_into_a_file(alice, tmp_path):
    path = tmp_path / "report.csv"
    assert run("--format", "csv", "--output", str(path)) == ""
    assert read_csv(path.read_bytes().decode())[0]["user"] == "alice"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["report.csv"]
    before = path.read_bytes()
    with pytest.raises(CommandError, match=r"there already: give another name, or --force\."):
        run("--output", str(path))
    assert path.read_bytes() == before
    run("--format", "json", "--output", str(path), "--force")
    assert json.loads(path.read_text())[0]["user"] == "alice"
    assert os.listdir(tmp_path) == ["report.csv"]


def test_a_file_that_came_meanwhile_is_not_overwritten(alice, tmp_path):
    path = tmp_path / "report"
    with pytest.raises(CommandError, match="there already"):
        with formats.replacing(path, force=False) as write:
            write("new")
            path.write_text("another's")
    assert path.read_text() == "another's" and os.listdir(tmp_path) == ["report"]


def test_a_report_that_fails_leaves_no_file(alice, tmp_path, monkeypatch):
    def fail(*page):
        raise RuntimeError

    monkeypatch.setattr(report, "evaluate", fail)
    with pytest.raises(RuntimeError):
        run("--output", str(tmp_path / "report"))
    assert os.listdir(tmp_path) == []


def test_output_is_refused_in_one_sentence(alice, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "target")
    for path, words in [
        (tmp_path, "is no file"),
        (link, "is no file"),
        ("/dev/null", "is no file"),
        (tmp_path / "no" / "report", "cannot be written"),
        (tmp_path / ("x" * 300), "cannot be written"),
    ]:
        with pytest.raises(CommandError, match=words):
            run("--output", str(path), "--force")
    assert os.listdir(tmp_path) == ["link"]


def test_a_disk_that_is_full(tmp_path):
    with pytest.raises(CommandError, match="cannot be written: No space left"):
        with formats.replacing(tmp_path / "report", force=False):
            raise OSError(28, "No space left on device")
    assert os.listdir(tmp_path) == []


def test_totals(alice, bob, eve, settings, root):
    settings.PWEXPIRE_POLICY = {
        "staff": Policy(name="staff's", max_age=10 * DAY),
        "default": Policy(max_age=100 * DAY),
    }
    now = timezone.now()
    PasswordRecord.objects.filter(pk=bob.pk).update(changed_at=now - 99.5 * DAY)
    PasswordRecord.objects.filter(pk=root.pk).update(changed_at=now - 400 * DAY)
    eve.set_unusable_password()
    eve.save()
    totals = ask("--totals")
    assert totals["users"] == {"all": 4}
    assert totals["state"] == {
        "ok": 2,
        "warned": 0,
        "expired": 1,
        "grace": 0,
        "locked": 0,
        "not_applicable": 1,
    }
    assert totals["reason"] == {"age": 1} and totals["policy"] == {"default": 2, "staff's": 1}
    assert {name: count for name, count in totals["age"].items() if count} == {
        "0 to 29": 1,
        "90 to 179": 1,
        "365 and more": 1,
    }
    assert {name: count for name, count in totals["days_left"].items() if count} == {
        "aged out": 1,
        "0": 1,
        "90 to 179": 1,
    }
    text = run("--totals")
    assert "age in days\n" in text and "########" in text
    rows = read_csv(run("--totals", "--format", "csv"))
    assert {"total": "state", "value": "ok", "users": "2"} in rows
    settings.PWEXPIRE_POLICY = None
    assert ask("--totals")["days_left"]["never"] == 3


def test_bars():
    assert bars({}) == [] and bars({"a": 0}) == ["  a  0"]
    assert bars({"a": 1, "bc": 1_000}) == [f"  a       1  {'#'}", f"  bc  1,000  {'#' * 40}"]


def test_batches(alice, bob, eve, root):
    services.expire_passwords([alice, bob], actor=root, note="leak", reason="incident")
    services.expire_everyone(exclude=eve, require=Require.WARN)
    cancelled = services.expire_passwords([alice, bob], require=Require.CHANGE)
    services.cancel_expiry(cancelled)
    gone = services.expire_everyone()
    services.cancel_expiry(gone)
    ExpiryBatch.objects.create(everyone=True, created_at=timezone.now())
    alice.set_password("new-Password-2")
    alice.save()
    eve.set_unusable_password()
    eve.save()
    first, everyone, third, fourth, staging = ask("--batches")
    assert tuple(first) == BatchRow._fields
    assert first["by"] == "root" and first["note"] == "leak" and first["reason"] == "incident"
    assert first["selection"] == "2 given users" and first["users_expired"] == 2
    assert first["open_demands"] == 1 and first["require"] == "change"
    assert everyone["selection"] == f"everyone without user {eve.pk}"
    assert everyone["everyone"] and everyone["open_demands"] == 2  # bob and root
    assert third["state"] == fourth["state"] == "cancelled" and third["cancelled_at"]
    assert [one["open_demands"] for one in (third, fourth, staging)] == [0, 0, 0]
    header, _, row, *_ = run("--batches").splitlines()
    at = header.index("selection")
    assert row[at:].startswith("2 given users  ")


def test_batches_come_in_pages(users, monkeypatch, count_queries):
    monkeypatch.setattr(report, "PAGE", 2)
    for user in users(5):
        services.expire_passwords(user)
    with count_queries() as captured:
        assert [row["open_demands"] for row in ask("--batches")] == [1] * 5
    assert len(captured) <= 8


def test_batches_take_no_selector(alice):
    with pytest.raises(CommandError, match="goes with no selector"):
        run("--batches", "--user", "alice")


# What a batch keeps of whom it was asked for.


def selection_of(users, **kwargs):
    return services.expire_passwords(users, **kwargs).selection


def test_given_users_in_words(alice, bob, eve):
    assert selection_of(alice) == f"user {alice.pk}"
    assert selection_of([alice, bob]) == "2 given users"
    assert selection_of(User.objects.order_by("pk")[:2]) == "2 given users"
    assert selection_of([]) == "0 given users"
    assert selection_of([alice], exclude=[bob, eve]) == f"user {alice.pk} without 2 given users"
    assert services.expire_everyone().selection == "everyone"


def test_a_queryset_in_words_costs_nothing(alice, count_queries):
    users = User.objects.filter(is_staff=False, username__startswith="al")
    with count_queries() as captured:
        words = Selection(users).in_words()
    assert not captured
    assert "is_staff" in words and "username" in words and "al" not in words.split("LIKE")[1]
    assert selection_of(users) == words
    assert selection_of(User.objects.all()) == "all users"
    assert selection_of(User.objects.none()) == "nobody"
    assert selection_of(User.objects.filter(pk__in=[])) == "nobody"
    joined = User.objects.filter(groups__name="payroll").distinct()
    assert "'payroll'" in selection_of(joined)
    inner = User.objects.filter(pk__in=User.objects.filter(last_name="x").values("pk"))
    assert "last_name" in selection_of(inner, exclude=User.objects.filter(is_staff=True))


def test_a_selection_names_no_address(alice):
    words = selection_of(User.objects.filter(email__in=["alice@example.com", "b.c+d@example.org"]))
    assert "…@example.com" in words and "alice" not in words and "b.c+d" not in words
    assert "'%@example.com'" in selection_of(User.objects.filter(email__endswith="@example.com"))
    call_command(
        "pwexpire", "expire", "--user", "alice@example.com", "--note", "", stdout=io.StringIO()
    )
    assert ExpiryBatch.objects.latest("pk").selection == "--user …"


def test_a_long_condition_is_shortened(alice):
    words = selection_of(User.objects.filter(pk__in=range(5_000)))
    assert len(words) == 1_000 and words.endswith("…")
    words = selection_of(User.objects.filter(groups__name__in=["x" * 500, "100%"]))
    assert f"'{'x' * 39}…'" in words and "'100%'" in words


def test_a_condition_that_cannot_be_told(alice):
    class Broken(Value):
        def as_sql(self, compiler, connection):
            raise ValueError

    users = User.objects.filter(is_staff=Broken(False))
    assert Selection(users).in_words() == "users by a query"


def test_the_command_keeps_what_was_typed(alice, bob, tmp_path):
    out = io.StringIO()
    call_command("pwexpire", "expire", "--everyone", "--exclude", "bob", "--yes", stdout=out)
    assert ExpiryBatch.objects.latest("pk").selection == "--everyone --exclude …"
    path = tmp_path / "the names"
    path.write_text("alice\n")
    args = ["--users-from", str(path), "--changed-before", "0d", "--user", "alice"]
    call_command("pwexpire", "expire", *args, stdout=out)
    kept = ExpiryBatch.objects.latest("pk").selection
    assert kept == f"--user … --users-from '{path}' --changed-before 0d"


def test_ended_sessions_keep_it_too(alice):
    services.end_sessions(alice)
    assert ExpiryBatch.objects.get().selection == f"user {alice.pk}"


def test_the_status_of_a_user_names_policy_and_actor(alice, root, settings):
    settings.PWEXPIRE_POLICY = {"default": Policy(name="yearly", max_age=365 * DAY)}
    services.expire_passwords(alice, actor=root)
    out = io.StringIO()
    call_command("pwexpire", "status", "--user", "alice", "--format", "json", stdout=out)
    (row,) = json.loads(out.getvalue())
    assert row["policy"] == "yearly" and row["rule"] == "default" and row["actor"] == "root"
    assert row["batch"] == ExpiryBatch.objects.get().pk and row["grace_logins"] is None


def test_what_lockouts_led_to(alice, settings):
    from pwexpire.services.lockouts import expire_after_lockout

    settings.PWEXPIRE_EXPIRE_ON_LOCKOUT = True
    expire_after_lockout(alice, window=timedelta(0), address="192.0.2.7")
    out = io.StringIO()
    call_command("pwexpire", "report", "--lockouts", "--format", "json", stdout=out)
    (told,) = json.loads(out.getvalue())
    assert told["user"] == alice.pk and told["still_open"] and "192.0.2.7" in told["note"]
    with pytest.raises(CommandError, match="goes with no selector"):
        call_command("pwexpire", "report", "--lockouts", "--user", "alice")


def test_what_people_read_has_words_and_zones(settings):
    now = datetime(2026, 1, 31, 10, 5, tzinfo=UTC)
    settings.TIME_ZONE = "UTC"
    assert formats.show_plain(now) == "2026-01-31 10:05 UTC"
    settings.TIME_ZONE = "Europe/Berlin"
    assert formats.show_plain(now.replace(tzinfo=None)) == "2026-01-31 10:05 Europe/Berlin"
    assert [formats.show_plain(timedelta(days)) for days in (1, 90)] == ["1 day", "90 days"]
    assert formats.show_plain(timedelta(hours=36)) == "1 day, 12:00:00"
    assert formats.show_plain((True, None, "")) == "yes, -, -"

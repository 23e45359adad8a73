"""Many users and sessions: set-based, in chunks, by several workers, stopped and resumed."""

from __future__ import annotations

import uuid
from types import SimpleNamespace
from unittest import mock

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.contrib.sessions.models import Session
from django.db import IntegrityError, OperationalError, transaction
from django.db.models import Count, Value
from django.test import Client
from django.utils import timezone

from pwexpire import retries, services
from pwexpire.exceptions import BatchNotResumable
from pwexpire.models import BatchState, Demand, ExpiryBatch, ExpiryChunk, SessionEntry
from pwexpire.services import SessionAction, index, projection, selection, staging
from pwexpire.services.selection import Selection
from pwexpire.sessionstore.base import Outcome
from pwexpire.sessionstore.registry import get_adapter
from pwexpire.sessionstore.rows import RowAdapter
from tests.support import change_password, is_held, session_of

pytestmark = pytest.mark.django_db(transaction=True)
User = get_user_model()
BACKENDS = "django.contrib.sessions.backends."
COLUMN = "tests.testapp.sessions_db"


@pytest.fixture
def small(monkeypatch):
    """Chunks of two."""
    monkeypatch.setattr(selection, "CHUNK", 2)
    monkeypatch.setattr(selection, "RANGE", 2)
    monkeypatch.setattr(projection, "CHUNK", 2)
    monkeypatch.setattr("pwexpire.services.sessions.CHUNK", 2)
    monkeypatch.setattr("pwexpire.sessionstore.rows.PAGE", 2)


@pytest.fixture
def browsers(users):
    """Five users with two sessions each."""

    def log_in(count=5):
        people = users(count)
        found = []
        for user in [*people, *people]:
            browser = Client()
            browser.force_login(user)
            found.append(browser)
        return people, found

    return log_in


def alone(work, *args):
    return retries.in_transaction(lambda: work(*args), using="default")


def flagged(found):
    return [browser for browser in found if session_of(browser).get("password_expired")]


def test_the_number_of_statements_does_not_grow_with_the_users(users, count_queries):
    def statements(count):
        users(count)
        with count_queries() as queries:
            services.expire_passwords(User.objects.filter(pwexpire_demands=None), defer=True)
        return len(queries)

    statements(1)
    few = statements(3)
    assert statements(300) <= few


@pytest.mark.parametrize(
    "narrow",
    [
        lambda: User.objects.filter(groups__name__in=["a", "b"]),
        lambda: User.objects.filter(groups__name__in=["a", "b"]).distinct(),
        lambda: User.objects.annotate(n=Count("groups")).filter(n=2),
        lambda: User.objects.filter(groups__name="a").order_by("username").values("username"),
        lambda: User.objects.exclude(groups=None).defer("email"),
        lambda: User.objects.filter(groups__name="a").union(User.objects.filter(groups__name="b")),
        lambda: User.objects.order_by("pk").filter(groups__name="a")[:100],
        lambda: User.objects.alias(x=Value(1)).filter(x=1, groups__name="b"),
        lambda: list(User.objects.filter(groups__name="a")),
    ],
)
def test_every_query_set_means_the_same_users(users, narrow, small):
    people = users(7)
    for name in "ab":
        group = Group.objects.create(name=name)
        group.user_set.set(people[:5])
    batch = services.expire_passwords(narrow())
    assert batch.users_expired == 5 and batch.state == BatchState.DONE
    assert {row.user_id for row in Demand.objects.all()} == {user.pk for user in people[:5]}


@pytest.mark.parametrize("everyone", [False, True])
@pytest.mark.parametrize("kind", ["rows", "annotated", "set", "long set"])
def test_every_exclusion(users, kind, everyone, small):
    people = users(6)
    out = User.objects.filter(pk__in=[user.pk for user in people[:3]])
    if kind == "annotated":
        out = out.annotate(n=Count("groups"))
    if "set" in kind:
        out = list(out)[: 3 if "long" in kind else 2]
    if everyone:
        services.expire_everyone(exclude=out)
    else:
        batch = services.expire_passwords(User.objects.all(), exclude=out)
        assert batch.users_expired == 6 - len(out)
    held = [services.password_status(user).must_change for user in people]
    assert held == [False] * len(out) + [True] * (6 - len(out))


def test_counts_are_those_of_the_database(users, small):
    one, two, three, four, five = users(5)
    three.set_unusable_password()
    three.save()
    services.expire_passwords(one)
    everyone = services.expire_everyone(exclude=[two, four, five])
    services.record_password_change(one)
    services.expire_passwords(four)
    batch = services.expire_passwords(User.objects.all())
    found = (batch.users_expired, batch.users_already_expired, batch.users_not_applicable)
    assert found == (3, 1, 1)
    ending = services.expire_passwords(User.objects.all(), sessions=SessionAction.END)
    found = (ending.users_expired, ending.users_already_expired, ending.users_not_applicable)
    assert found == (0, 4, 1) and ending.demands.count() == 4
    assert services.preview_expiry(User.objects.all()).already_expired == 4
    services.cancel_expiry(everyone)
    assert services.preview_expiry(User.objects.all()).already_expired == 4


@pytest.mark.parametrize("where", ["index", "column", "scan", "file"])
def test_chunks_reach_every_session(browsers, settings, small, where, tmp_path):
    settings.SESSION_ENGINE = {"column": COLUMN}.get(where, BACKENDS + "db")
    settings.PWEXPIRE_SESSION_INDEX = where == "index"
    if where == "file":
        settings.SESSION_ENGINE = BACKENDS + "file"
        settings.SESSION_FILE_PATH = str(tmp_path)
    _people, found = browsers()
    seen = []
    batch = services.expire_passwords(
        User.objects.all(), progress=lambda done, total: seen.append(done)
    )
    assert batch.state == BatchState.DONE and not ExpiryChunk.objects.exists()
    assert seen[-1] == 10
    assert batch.sessions_flagged == (0 if where == "file" else 10)
    assert len(flagged(found)) == batch.sessions_flagged
    assert all(is_held(browser) for browser in found)
    assert all(change_password(found[n]).status_code == 302 for n in range(5))
    assert not any(is_held(found[n]) for n in range(5))


def test_sessions_are_ended_in_chunks(browsers, small, engine, settings):
    settings.PWEXPIRE_SESSION_INDEX = True
    _people, found = browsers()
    batch = services.expire_passwords(User.objects.all(), sessions=SessionAction.END)
    assert batch.state == BatchState.DONE
    assert batch.sessions_ended == (0 if "signed_cookies" in engine else 10)
    assert all(browser.get("/").content == b"anonymous" for browser in found)
    assert not SessionEntry.objects.exists()


@pytest.mark.parametrize("user_engine", [BACKENDS + "db", COLUMN])
def test_users_without_sessions_are_passed_over(
    users, browsers, small, monkeypatch, settings, user_engine
):
    settings.SESSION_ENGINE = user_engine
    users(9)
    _people, _found = browsers(1)
    users(9)
    monkeypatch.setattr(projection, "PASSED_OVER_MAX", 4)
    batch = services.expire_passwords(User.objects.all())
    assert batch.users_expired == 19 and batch.sessions_flagged == 2
    assert batch.state == BatchState.DONE


@pytest.mark.parametrize("where", ["index", "column", "scan"])
@pytest.mark.parametrize("at", range(1, 6))
def test_killed_while_flagging_and_gone_on_with(browsers, settings, small, where, at):
    settings.SESSION_ENGINE = {"column": COLUMN}.get(where, BACKENDS + "db")
    settings.PWEXPIRE_SESSION_INDEX = where == "index"
    people, found = browsers()
    real, calls = RowAdapter.flag, []

    def die(self, wanted):
        calls.append(wanted)
        if len(calls) == at:
            raise KeyboardInterrupt
        return real(self, wanted)

    with mock.patch.object(RowAdapter, "flag", die), pytest.raises(KeyboardInterrupt):
        services.expire_passwords(User.objects.all())
    batch = ExpiryBatch.objects.get()
    assert batch.state == BatchState.ACTIVE and len(flagged(found)) < 10
    assert batch.sessions_flagged == len(flagged(found))
    assert all(services.password_status(user).must_change for user in people)
    services.resume_expiry(batch)
    assert batch.state == BatchState.DONE and batch.sessions_flagged == 10
    assert len(flagged(found)) == 10 and not ExpiryChunk.objects.exists()


def test_killed_while_staging_goes_on_where_it_stopped(users, small):
    people = users(6)

    def die(done, total):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        services.expire_passwords(User.objects.all(), progress=die)
    batch = ExpiryBatch.objects.get()
    assert batch.state == BatchState.STAGING and batch.users_expired == 4
    seen = []
    services.resume_expiry(
        batch, User.objects.all(), progress=lambda done, total: seen.append(done)
    )
    assert seen[0] == 2 and batch.users_expired == 6
    assert all(services.password_status(user).must_change for user in people)


@pytest.mark.parametrize("where", ["staging", "flagging"])
def test_stopped_from_outside(browsers, small, where):
    people, found = browsers()
    told = []

    def stop(done, total):
        if len(told) == 0 and bool(ExpiryBatch.objects.get().number) == (where == "flagging"):
            told.append(services.stop_expiry(ExpiryBatch.objects.get()))

    batch = services.expire_passwords(User.objects.all(), progress=stop)
    assert told == [True] and batch.state == BatchState.STOPPED
    assert services.stop_expiry(batch) is False
    assert len(flagged(found)) < 10
    held = where == "flagging"
    assert all(services.password_status(user).must_change == held for user in people)
    if where == "staging":
        with pytest.raises(BatchNotResumable):
            services.resume_expiry(batch)
        services.resume_expiry(batch, User.objects.all())
    else:
        services.resume_expiry(batch)
    assert batch.state == BatchState.DONE and len(flagged(found)) == 10
    assert services.stop_expiry(batch) is False


def test_stopped_before_it_is_in_force(users):
    users(2)
    with transaction.atomic():
        batch = services.expire_passwords(User.objects.all())
        assert services.stop_expiry(batch)
    batch.refresh_from_db()
    assert batch.number is None and batch.state == BatchState.STOPPED
    services.resume_expiry(batch, User.objects.all())
    assert batch.number and batch.state == BatchState.DONE


def test_cancelled_while_staging(users, small):
    people = users(4)

    def cancel(done, total):
        services.cancel_expiry(ExpiryBatch.objects.get())

    batch = services.expire_passwords(User.objects.all(), progress=cancel)
    assert batch.state == BatchState.CANCELLED and batch.number is None
    assert not any(services.password_status(user).must_change for user in people)


def test_no_more_time_is_taken_than_was_given(browsers, small):
    people, found = browsers()
    out = people[:4]
    batch = services.expire_passwords(User.objects.all(), exclude=out, seconds=0)
    assert batch.state == BatchState.STAGING and batch.users_expired == 0
    services.resume_expiry(batch, User.objects.all(), seconds=0)
    assert batch.state == BatchState.STAGING and batch.users_expired == 2
    services.resume_expiry(batch, User.objects.all(), seconds=0)
    assert batch.state == BatchState.ACTIVE and not flagged(found)
    ExpiryBatch.objects.update(state=BatchState.STAGED, number=None, activated_at=None)
    services.resume_expiry(batch, seconds=0)
    assert batch.state == BatchState.ACTIVE and not flagged(found)
    services.resume_expiry(batch)
    assert batch.state == BatchState.DONE and flagged(found)


def test_deferred_is_in_force_and_done_by_others(browsers, small):
    _people, found = browsers()
    batch = services.expire_passwords(User.objects.all(), defer=True)
    assert batch.state == BatchState.ACTIVE and batch.is_unfinished and not flagged(found)
    assert is_held(found[0])
    services.resume_expiry(batch, seconds=0)
    assert batch.state == BatchState.ACTIVE
    services.resume_expiry(batch, defer=True)
    assert batch.state == BatchState.ACTIVE and len(flagged(found)) == 1
    services.resume_expiry(batch)
    assert batch.state == BatchState.DONE and len(flagged(found)) == 10
    assert not batch.is_unfinished


def test_a_part_that_another_worker_is_at(browsers, small):
    """The last of them says that the batch is done."""
    _people, found = browsers()
    batch = services.expire_passwords(User.objects.all(), defer=True)
    assert alone(projection._give_out, batch) == 0
    chunk = ExpiryChunk.objects.get()
    with mock.patch.object(projection, "_do_chunk", return_value=None):
        projection._work_through(batch, None, None)
        for other in ExpiryChunk.objects.exclude(pk=chunk.pk):
            alone(projection._project_part, batch, other.lower, other.upper)
            other.delete()
        projection.project(batch)
    assert batch.state == BatchState.ACTIVE and len(flagged(found)) == 8
    services.resume_expiry(batch)
    assert batch.state == BatchState.DONE and len(flagged(found)) == 10


def test_a_chunk_that_somebody_else_took(browsers, small):
    batch = services.expire_passwords(browsers()[0], defer=True)
    alone(projection._give_out, batch)
    with mock.patch.object(ExpiryChunk.objects.none().__class__, "delete", return_value=(0, {})):
        assert alone(projection._do_chunk, batch) is None


def test_a_change_during_the_run_is_not_flagged_again(browsers, small):
    people, _found = browsers()
    batch = services.expire_passwords(User.objects.all(), defer=True)
    people[3].set_password("new-Password-2")
    people[3].save()
    services.resume_expiry(batch)
    assert batch.sessions_flagged == 8


def test_an_engine_that_changes_during_the_run(browsers, small, settings):
    _people, found = browsers()
    batch = services.expire_passwords(User.objects.all(), defer=True)
    alone(projection._give_out, batch)
    alone(projection._do_chunk, batch)
    settings.PWEXPIRE_SESSION_INDEX = False
    services.resume_expiry(batch)
    assert batch.state == BatchState.DONE and len(flagged(found)) == 10


def test_a_batch_on_everyone_needs_no_workers(alice, client):
    client.force_login(alice)
    batch = services.expire_everyone()
    assert batch.state == BatchState.DONE and not batch.is_unfinished
    assert is_held(client)


@pytest.mark.parametrize("user_engine", [BACKENDS + "db", COLUMN])
def test_one_user_with_many_sessions(alice, small, settings, user_engine):
    settings.SESSION_ENGINE = user_engine
    for _ in range(5):
        Client().force_login(alice)
    assert services.expire_passwords(alice).sessions_flagged == 5
    assert services.flag_sessions(alice).outcomes[Outcome.ALREADY] == 5


def test_a_dead_session_is_not_flagged(alice, client):
    client.force_login(alice)
    Session.objects.update(expire_date="2020-01-01T00:00Z")
    assert services.expire_passwords(alice).sessions_flagged == 0


class Cause(Exception):
    sqlstate = ""


def with_cause(state):
    error, cause = OperationalError("x"), Cause()
    cause.sqlstate = state
    error.__cause__ = cause
    return error


@pytest.mark.parametrize("state", ["40001", "40P01", "55P03"])
def test_conflicts_of_postgresql(state):
    assert retries.is_conflict(with_cause(state))
    assert not retries.is_conflict(with_cause("57P01"))


def test_conflicts_of_the_others():
    assert retries.is_conflict(OperationalError(1213, "Deadlock found"))
    assert retries.is_conflict(OperationalError("database is locked"))
    assert retries.is_conflict(IntegrityError("UNIQUE constraint failed: a.b"))
    assert retries.is_conflict(IntegrityError("FOREIGN KEY constraint failed"))
    assert retries.is_conflict(IntegrityError(1062, "Duplicate entry"))
    assert not retries.is_conflict(IntegrityError("NOT NULL constraint failed: a.b"))
    assert not retries.is_conflict(OperationalError(2006, "gone away"))
    assert not retries.is_conflict(OperationalError())
    assert not retries.is_conflict(ValueError("deadlock"))


@pytest.mark.parametrize(
    ("said", "tries"), [("NOT NULL constraint failed", 1), ("UNIQUE constraint failed", 3)]
)
def test_a_fault_that_stays_is_not_tried_for_seconds(said, tries):
    work = mock.Mock(side_effect=IntegrityError(said))
    with pytest.raises(IntegrityError):
        retries.retried(work, using="default")
    assert work.call_count == tries


def test_inside_the_callers_transaction_nothing_is_tried_again():
    calls = []

    def fail():
        calls.append(1)
        raise OperationalError("deadlock detected")

    with transaction.atomic(), pytest.raises(OperationalError):
        retries.in_transaction(fail, using="default")
    assert len(calls) == 1
    with pytest.raises(OperationalError), mock.patch.object(retries.time, "sleep"):
        retries.in_transaction(fail, using="default")
    assert len(calls) == 1 + retries.TRIES
    calls.clear()
    with pytest.raises(ZeroDivisionError):
        retries.in_transaction(lambda: calls.append(1) or 1 / 0, using="default")
    assert len(calls) == 1


def test_a_conflict_inside_a_chunk_begins_the_chunk_again(browsers, small):
    """What was counted and written before is rolled back with it."""
    _people, found = browsers()
    real, calls = RowAdapter._swap_rows, []

    def flaky(self, swaps):
        calls.append(swaps)
        missed = real(self, swaps)
        if len(calls) in (2, 3):
            raise OperationalError("deadlock detected")
        return missed

    with (
        mock.patch.object(RowAdapter, "_swap_rows", flaky),
        mock.patch.object(retries.time, "sleep"),
    ):
        batch = services.expire_passwords(User.objects.all())
    assert batch.sessions_flagged == 10 and len(flagged(found)) == 10


def test_a_conflict_while_sessions_are_ended(browsers, small):
    _people, _found = browsers()
    real, calls = RowAdapter._delete_rows, []

    def flaky(self, wanted, **kwargs):
        calls.append(wanted)
        if len(calls) == 2:
            raise OperationalError("deadlock detected")
        return real(self, wanted, **kwargs)

    with (
        mock.patch.object(RowAdapter, "_delete_rows", flaky),
        mock.patch.object(retries.time, "sleep"),
    ):
        batch = services.expire_passwords(User.objects.all(), sessions=SessionAction.END)
    assert batch.sessions_ended == 10 and get_adapter().supports_end


def test_row_locks_are_used_where_there_are_any(browsers, small, monkeypatch):
    """As on PostgreSQL and MariaDB; SQLite takes no notice of them."""
    features = SimpleNamespace(has_select_for_update=True, has_select_for_update_skip_locked=True)
    able = {"default": SimpleNamespace(features=features)}
    monkeypatch.setattr(projection, "connections", able)
    _people, found = browsers()
    batch = services.expire_passwords(User.objects.all())
    assert batch.state == BatchState.DONE and len(flagged(found)) == 10


@pytest.mark.parametrize("everyone", [False, True])
def test_without_insert_from_select(users, small, monkeypatch, everyone):
    """As on MariaDB, where it would lock the users."""
    monkeypatch.setattr(staging, "connections", {"default": SimpleNamespace(vendor="mysql")})
    people = users(5)
    if everyone:
        services.expire_everyone(exclude=User.objects.filter(pk__in=[user.pk for user in people]))
        assert not any(services.password_status(user).must_change for user in people)
    else:
        assert services.expire_passwords(User.objects.all()).users_expired == 5
        assert all(services.password_status(user).must_change for user in people)


def test_nobody_is_meant(alice):
    batch = services.expire_passwords([alice], exclude=User.objects.filter(pk__in=[alice.pk]))
    assert batch.users_expired == 0 and batch.state == BatchState.DONE
    with mock.patch.object(Selection, "part", lambda self, after: (User.objects.none(), "1")):
        batch = ExpiryBatch(created_at=timezone.now())
        batch.save()
        assert alone(staging._stage_chunk, batch, Selection([alice]), False) == 0


def test_a_session_that_somebody_else_wrote_is_read_again_in_the_chunk(browsers, small):
    _people, found = browsers()
    real, calls = RowAdapter._swap_rows, []

    def beaten(self, swaps):
        calls.append(swaps)
        return set(swaps) if len(calls) == 1 else real(self, swaps)

    with mock.patch.object(RowAdapter, "_swap_rows", beaten):
        batch = services.expire_passwords(User.objects.all())
    assert batch.sessions_flagged == 10 and len(flagged(found)) == 10


def test_the_index_is_built_with_progress(browsers, small):
    browsers()
    SessionEntry.objects.all().delete()
    seen = []
    added = index.build_index(get_adapter(), lambda done, total: seen.append(done))
    assert added == 10 and seen[-1] == 10
    assert index.build_index(get_adapter()) == 0


def test_keys_as_text():
    key = uuid.uuid4()
    assert selection.key_text(key) == str(key) and selection.key_text(7) == "7"
    assert str(ExpiryChunk(batch_id=1, lower="user:1", upper="user:2")) == "1: user:1-user:2"

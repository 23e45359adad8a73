from __future__ import annotations

from datetime import timedelta
from unittest import mock

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.db import OperationalError, transaction

from pwexpire import retries, services
from pwexpire.exceptions import BatchNotResumable, InvalidRequest
from pwexpire.models import BatchState, Demand, EnforcementState, ExpiryBatch, PasswordRecord
from pwexpire.policy import Policy
from pwexpire.services import Reason, Require, SessionAction
from pwexpire.services import batches as inner
from pwexpire.signals import expiry_cancelled, password_changed, passwords_expired

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def heard():
    found = []

    def listen(sender, signal, **kwargs):
        found.append((signal, kwargs))

    signals = (passwords_expired, expiry_cancelled, password_changed)
    for signal in signals:
        signal.connect(listen)
    yield found
    for signal in signals:
        signal.disconnect(listen)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"reason": "whim"}, "Unknown reason"),
        ({"require": Require.RESET}, "needs a backend"),
        ({"require": "beg"}, "Unknown require"),
        ({"sessions": "keep"}, "Unknown sessions"),
        ({"note": 1}, "note must be"),
        ({"actor": "root"}, "not a saved user"),
        ({"exclude": 7}, "exclude must be"),
    ],
)
def test_what_cannot_be_meant_is_refused(alice, kwargs, words):
    with pytest.raises(InvalidRequest, match=words):
        services.expire_passwords(alice, **kwargs)
    assert not ExpiryBatch.objects.exists()


@pytest.mark.parametrize("users", [None, 7, "alice", [None], [object()]])
def test_only_users_are_expired(users):
    with pytest.raises(InvalidRequest):
        services.expire_passwords(users)
    assert not ExpiryBatch.objects.exists()


def test_unsaved_users_and_other_models_are_refused(alice):
    with pytest.raises(InvalidRequest, match="not a saved user"):
        services.expire_passwords([alice, get_user_model()(username="x")])
    with pytest.raises(InvalidRequest, match="pass one of User"):
        services.expire_passwords(Group.objects.all())
    with pytest.raises(InvalidRequest):
        services.password_status(get_user_model()())
    with pytest.raises(InvalidRequest):
        services.record_password_change(get_user_model()())
    assert not ExpiryBatch.objects.exists()


def test_counts_and_signal(users, heard, root):
    people = users(3)
    people[2].set_unusable_password()
    people[2].save()
    services.expire_passwords(people[0])
    heard.clear()
    batch = services.expire_passwords(
        get_user_model().objects.order_by("-username"), actor=root, note="n", exclude=root
    )
    assert (batch.users_expired, batch.users_already_expired, batch.users_not_applicable) == (
        1,
        1,
        1,
    )
    assert batch.actor == root and batch.note == "n" and batch.state == BatchState.DONE
    assert [(signal, kwargs["user_ids"]) for signal, kwargs in heard] == [
        (passwords_expired, [people[1].pk])
    ]


@pytest.mark.parametrize("form", ["queryset", "sliced", "union", "list", "generator", "one"])
def test_every_form_of_users(users, form):
    alice, bob = users(2)
    everybody = get_user_model().objects.filter(pk__in=[alice.pk, bob.pk])
    given = {
        "queryset": everybody,
        "sliced": everybody.order_by("pk")[:2],
        "union": everybody.filter(pk=alice.pk).union(everybody.filter(pk=bob.pk)),
        "list": [alice, bob],
        "generator": (user for user in [bob, alice]),
        "one": alice,
    }[form]
    assert services.expire_passwords(given).users_expired == (1 if form == "one" else 2)


def test_a_queryset_may_be_excluded(users):
    first, *rest = users(3)
    out = get_user_model().objects.exclude(pk=first.pk)
    assert services.expire_passwords([first, *rest], exclude=out).users_expired == 1
    assert services.password_status(first).must_change


def test_running_twice_changes_nothing(alice):
    first = services.expire_passwords(alice)
    counter = EnforcementState.objects.get().counter
    again = services.expire_passwords(alice)
    assert again.users_expired == 0 and again.users_already_expired == 1
    assert EnforcementState.objects.get().counter == counter == first.number


def test_many_chunks_with_progress(users, monkeypatch):
    monkeypatch.setattr("pwexpire.services.selection.RANGE", 2)
    people = users(5)
    seen = []
    batch = services.expire_passwords(
        get_user_model().objects.all(), progress=lambda done, total: seen.append(done)
    )
    assert batch.users_expired == 5 and seen == [2, 4, 5, 0]
    assert all(services.password_status(user).must_change for user in people)


def test_killed_while_staging_enforces_nothing_and_is_resumed(users, monkeypatch):
    monkeypatch.setattr("pwexpire.services.selection.CHUNK", 1)
    people = users(3)

    def die(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        services.expire_passwords(people, progress=die)
    batch = ExpiryBatch.objects.get()
    assert batch.state == BatchState.STAGING
    assert not any(services.password_status(user).must_change for user in people)
    with pytest.raises(BatchNotResumable, match="give its users"):
        services.resume_expiry(batch)
    assert services.resume_expiry(batch, people).users_expired == 3
    assert all(services.password_status(user).must_change for user in people)


def test_killed_before_the_number_and_while_flagging(alice, client):
    client.force_login(alice)
    with mock.patch.object(inner, "_activate", side_effect=KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt):
            services.expire_passwords(alice)
    batch = ExpiryBatch.objects.get()
    assert batch.state == BatchState.STAGED and not services.password_status(alice).must_change
    with mock.patch.object(inner, "project", side_effect=KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt):
            services.resume_expiry(batch)
    batch.refresh_from_db()
    assert batch.state == BatchState.ACTIVE and services.password_status(alice).must_change
    assert services.resume_expiry(batch).state == BatchState.DONE
    assert client.session["password_expired"] is True
    assert services.resume_expiry(batch).state == BatchState.DONE


def test_resume_of_everyone_and_of_cancelled(alice, bob):
    with mock.patch.object(inner, "stage", side_effect=KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt):
            services.expire_everyone(exclude=bob)
    batch = ExpiryBatch.objects.get()
    services.resume_expiry(batch, exclude=bob)
    assert services.password_status(alice).must_change
    assert not services.password_status(bob).must_change
    batch.state = BatchState.ACTIVE
    batch.save()
    assert services.resume_expiry(batch).state == BatchState.DONE
    services.cancel_expiry(batch)
    with pytest.raises(BatchNotResumable, match="cancelled"):
        services.resume_expiry(batch)


def test_a_staging_batch_for_everyone_is_resumed_without_exclusions(alice):
    with mock.patch.object(inner, "stage", side_effect=KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt):
            services.expire_everyone()
    services.resume_expiry(ExpiryBatch.objects.get())
    assert services.password_status(alice).must_change


def test_two_workers_give_one_number(alice):
    batch = services.expire_passwords(alice)
    number = batch.number
    batch.state = BatchState.STAGED
    inner._finish(batch, {}, None, False)
    batch.refresh_from_db()
    assert batch.number == number


def test_a_deadlock_is_tried_again(alice):
    real = inner._activate
    calls = []

    def flaky(batch):
        calls.append(batch)
        if len(calls) < 3:
            raise OperationalError("deadlock detected")
        return real(batch)

    with mock.patch.object(inner, "_activate", flaky), mock.patch.object(retries.time, "sleep"):
        assert services.expire_passwords(alice).number
    with (
        mock.patch.object(inner, "_activate", side_effect=OperationalError("locked")) as tried,
        mock.patch.object(retries.time, "sleep"),
        pytest.raises(OperationalError),
    ):
        PasswordRecord.objects.all().delete()
        Demand.objects.all().delete()
        services.expire_passwords(alice)
    assert tried.call_count == retries.TRIES


def test_cancel_users_batches_and_everyone(users, heard, root):
    alice, bob, eve = users(3)
    services.expire_passwords([alice, bob])
    services.expire_everyone(exclude=eve)
    heard.clear()
    assert services.cancel_expiry([alice, eve]) == 1
    assert not services.password_status(alice).must_change
    assert services.password_status(bob).must_change
    assert heard[-1][1]["user_ids"] == [alice.pk]
    everyone = ExpiryBatch.objects.get(everyone=True)
    assert (
        services.cancel_expiry(everyone, actor=root, note="all clear") == 1
    )  # bob is expired by name
    assert services.cancel_expiry(everyone) == 0
    everyone.refresh_from_db()
    assert everyone.note == ""  # the actor may be deleted; the note is with the cancellation
    assert everyone.cancellations.get(user=None).note == "all clear"
    assert services.password_status(bob).must_change
    assert services.cancel_expiry(ExpiryBatch.objects.get(everyone=False)) == 1
    assert not services.password_status(bob).must_change
    assert services.cancel_expiry(bob) == 0
    with pytest.raises(InvalidRequest):
        services.cancel_expiry(bob, actor="x")


def test_cancelled_sessions_stay_ended(alice, client):
    client.force_login(alice)
    batch = services.expire_passwords(alice, sessions=SessionAction.END)
    services.cancel_expiry(batch)
    assert PasswordRecord.objects.get(pk=alice.pk).ended == batch.number


def test_preview_counts(users, client):
    alice, bob = users(2)
    bob.set_unusable_password()
    bob.save()
    client.force_login(alice)
    services.expire_passwords(alice)
    preview = services.preview_expiry(get_user_model().objects.all())
    assert (preview.users, preview.already_expired, preview.not_applicable) == (2, 1, 1)
    assert preview.sessions == 1
    assert services.preview_expiry(get_user_model().objects.none()).sessions == 0


def test_no_sessions_are_none_of_them(alice, settings):
    settings.PWEXPIRE_SESSION_INDEX = False
    assert services.preview_expiry(alice).sessions == 0


def test_sessions_of_cookies_cannot_be_counted(alice, settings):
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
    assert services.preview_expiry(alice).sessions is None


def test_inside_a_transaction_reports_are_pending(alice, client):
    client.force_login(alice)
    with transaction.atomic():
        flagged = services.flag_sessions(alice)
        assert flagged.pending and flagged.flagged == 0
    assert flagged.flagged == 1
    with transaction.atomic():
        ended = services.end_sessions(alice)
        assert ended.pending
    assert ended.ended == 1
    with pytest.raises(AttributeError):
        _ = ended.nonsense


def test_flag_sessions_by_hand_and_with_progress(alice, client):
    client.force_login(alice)
    seen = []
    assert services.flag_sessions(alice, progress=lambda *args: seen.append(args)).flagged == 1
    assert seen == [(1, None)]
    assert client.session["password_expired"] is True
    assert "_password_expired_demand" not in client.session


@pytest.mark.parametrize("index", [True, False])
def test_sessions_from_before_pwexpire_are_found(alice, client, settings, index):
    from pwexpire.models import SessionEntry

    settings.PWEXPIRE_SESSION_INDEX = index
    client.force_login(alice)
    SessionEntry.objects.all().delete()
    assert services.expire_passwords(alice).sessions_flagged == 1
    assert EnforcementState.objects.get().index_complete is index


def test_status_of_policy_and_reasons(alice, settings):
    settings.PWEXPIRE_POLICY = Policy(max_age=timedelta(days=9), warn_before=timedelta(days=10))
    settings.PWEXPIRE_REASONS = {"merger": "the merger"}
    status = services.password_status(alice)
    assert status.warn and not status.must_change and status.expires_at is not None
    services.expire_passwords(alice, reason="merger", note="m")
    status = services.password_status(alice)
    assert status.must_change and status.reason == "merger" and not status.warn
    assert status.note == "m" and status.require == Require.CHANGE and status.since is not None


@pytest.mark.parametrize("wrong", [timedelta(0), timedelta(days=-1)])
def test_policy_refuses_what_it_cannot_mean(wrong):
    with pytest.raises(ValueError, match="longer than nothing"):
        Policy(max_age=wrong)
    with pytest.raises(TypeError, match="must be a timedelta"):
        Policy(max_age=90)


def test_a_policy_by_dotted_path(alice, settings):
    settings.PWEXPIRE_POLICY = "tests.testapp.policies.strict"
    assert services.password_status(alice).expires_at is not None


def test_the_async_twins(alice):
    async def story():
        batch = await services.aexpire_passwords(alice)
        assert batch.users_expired == 1
        assert (await services.apassword_status(alice)).reason == Reason.ADMIN
        await services.arecord_password_change(alice)
        return await services.apassword_status(alice)

    assert not async_to_sync(story)().must_change


def test_a_deleted_user_is_nobody(alice):
    again = get_user_model().objects.get(pk=alice.pk)
    services.expire_passwords(alice)
    alice.delete()
    assert not services.password_status(again).must_change


def test_changes_are_told(alice, heard):
    alice.set_password("new-Password-2")
    alice.save()
    assert [kwargs["user"] for signal, kwargs in heard if signal is password_changed] == [alice]


def test_everyone_ends_sessions_too(alice, client):
    client.force_login(alice)
    services.expire_everyone(sessions=SessionAction.END)
    assert client.get("/").content == b"anonymous"


def test_again_with_end_ends_the_sessions_of_the_expired(alice, client):
    services.expire_passwords(alice)
    client.force_login(alice)
    batch = services.expire_passwords(alice, sessions=SessionAction.END)
    assert batch.users_already_expired == 1 and batch.sessions_ended == 1
    alice.set_password("new-Password-2")
    alice.save()
    assert PasswordRecord.objects.get(pk=alice.pk).ended == batch.number
    assert not Demand.objects.exists()


def test_sessions_ended_by_everyone_stay_ended_after_the_cancellation(alice, client):
    client.force_login(alice)
    services.cancel_expiry(services.expire_everyone(sessions=SessionAction.END))
    assert client.get("/").content == b"anonymous"
    client.force_login(alice)
    assert client.get("/").content == b"alice"


def test_a_batch_that_is_cancelled_while_it_flags_says_so(users, monkeypatch, client):
    monkeypatch.setattr("pwexpire.services.selection.CHUNK", 1)
    people = users(3)
    for user in people:
        client.logout()
        client.force_login(user)
    real, calls = inner.project, []

    def cancelled(batch, progress, seconds):
        calls.append(services.cancel_expiry(ExpiryBatch.objects.get(pk=batch.pk)))
        return real(batch, progress)

    with mock.patch.object(inner, "project", cancelled):
        batch = services.expire_passwords(people)
    assert calls == [3] and batch.state == BatchState.CANCELLED and batch.sessions_flagged == 0
    assert not any(services.password_status(user).must_change for user in people)

"""What counts as a change: another password, written to the users' own database."""

from __future__ import annotations

import copy
import io
import json
import threading
from contextlib import nullcontext
from datetime import timedelta
from unittest import mock

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.base_user import AbstractBaseUser
from django.contrib.auth.hashers import make_password
from django.core.management import call_command
from django.db import connection, transaction
from django.http import HttpResponse
from django.test import RequestFactory
from django.utils import timezone

from pwexpire import receivers, services
from pwexpire.middleware import PasswordExpiryMiddleware
from pwexpire.models import OldPassword, PasswordRecord, SessionEntry
from pwexpire.policy import Policy
from pwexpire.services import Require, password_changes
from pwexpire.services.history import keep_new, seed_history
from pwexpire.services.index import index_session
from pwexpire.services.password_changes import (
    ChangedBy,
    change_context,
    find_changed_by,
)
from pwexpire.services.saves import ATTRIBUTE
from pwexpire.session_state import RequestState
from pwexpire.users import is_recorded
from tests.factories import UserFactory
from tests.support import NEW, OLD, made
from tests.year.site import Clock

pytestmark = pytest.mark.django_db(transaction=True)


def is_due(user):
    return services.password_status(user).must_change


def stored(user):
    return get_user_model().objects.get(pk=user.pk)


@pytest.fixture
def due(alice):
    services.expire_passwords(alice)
    return alice


def test_a_password_that_is_written_by_a_later_save_is_a_change(due):
    due.set_password(NEW)
    due.save(update_fields=["is_active"])
    due.save(update_fields=["email"])
    assert is_due(due) and stored(due).check_password(OLD)
    due.save()
    assert not is_due(due) and stored(due).check_password(NEW)


@pytest.mark.parametrize("outer", [nullcontext, transaction.atomic])
def test_a_save_that_was_rolled_back_and_is_repeated_counts(due, outer):
    due.set_password(NEW)
    with outer():
        with pytest.raises(RuntimeError), transaction.atomic():
            due.save()
            raise RuntimeError("deadlock")
        assert is_due(due) and stored(due).check_password(OLD)
        due.save()
    assert not is_due(due) and stored(due).check_password(NEW)
    services.expire_passwords(due)
    due.save()
    assert is_due(due), "it was written before"


def test_after_a_repeated_save_nothing_more_is_asked(due, django_assert_num_queries):
    due.set_password(NEW)
    due.save()
    due.save()
    with django_assert_num_queries(1):
        due.save()


@pytest.mark.parametrize("new", [NEW, OLD])
def test_a_copy_elsewhere_that_is_written_first_hides_no_change(due, new):
    due.set_password(new)
    signal = {"raw": False, "update_fields": None, "using": "archive"}
    receivers.before_user_saved(type(due), due, **signal)
    receivers.after_user_saved(type(due), due, created=False, **signal)
    due._password = None  # as Django does after each save
    assert is_due(due)
    due.save()
    assert is_due(due) is (new == OLD)


def test_the_same_password_that_is_written_by_a_later_save_is_none(due):
    due.set_password(OLD)
    due.save(update_fields=["is_active"])
    due.save()
    assert is_due(due)


def test_what_an_earlier_save_left_behind_is_asked_again(due):
    """Somebody else set the same password, or another one, before it was written."""
    due.set_password(NEW)
    due.save(update_fields=["is_active"])
    type(due).objects.filter(pk=due.pk).update(password=make_password(NEW))
    due.save()
    assert is_due(due)  # nobody knows any more


def test_an_expiry_between_the_two_saves_holds(alice):
    alice.set_password(NEW)
    alice.save(update_fields=["is_active"])
    services.expire_passwords(alice)
    alice.save()
    assert not is_due(alice), "what was demanded is another password, and it is one"
    services.expire_passwords(alice)
    alice.save()
    assert is_due(alice)


def test_a_user_who_was_not_loaded_is_changed_as_well(due):
    user = get_user_model()(pk=due.pk, username="alice")
    user.set_password(NEW)
    user.save()
    assert not is_due(due)
    services.expire_passwords(due)
    user = get_user_model()(pk=due.pk, username="alice")
    user.set_password(NEW)
    user.save()
    assert is_due(due), "the same password"


def test_a_new_user_with_a_key_of_their_own_is_no_change(alice):
    user = get_user_model()(pk=alice.pk + 7, username="new")
    user.set_password(NEW)
    with mock.patch("pwexpire.services.password_changes.password_changed.send_robust") as sent:
        user.save()
    assert not sent.called and PasswordRecord.objects.get(pk=user.pk).renewed_at is None


def test_a_user_without_a_password_is_saved_with_a_key(db):
    get_user_model()(pk=70, username="new").save()
    assert PasswordRecord.objects.filter(pk=70).exists()


def test_an_unusable_password_is_no_change(due):
    due.set_password(NEW)
    due.set_unusable_password()
    due.save()
    get_user_model().objects.filter(pk=due.pk).update(password=make_password(OLD))
    assert is_due(stored(due))


def test_a_copy_of_a_user_whose_save_failed(due, bob):
    """It carries what was found for the original, and writes its own row."""
    due.set_password(NEW)
    due.save(update_fields=["is_active"])
    other = copy.copy(due)
    other.pk, other.username = bob.pk, "bob"
    services.expire_passwords(bob)
    other.save()
    assert is_due(due) and stored(due).check_password(OLD)
    assert is_due(bob)


def test_no_hash_is_shown(alice):
    alice.set_password(NEW)
    alice.save(update_fields=["is_active"])
    assert "md5$" not in repr(alice.__dict__[ATTRIBUTE])


def test_a_hash_that_is_set_after_all_is_no_change(due):
    due.set_password(NEW)
    due.save(update_fields=["is_active"])
    due.password = make_password(NEW)
    due.save()
    assert is_due(due)


# Who is at it.


def in_thread(work):
    found = []

    def run():
        try:
            found.append(work())
        finally:
            connection.close()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


@pytest.fixture
def command():
    """A process that serves no requests."""
    with mock.patch.object(password_changes, "_serves_requests", False):
        yield


def test_a_thread_of_a_view_is_nobody(alice, rf, command):
    assert in_thread(lambda: find_changed_by(alice)) is ChangedBy.ADMINISTRATOR
    middleware = PasswordExpiryMiddleware(lambda request: HttpResponse())
    assert middleware is not None
    assert in_thread(lambda: find_changed_by(alice)) is ChangedBy.OWN_SESSION
    assert find_changed_by(alice) is ChangedBy.ADMINISTRATOR, "a command, or a test"
    request = RequestFactory().get("/")
    token = change_context.set(made(RequestState, request=request))
    assert find_changed_by(alice) is ChangedBy.RESET_LINK
    change_context.reset(token)


@pytest.mark.skipif(connection.vendor == "sqlite", reason="a database in memory has one thread")
def test_what_a_thread_of_a_view_changes_is_no_administrators(alice, command, settings):
    settings.AUTHENTICATION_BACKENDS = ["pwexpire.backends.PasswordExpiryBackend"]
    PasswordExpiryMiddleware(lambda request: HttpResponse())
    services.expire_passwords(alice, require=Require.DENY)

    def change():
        user = stored(alice)
        user.set_password(NEW)
        user.save()

    in_thread(change)
    assert is_due(alice) and PasswordRecord.objects.get(pk=alice.pk).given_at is None


# The history.


@pytest.fixture
def kept(settings):
    settings.PWEXPIRE_POLICY = Policy(history=2)
    settings.AUTH_PASSWORD_VALIDATORS = [{"NAME": "pwexpire.validators.PasswordHistoryValidator"}]

    def hashes(user):
        rows = OldPassword.objects.filter(user=user.pk).order_by("pk")
        return list(rows.values_list("encoded", flat=True))

    return hashes


def test_the_history_has_what_a_password_is(alice, kept):
    first = alice.password
    alice.set_password(NEW)
    alice.save()
    assert kept(alice) == [first, alice.password]


def test_killed_between_the_save_and_the_record(alice, kept):
    """The demand stays, and the next change finds what the history missed."""
    services.expire_passwords(alice)
    first = alice.password
    alice.set_password(NEW)
    with mock.patch("pwexpire.services.saves._record", side_effect=KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt):
            alice.save()
    second = stored(alice).password
    assert is_due(alice) and kept(alice) == [first]
    user = stored(alice)
    user.set_password("third-Password-3")
    user.save()
    assert not is_due(alice) and kept(alice) == [first, second, user.password]


def test_a_history_from_before_has_no_present_password(alice, kept):
    """As 0.3 left it: only passwords that were replaced."""
    older = make_password("older-Password-0")
    OldPassword.objects.create(user=alice, encoded=older, created_at=timezone.now())
    first = alice.password
    alice.set_password(NEW)
    alice.save()
    assert kept(alice) == [older, first, alice.password]


def test_a_hash_that_is_renewed_keeps_its_place(alice, kept, settings):
    alice.set_password(NEW)
    alice.save()
    first, second = kept(alice)
    alice.set_password(NEW)
    alice.save()
    assert kept(alice) == [first, alice.password] != [first, second]


def test_a_later_save_is_kept_as_well(alice, kept):
    first = alice.password
    alice.set_password(NEW)
    alice.save(update_fields=["is_active"])
    assert kept(alice) == []
    alice.save()
    assert kept(alice) == [first, alice.password]


def test_a_conflict_in_the_history_is_tried_again(alice, kept):
    from django.db import OperationalError

    from pwexpire.services import history

    keep, failures = history.keep_new, [OperationalError("deadlock detected")]

    def flaky(*args, **kwargs):
        if failures:
            raise failures.pop()
        return keep(*args, **kwargs)

    alice.set_password(NEW)
    with mock.patch("pwexpire.services.saves.keep_new", flaky):
        alice.save()
    assert not failures and kept(alice)[-1] == alice.password


def test_a_transaction_keeps_it_with_the_save(alice, kept):
    with transaction.atomic():
        alice.set_password(NEW)
        alice.save()
        assert kept(alice)[-1] == alice.password


def test_a_hash_in_a_held_session_is_looked_at(due, caplog):
    token = change_context.set(made(RequestState, was_held=True))
    due.password = make_password(NEW)
    due.save()
    change_context.reset(token)
    assert is_due(due) and "record_password_change" in caplog.text


def test_a_form_that_was_sent_twice_takes_one_place(alice, kept):
    """Whichever of the two records first, and whichever hash was written last."""
    first, mine, other = alice.password, make_password(NEW), make_password(NEW)
    words = {"before": first, "given": NEW}
    seed_history(alice, present=first, newest=None)
    get_user_model().objects.filter(pk=alice.pk).update(password=other)
    keep_new(alice, after=mine, **words)
    assert kept(alice) == [first, other]
    keep_new(alice, after=other, **words)
    assert kept(alice) == [first, other]
    get_user_model().objects.filter(pk=alice.pk).update(password=mine)
    keep_new(alice, after=mine, **words)
    assert kept(alice) == [first, mine]
    get_user_model().objects.filter(pk=alice.pk).update(password=make_password("third"))
    keep_new(alice, after=other, **words)
    assert kept(alice) == [first, mine], "it is gone already"


def test_a_hash_that_two_processes_added_takes_one_place(alice, kept):
    first, second = alice.password, make_password(NEW)
    for encoded in (first, second, second):
        OldPassword.objects.create(user=alice, encoded=encoded, created_at=timezone.now())
    alice.password = third = make_password("third")
    keep_new(alice, before=second, after=third, given="third")
    assert kept(alice) == [first, second, third]


def test_a_user_without_a_record_is_recorded(alice):
    PasswordRecord.objects.all().delete()
    alice.set_password(NEW)
    alice.save()
    assert PasswordRecord.objects.get(pk=alice.pk).renewed_at is not None
    password_changes.meet_demands(alice, number=7, created=True)
    assert PasswordRecord.objects.get(pk=alice.pk).satisfied == 7


def test_a_rotated_session_whose_new_key_is_known(alice, client):
    client.force_login(alice)
    key = client.cookies["sessionid"].value
    SessionEntry.objects.create(session_key="gone", user=alice, created_at=timezone.now())
    index_session(key, alice.pk, replaces="gone")
    assert [entry.pk for entry in SessionEntry.objects.all()] == [key]


def test_a_login_in_a_session_of_the_same_user(alice, client):
    form = {"username": "alice", "password": OLD}
    for _ in range(2):
        client.post("/accounts/login/", form)
    key = client.cookies["sessionid"].value
    assert [entry.pk for entry in SessionEntry.objects.all()] == [key]


# Settings and models that lead nowhere fail no save and no login.


def test_another_user_model_is_none_of_ours(alice, client, settings):
    settings.AUTH_USER_MODEL = "testapp.NamedUser"
    alice.set_password(NEW)
    alice.save()
    settings.AUTH_USER_MODEL = "auth.User"
    client.force_login(alice)
    settings.AUTH_USER_MODEL = "testapp.NamedUser"
    from pwexpire.services.status import read_password_state

    assert not read_password_state(alice).held


def test_a_user_model_without_passwords_is_none_of_ours(alice, client, monkeypatch):
    assert is_recorded(alice) and not is_recorded(object())
    monkeypatch.delattr(AbstractBaseUser, "has_usable_password")
    alice.save()
    client.force_login(alice)
    assert client.get("/").content == b"alice" and "_pwexpire" not in client.session


@pytest.mark.parametrize(
    "policy",
    [
        lambda user: None,
        lambda user: "pci-dss",
        lambda user: 1 / 0,
        lambda user: "nowhere",
        "tests.nowhere",
    ],
)
def test_a_strange_policy_fails_no_save_and_no_login(client, settings, policy):
    settings.PWEXPIRE_POLICY = policy
    user = UserFactory(username="carol")
    user.set_password(NEW)
    user.save()
    form = {"username": "carol", "password": NEW}
    assert client.post("/accounts/login/", form).status_code == 302
    assert client.get("/").status_code in (200, 302)


@pytest.mark.parametrize("name", ["PWEXPIRE_APPLIES_TO", "PWEXPIRE_SECOND_FACTOR"])
def test_a_predicate_that_raises_fails_no_save_and_no_login(alice, client, settings, name):
    setattr(settings, name, lambda user: 1 / 0)
    settings.PWEXPIRE_POLICY = "pci-dss"
    alice.set_password(NEW)
    alice.save()
    form = {"username": "alice", "password": NEW}
    assert client.post("/accounts/login/", form).status_code == 302
    assert client.get("/").status_code in (200, 302)


def test_a_day_on_which_a_user_joined(alice, client, settings):
    settings.PWEXPIRE_POLICY = Policy(max_age=timedelta(days=90), change_on_first_use=True)
    settings.PWEXPIRE_ASSUME_CHANGED = "joined"
    PasswordRecord.objects.all().delete()
    for days, due in [(0, False), (100, True)]:
        alice.date_joined = timezone.now().date() - timedelta(days=days)
        assert is_due(alice) is due
        client.force_login(alice)


def test_an_algorithm_that_is_gone(alice, client):
    services.expire_passwords(alice)
    get_user_model().objects.filter(pk=alice.pk).update(password="gone$1$salt$hash")
    user = stored(alice)
    user.set_password(NEW)
    user.save()
    assert not is_due(alice)


def run(*arguments):
    out = io.StringIO()
    call_command("pwexpire", *arguments, "--format", "json", stdout=out)
    return json.loads(out.getvalue())


def test_a_change_that_is_still_to_come_counts_as_now(alice, bob, settings):
    settings.PWEXPIRE_POLICY = Policy(max_age=timedelta(days=90))
    wrong = timezone.now() + timedelta(days=2000)
    PasswordRecord.objects.filter(pk=alice.pk).update(changed_at=wrong)
    status = services.password_status(alice)
    assert status.changed_at <= timezone.now() and not status.must_change
    assert status.expires_at <= timezone.now() + timedelta(days=90)
    assert any("still to come" in one for one in run("check", "--user", "alice")["sentences"])
    assert not any("still to come" in one for one in run("check", "--user", "bob")["sentences"])
    assert run("status")["future_changes"] == 1
    assert run("prune")["future_changes"] == 1 and run("status")["future_changes"] == 0
    with Clock(timezone.now() + timedelta(days=91)).everywhere():
        assert is_due(alice)


@pytest.mark.parametrize("none", ["!", "", "*"])
@pytest.mark.parametrize("history", [0, 4])
def test_the_same_password_after_there_was_none(alice, settings, history, none):
    settings.PWEXPIRE_POLICY = Policy(history=history)
    services.expire_passwords(alice)
    alice.set_unusable_password()
    alice.save()
    get_user_model().objects.filter(pk=alice.pk).update(password=none)
    assert not services.password_status(alice).must_change
    alice = get_user_model().objects.get(pk=alice.pk)
    alice.set_password(OLD)
    alice.save()
    # Without a history nobody knows any more what it was.
    assert services.password_status(alice).must_change is bool(history)
    kept = [alice.password] if history else []
    assert list(OldPassword.objects.values_list("encoded", flat=True)) == kept
    alice.set_password(NEW)
    alice.save()
    assert not services.password_status(alice).must_change

"""No password comes back, and none too soon: on every path, with every hasher, under races."""

from __future__ import annotations

import pickle
import threading
from datetime import timedelta
from unittest import mock

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.hashers import check_password, make_password
from django.contrib.auth.models import Permission
from django.contrib.auth.password_validation import (
    password_validators_help_texts,
    validate_password,
)
from django.contrib.auth.tokens import default_token_generator
from django.core.exceptions import ImproperlyConfigured, ValidationError
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection, transaction
from django.db.models.signals import pre_save
from django.test import RequestFactory
from django.urls import resolve
from django.utils import timezone
from django.utils.encoding import force_bytes
from django.utils.http import urlsafe_base64_encode

from pwexpire import services
from pwexpire.models import OldPassword, PasswordRecord
from pwexpire.policy import Policy
from pwexpire.services.history import prune_history
from pwexpire.services.password_changes import change_context, set_by_other
from pwexpire.session_state import RequestState
from pwexpire.validators import NotCurrentPasswordValidator, PasswordHistoryValidator
from tests.factories import StaffFactory
from tests.support import OLD, change_password, is_held, made, store_session

pytestmark = pytest.mark.django_db(transaction=True)
HISTORY = "pwexpire.validators.PasswordHistoryValidator"
A, B, C, D, E = OLD, "pw-B-22222", "pw-C-33333", "pw-D-44444", "pw-E-55555"
DAY = timedelta(days=1)


def use(settings, *, name=HISTORY, policy=None, **options):
    settings.AUTH_PASSWORD_VALIDATORS = [{"NAME": name, "OPTIONS": options}]
    settings.PWEXPIRE_POLICY = policy


@pytest.fixture(params=[1, 2, 3])
def length(request, settings):
    use(settings, policy=Policy(history=request.param))
    return request.param


def reload(user):
    return get_user_model()._base_manager.get(pk=user.pk)


def save(user, *passwords):
    user = reload(user)
    for password in passwords:
        user.set_password(password)
        user.save()
    return user


def kept(user):
    """The letters of the passwords before the present one, the oldest first."""
    present = reload(user).password
    rows = OldPassword.objects.filter(user=user.pk).exclude(encoded=present).order_by("pk")
    names = dict(zip("ABCDE", (A, B, C, D, E), strict=True))
    found = ""
    for row in rows:
        found += next(name for name, raw in names.items() if check_password(raw, row.encoded))
    return found


def codes(password, user):
    try:
        validate_password(password, reload(user))
    except ValidationError as error:
        return [one.code for one in error.error_list]
    return []


# The paths. Each answers whether the password was changed.


def by_own_page(client, user, old, new):
    return change_password(client, old=old, new=new).status_code == 302


def by_djangos_view(client, user, old, new):
    answer = change_password(client, old=old, new=new, url="/accounts/password_change/")
    return answer.status_code == 302


def by_admins_own_page(client, user, old, new):
    get_user_model().objects.filter(pk=user.pk).update(is_staff=True)
    return (
        change_password(client, old=old, new=new, url="/admin/password_change/").status_code == 302
    )


def by_link(client, user, old, new):
    client.logout()
    user = reload(user)
    uid = urlsafe_base64_encode(force_bytes(user.pk))
    start = client.get(f"/accounts/reset/{uid}/{default_token_generator.make_token(user)}/")
    done = client.post(start["Location"], {"new_password1": new, "new_password2": new})
    return done.status_code == 302


def by_admin(client, user, old, new):
    boss = get_user_model().objects.filter(username="boss").first()
    client.force_login(boss or get_user_model().objects.create_superuser("boss"))
    form = {"password1": new, "password2": new, "usable_password": "true"}
    return client.post(f"/admin/auth/user/{user.pk}/password/", form).status_code == 302


def by_command(client, user, old, new):
    asked = "django.contrib.auth.management.commands.changepassword.Command._get_pass"
    with mock.patch(asked, return_value=new):
        try:
            call_command("changepassword", user.username, verbosity=0, stderr=mock.Mock())
        except CommandError:
            return False
    return True


BY_HIMSELF = [by_own_page, by_djangos_view, by_admins_own_page, by_link]
BY_OTHERS = [by_admin, by_command]


@pytest.mark.parametrize("path", BY_HIMSELF + BY_OTHERS)
def test_a_b_a_and_a_b_c_a_on_every_path(client, alice, path, length):
    old = A
    client.force_login(alice)
    for count, new in enumerate([B, C, D, E][:length], start=1):
        assert not path(client, alice, old, old), "the present one"
        assert path(client, alice, old, new)
        assert reload(alice).check_password(new)
        client.force_login(reload(alice))
        assert not path(client, alice, new, A), f"after {count} changes"
        assert kept(alice) == "ABCDE"[:count]
        old = new
    # One more, and the first of them is free again.
    assert path(client, alice, old, [B, C, D, E][length])
    client.force_login(reload(alice))
    assert path(client, alice, [B, C, D, E][length], A)
    assert len(kept(alice)) == length


@pytest.mark.parametrize("name", ["PasswordHistoryValidator", "NotCurrentPasswordValidator"])
def test_the_present_password_alone(client, alice, settings, name):
    use(settings, name=f"pwexpire.validators.{name}")
    assert codes(A, alice) == ["password_reused"]
    save(alice, B)
    assert codes(A, alice) == [] and codes(B, alice) == ["password_reused"]
    assert not OldPassword.objects.exists()


@pytest.mark.parametrize("validator", [PasswordHistoryValidator(2), NotCurrentPasswordValidator()])
def test_new_users_are_told_nothing(db, validator):
    new = get_user_model()(username="new")
    new.set_password(A)
    for user in (None, new, get_user_model()(pk=7), object()):
        validator.validate(A, user)
    validator.validate(A)


def test_the_stored_password_counts_not_the_one_in_memory(alice, length):
    alice.set_password(B)
    PasswordHistoryValidator().validate(B, alice)
    with pytest.raises(ValidationError):
        PasswordHistoryValidator().validate(A, alice)


def test_what_the_errors_carry(alice, settings):
    use(settings, length=2)
    save(alice, B, C)
    for password, carried in [(C, 0), (B, 2), (A, 2)]:
        with pytest.raises(ValidationError) as refused:
            validate_password(password, reload(alice))
        error = refused.value.error_list[0]
        assert error.code == "password_reused" and error.params == {"length": carried}
        assert str(error.message % error.params) and password not in str(error)


@pytest.mark.parametrize("length", [-1, 25, True, "3", 1.5])
def test_a_wrong_length_is_refused_with_a_sentence(settings, length, alice):
    use(settings, length=length)
    with pytest.raises(ImproperlyConfigured, match="from 0 to 24"):
        validate_password(A, alice)


def test_help_texts(settings):
    four = Policy(history=4)
    for options, policy, said in [
        ({}, None, "the one that you have now."),
        ({"length": 0}, four, "the one that you have now."),
        ({"length": 1}, four, "nor the one before it."),
        ({"length": 3}, four, "nor one of the 3 before it."),
        ({}, four, "nor one of the 4 before it."),
        ({}, {"default": four, "staff": "pci-dss"}, "nor one of the 4 before it."),
        ({}, {"default": Policy(), "staff": four}, "one that you had before."),
        ({}, "tests.testapp.policies.strict", "one that you had before."),
    ]:
        use(settings, policy=policy, **options)
        assert password_validators_help_texts()[0].endswith(said)
    use(settings, name="pwexpire.validators.NotCurrentPasswordValidator")
    assert password_validators_help_texts()[0].endswith("the one that you have now.")


# How many, for whom.


def test_each_user_by_his_policy_and_rows_for_the_longest(alice, root, settings):
    use(settings, policy={"default": Policy(history=1), "staff": Policy(history=3)})
    save(alice, B, C, D)
    save(root, B, C, D)
    assert kept(alice) == kept(root) == "ABC"
    assert [codes(raw, alice) for raw in (A, B)] == [[], []] and codes(C, alice)
    assert all(codes(raw, root) for raw in (A, B, C, D))


def test_a_callable_is_asked_for_each_user(alice, bob, settings):
    def policy(user):
        return Policy(history=2 if user.username == "alice" else 0)

    use(settings, policy=policy)
    save(alice, B, C, D)
    save(bob, B, C)
    assert kept(alice) == "BC" and kept(bob) == ""
    assert codes(B, alice) and not codes(B, bob)


def test_an_option_outweighs_the_policy(alice, settings):
    use(settings, policy=Policy(history=1), length=2)
    save(alice, B, C, D)
    assert kept(alice) == "BC" and codes(B, alice) and not codes(A, alice)


def test_users_whom_the_policy_does_not_concern(alice, settings):
    use(settings, policy=Policy(history=2, min_age=DAY))
    settings.PWEXPIRE_APPLIES_TO = lambda user: False
    save(alice, B)
    assert codes(A, alice) == [] and codes(B, alice) == ["password_reused"]


def test_another_validator_with_a_length_keeps_nothing(alice, settings):
    use(settings, name="django.contrib.auth.password_validation.MinimumLengthValidator")
    save(alice, B)
    assert kept(alice) == ""


# What is stored, and when.


def test_what_is_no_change_stores_nothing(alice, client, length, settings):
    assert kept(alice) == ""  # the creation
    save(alice, A)
    user = reload(alice)
    user.set_password(B)
    user.save(update_fields=["email"])
    user = reload(alice)
    user.email = "a@example.com"
    user.save()
    assert kept(alice) == ""
    settings.PASSWORD_HASHERS = settings.PASSWORD_HASHERS[::-1]
    client.post("/accounts/login/", {"username": "alice", "password": A})
    assert reload(alice).password.startswith("pbkdf2") and kept(alice) == ""


def test_hashes_of_several_hashers(alice, client, length, settings):
    first = reload(alice).password
    assert first.startswith("md5$")
    save(alice, B)
    settings.PASSWORD_HASHERS = settings.PASSWORD_HASHERS[::-1]
    assert OldPassword.objects.earliest("pk").encoded == first
    assert codes(A, alice) and codes(B, alice)
    client.post("/accounts/login/", {"username": "alice", "password": B})
    upgraded = reload(alice).password
    save(alice, C)
    assert upgraded.startswith("pbkdf2") and kept(alice) == "AB"[-length:]
    assert OldPassword.objects.filter(encoded=upgraded).exists()
    settings.PASSWORD_HASHERS = settings.PASSWORD_HASHERS[:1]  # MD5 is known no more
    assert codes(B, alice) and not codes(A, alice)


def test_unusable_ones_are_not_stored(alice, length):
    get_user_model().objects.filter(pk=alice.pk).update(password=make_password(None))
    save(alice, B)
    assert kept(alice) == ""


def test_a_password_that_was_taken_away_does_not_come_back(alice, settings, count_queries):
    use(settings, length=1)
    user = reload(alice)
    user.set_unusable_password()
    user.save()
    assert kept(alice) == "A" and codes(A, alice) == ["password_reused"]
    with count_queries() as asked:
        user.save()
    assert kept(alice) == "A" and len(asked) == 2
    use(settings)
    with count_queries() as asked:
        user.save()
    assert len(asked) == 1


def test_a_fault_keeps_nobody_from_changing(alice, length, caplog):
    services.expire_passwords(alice)
    with mock.patch(
        "pwexpire.services.saves.keep_new", side_effect=OperationalError("down\nsecret")
    ):
        save(alice, B)
    assert "could not be kept: down" in caplog.text and "secret" not in caplog.text
    assert reload(alice).check_password(B) and not services.password_status(alice).must_change


def test_a_rollback_stores_nothing(alice, length):
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        save(alice, B)
        raise ZeroDivisionError
    assert kept(alice) == "" and reload(alice).check_password(A)
    with transaction.atomic():
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            save(alice, B)
            raise ZeroDivisionError
        save(alice, C)
    assert kept(alice) == "A"


def test_several_changes_in_one_transaction(alice, settings):
    use(settings, length=3)
    with transaction.atomic():
        save(alice, B, C)
    assert kept(alice) == "AB" and reload(alice).check_password(C)


def test_a_deleted_user_leaves_nothing(alice, bob, length):
    save(alice, B)
    save(bob, B)
    alice.delete()
    assert set(OldPassword.objects.values_list("user_id", flat=True)) == {bob.pk}


def test_a_change_behind_djangos_back(alice, length):
    save(alice, B)
    get_user_model().objects.filter(pk=alice.pk).update(password=make_password(C))
    services.record_password_change(reload(alice))
    assert kept(alice) == "AB"[-length:]
    save(alice, D)
    assert kept(alice) == "ABC"[-length:]


def test_a_hash_that_was_put_back_takes_one_place(alice, settings):
    use(settings, length=2)
    first = reload(alice).password
    save(alice, B)
    get_user_model().objects.filter(pk=alice.pk).update(password=first)
    save(alice, C)
    assert kept(alice) == "BA"


# Shorter policies.


def test_a_shorter_policy_prunes_at_the_next_change(alice, bob, settings):
    use(settings, length=3)
    save(alice, B, C, D)
    save(bob, B, C, D)
    use(settings, length=2)
    assert kept(alice) == "ABC"
    assert codes(B, alice) and not codes(A, alice)
    save(alice, E)
    assert kept(alice) == "CD"
    use(settings, length=0)
    save(bob, E)
    assert kept(bob) == ""
    assert kept(alice) == "CD"


@pytest.mark.parametrize("chunk", [1, 2, 1000])
def test_prune_history(users, settings, chunk):
    use(settings, length=3)
    people = users(4)
    for user in people:
        save(user, B, C, D)
    save(people[0], E)
    use(settings, length=2)
    assert prune_history(chunk) == 4 and prune_history(chunk) == 0
    assert [kept(user) for user in people] == ["CD", "BC", "BC", "BC"]
    use(settings, policy=lambda user: Policy(history=int(user.pk == people[1].pk)))
    assert prune_history(chunk) == 10
    assert [kept(user) for user in people] == ["", "C", "", ""]
    use(settings)
    assert prune_history() == 2 and not OldPassword.objects.exists()


def test_prune_history_asks_in_chunks(users, settings, count_queries):
    use(settings, length=2)
    for user in users(20):
        save(user, B, C)
    use(settings, length=1)
    with count_queries() as many:
        assert prune_history(100) == 20
    assert len(many) <= 6


# Too soon.


@pytest.fixture
def young(settings, alice, client):
    """Changed by himself, a moment ago."""
    use(settings, policy=Policy(min_age=DAY, history=1))
    client.force_login(alice)
    assert by_own_page(client, alice, A, B), "a new user may change at once"
    return alice


@pytest.mark.parametrize("path", BY_HIMSELF)
def test_too_young_for_himself(young, client, path):
    assert not path(client, young, B, C)
    assert reload(young).check_password(B) and kept(young) == "A"
    client.force_login(reload(young))
    PasswordRecord.objects.update(changed_at=timezone.now() - DAY)
    assert path(client, young, B, C)


@pytest.mark.parametrize("path", BY_OTHERS)
def test_not_for_somebody_else(young, client, path):
    assert path(client, young, B, C)


def test_what_too_young_says(young, client):
    page = change_password(client, old=B, new=C)
    errors = page.context["form"].errors.as_data()["new_password2"]
    assert [error.code for error in errors] == ["password_too_young"]
    assert errors[0].params["min_age"] == DAY and "23" in str(errors[0].messages[0])
    assert B not in str(errors) and C not in str(errors)


def test_whoever_has_to_change_may(young, client):
    services.expire_passwords(young)
    assert is_held(client)
    assert by_own_page(client, young, B, C)
    assert not by_own_page(client, young, C, D)


def test_whoever_has_to_change_may_where_no_session_is_held(young):
    with Asked(young):
        assert codes(C, young) == ["password_too_young"]
        services.expire_passwords(young)
        assert codes(C, young) == []


def test_a_session_that_is_held_by_a_flag_set_by_hand_may(young, client):
    store_session(client, password_expired=True)
    assert is_held(client)
    assert by_own_page(client, young, B, C)
    assert not is_held(client)


def test_a_password_that_was_given_may_go(young, client):
    PasswordRecord.objects.update(given_at=timezone.now())
    assert by_own_page(client, young, B, C)


def test_a_user_without_a_record(young, client):
    PasswordRecord.objects.all().delete()
    assert by_own_page(client, young, B, C)


# Who is at it.


class Asked:
    """A request of ``actor`` for ``path``, in which the receivers are witnesses."""

    def __init__(self, actor, path="/"):
        self.request = RequestFactory().get(path)
        self.request.resolver_match = resolve(path)
        if actor is not None:
            self.request.user = actor

    def __enter__(self):
        self.token = change_context.set(made(RequestState, request=self.request))

    def __exit__(self, *exc):
        change_context.reset(self.token)


RESET = "/accounts/reset/MQ/set-password/"


def test_set_by_other(alice, bob, root):
    from django.contrib.auth.models import AnonymousUser

    assert set_by_other(alice)  # a command
    token = change_context.set(RequestState())
    assert not set_by_other(alice)
    change_context.reset(token)
    for actor, path, other in [
        (None, "/", False),
        (AnonymousUser(), "/", False),
        (alice, "/", False),
        (bob, "/", False),
        (root, "/", True),
        (root, RESET, False),
        (AnonymousUser(), RESET, False),
    ]:
        with Asked(actor, path):
            assert set_by_other(alice) is other, (actor, path)
    with Asked(StaffFactory(username="clerk")):
        assert set_by_other(alice)
    bob.user_permissions.add(Permission.objects.get(codename="change_user"))
    with Asked(reload(bob)):
        assert set_by_other(alice)
    with Asked(root) as _:
        request = change_context.get().request
        request.resolver_match = None
        assert set_by_other(alice)


@pytest.mark.parametrize("kind", ["wsgi", "asgi"])
def test_both_servers_tell_who_is_at_it(young, settings, kind):
    from tests.conftest import Server

    browser = Server(kind)()
    browser.post("/accounts/login/", {"username": "alice", "password": B})
    assert not by_own_page(browser, young, B, C)
    PasswordRecord.objects.update(changed_at=timezone.now() - DAY)
    assert by_own_page(browser, young, B, C)


# What it costs, and what it leaves behind.


def test_it_stops_at_the_first_match(alice, settings):
    use(settings, length=3)
    save(alice, B, C, D)
    for raw, hashings in [(D, 1), (C, 2), (B, 3), (A, 4), (E, 4)]:
        with mock.patch("pwexpire.validators.check_password", side_effect=check_password) as hasher:
            codes(raw, alice)
        assert hasher.call_count == hashings


def test_queries(alice, settings, count_queries):
    use(settings, length=3)
    save(alice, B)
    user = reload(alice)
    with count_queries() as asked:
        validate_password(E, user)
    assert len(asked) == 2
    use(settings)
    user = reload(alice)
    user.set_password(C)
    with count_queries() as without:
        user.save()
    assert not any("pwexpire_oldpassword" in q["sql"] and "INSERT" in q["sql"] for q in without)


def test_no_password_is_logged(young, client, caplog):
    caplog.set_level("DEBUG", "pwexpire")
    by_own_page(client, young, B, A)
    by_link(client, young, B, A)
    assert not any(raw in caplog.text for raw in (A, B))
    assert reload(young).password not in caplog.text


# Two at once.


def test_a_double_submission_takes_one_place(alice, settings):
    use(settings, length=1)
    overtake(alice, C, by=C)
    assert kept(alice) == "A" and reload(alice).check_password(C)


def test_a_password_that_was_there_for_a_moment_is_kept(alice, settings):
    use(settings, length=2)
    overtake(alice, C, by=B)
    assert kept(alice) == "AB" and reload(alice).check_password(C)


def overtake(user, new, *, by):
    """After ``user`` was looked at, and before his row is written."""
    user = reload(user)
    user.set_password(new)

    def meanwhile(sender, instance, **kwargs):
        if instance is user:
            save(user, by)

    pre_save.connect(meanwhile)
    try:
        user.save()
    finally:
        pre_save.disconnect(meanwhile)


def test_what_a_failed_save_leaves_behind(alice, settings):
    use(settings, length=2)
    user = reload(alice)
    user.set_password(B)
    services.expire_passwords(alice)

    def fail(sender, instance, **kwargs):
        raise ZeroDivisionError

    pre_save.connect(fail)
    with pytest.raises(ZeroDivisionError):
        user.save()
    pre_save.disconnect(fail)
    assert pickle.loads(pickle.dumps(user)) == user
    user.save(update_fields=["email"])
    assert kept(alice) == "" and services.password_status(user).must_change
    save(alice, B)
    assert kept(alice) == "A" and not services.password_status(user).must_change


def race(alice, workers):
    """All of them at once, each in a thread with a connection of its own."""
    start, faults = threading.Barrier(len(workers)), []

    def run(work):
        try:
            user = reload(alice)
            start.wait(30)
            work(user)
        except Exception as fault:  # seen by the test, not by the thread
            faults.append(fault)
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=[work]) for work in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []


@pytest.mark.skipif(connection.vendor == "sqlite", reason="one writer, and one thread in memory")
@pytest.mark.parametrize("atomic", [True, False])
@pytest.mark.parametrize("length", [1, 2])
def test_two_changes_at_the_same_time(alice, settings, atomic, length):
    use(settings, length=length)

    def change(raw):
        def work(user):
            if atomic:
                with transaction.atomic():
                    save(user, raw)
            else:
                user.set_password(raw)
                user.save()

        return work

    for _ in range(10):
        save(alice, B, A)
        race(alice, [change(C), change(D)])
        present, lost = ("C", "D") if reload(alice).check_password(C) else ("D", "C")
        assert reload(alice).check_password({"C": C, "D": D}[present])
        assert kept(alice) == f"A{lost}"[-length:]


@pytest.mark.skipif(connection.vendor == "sqlite", reason="one writer, and one thread in memory")
def test_the_same_form_twice_at_the_same_time(alice, settings):
    use(settings, length=1)

    def work(user):
        user.set_password(C)
        user.save()

    for _ in range(10):
        save(alice, B, A)
        race(alice, [work, work, work])
        assert kept(alice) == "A"


def test_an_unusable_password_is_not_kept(alice, settings):
    use(settings, length=2)
    save(alice, B)
    get_user_model().objects.filter(pk=alice.pk).update(password=make_password(None))
    services.record_password_change(reload(alice))
    assert kept(alice) == "AB"

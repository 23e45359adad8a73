"""Nothing that depends on stored hashes is said, or comes for free, before the old password."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.signals import user_login_failed
from django.db import connection
from django.test import Client

from pwexpire import services
from pwexpire.forms import ExpiredPasswordChangeForm
from pwexpire.models import PasswordRecord
from pwexpire.policy import Policy
from pwexpire.services import attempts, guesses
from tests.factories import UserFactory
from tests.support import NEW, OLD, change_password, is_held
from tests.test_laws import login

pytestmark = pytest.mark.django_db(transaction=True)
OURS = "/account/password-change/"
DJANGO = "/accounts/password_change/"
ADMIN = "/admin/password_change/"
PAGES = [OURS, DJANGO, ADMIN]
VALIDATORS = [
    "pwexpire.validators.NotCurrentPasswordValidator",
    "pwexpire.validators.PasswordHistoryValidator",
]


@pytest.fixture(params=VALIDATORS)
def validator(request, settings):
    settings.AUTH_PASSWORD_VALIDATORS = [{"NAME": request.param}]
    settings.PWEXPIRE_CHANGE_ATTEMPTS = 3
    settings.AXES_FAILURE_LIMIT = 100
    get_user_model().objects.update(is_staff=True)


@pytest.fixture
def failures():
    seen = []

    def listen(sender, credentials, **kwargs):
        seen.append(credentials["username"])

    user_login_failed.connect(listen)
    yield seen
    user_login_failed.disconnect(listen)


def errors_of(response):
    return {name: list(said) for name, said in response.context["form"].errors.items()}


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("url", PAGES)
def test_a_guess_at_the_new_password_is_answered_like_any_other(
    engine, server, alice, validator, url, held
):
    get_user_model().objects.update(is_staff=True)
    browser = login(server, alice)
    if held:
        services.expire_passwords(alice)
    answers = [
        errors_of(change_password(browser, url=url, old=old, new=new))
        for old, new in (("", OLD), ("", NEW))
    ]
    assert answers[0] == answers[1]
    assert set(answers[0]) == {"old_password"}


@pytest.mark.parametrize("url", PAGES)
def test_wrong_empty_and_missing_are_one_answer_and_one_try_each(
    client, alice, validator, url, failures
):
    get_user_model().objects.update(is_staff=True)
    client.force_login(alice)
    new = {"new_password1": OLD, "new_password2": OLD}
    answers = []
    for old in ({"old_password": "wrong"}, {"old_password": ""}):
        answers.append(errors_of(client.post(url, {**old, **new})))
    assert PasswordRecord.objects.get(pk=alice.pk).failed_changes == 2
    answers.append(client.post(url, new))
    assert answers[0] == answers[1] == {"old_password": answers[0]["old_password"]}
    assert failures == ["alice"] * 3
    assert client.get("/").content == b"anonymous"


def test_the_password_now_and_the_old_ones_are_refused_to_who_knows_the_old_one(
    client, alice, validator
):
    client.force_login(alice)
    for url in (OURS, DJANGO):
        assert "new_password2" in errors_of(change_password(client, url=url, new=OLD))
    assert PasswordRecord.objects.get(pk=alice.pk).failed_changes == 0


def test_a_form_stuffed_with_guesses_is_told_nothing(client, alice, validator):
    client.force_login(alice)
    data = {"old_password": "wrong", "x-old_password": OLD, "new_password1": OLD}
    response = client.post(DJANGO, {**data, "new_password2": OLD})
    assert set(errors_of(response)) == {"old_password"}


def test_two_validators_verify_the_old_password_of_one_form_once(client, alice, settings):
    settings.AUTH_PASSWORD_VALIDATORS = [{"NAME": name} for name in VALIDATORS]
    client.force_login(alice)
    with mock.patch.object(guesses, "check_password", wraps=guesses.check_password) as verify:
        response = change_password(client, url=DJANGO, new=NEW)
    assert response.status_code == 302
    assert verify.call_count == 1


@pytest.mark.parametrize("names", [VALIDATORS[:1], VALIDATORS[1:], VALIDATORS, []])
@pytest.mark.parametrize("url", PAGES)
def test_one_hashing_until_the_old_password_is_right(client, alice, settings, url, names):
    settings.AUTH_PASSWORD_VALIDATORS = [{"NAME": name} for name in names]
    settings.PWEXPIRE_POLICY = Policy(history=5)
    get_user_model().objects.update(is_staff=True)
    alice.refresh_from_db()
    for new in ("first-Password-2", "next-Password-3"):
        alice.set_password(new)
        alice.save()
    client.force_login(alice)
    from django.contrib.auth.hashers import MD5PasswordHasher

    with mock.patch.object(MD5PasswordHasher, "verify", return_value=False) as verify:
        client.post(url, {"old_password": "wrong", "new_password1": OLD, "new_password2": OLD})
    assert verify.call_count == 1


@pytest.mark.parametrize("url", PAGES)
def test_beyond_the_limit_nothing_is_looked_at(server, engine, alice, settings, url):
    """As many tries at the same time would have it: counted, and none of them followed up yet."""
    settings.PWEXPIRE_CHANGE_ATTEMPTS = 2
    get_user_model().objects.update(is_staff=True)
    browser = login(server, alice)
    for _ in range(2):
        attempts.take_attempt(alice)
    from django.contrib.auth.hashers import MD5PasswordHasher

    with mock.patch.object(MD5PasswordHasher, "verify", return_value=True) as verify:
        answer = change_password(browser, url=url)
    assert answer["Location"] == "/accounts/login/" and not verify.called
    assert browser.get("/").content == b"anonymous"
    alice.refresh_from_db()
    assert alice.check_password(OLD)


@pytest.mark.parametrize("url", PAGES)
def test_a_right_old_password_uses_up_no_try(client, alice, validator, url):
    client.force_login(alice)
    for _ in range(5):
        assert "new_password2" in errors_of(change_password(client, url=url, new=OLD))
    assert PasswordRecord.objects.get(pk=alice.pk).failed_changes == 0
    assert change_password(client, url=url).status_code == 302


@pytest.mark.parametrize("url", PAGES)
def test_a_try_that_cannot_be_counted_is_not_looked_at(client, alice, url):
    from django.db import OperationalError

    get_user_model().objects.update(is_staff=True)
    client.force_login(alice)
    with mock.patch.object(guesses, "take_attempt", side_effect=OperationalError("read-only")):
        assert change_password(client, url=url).status_code == 503
    alice.refresh_from_db()
    assert alice.check_password(OLD)


def test_a_form_of_the_sites_own_counts_by_itself(alice, settings):
    settings.PWEXPIRE_CHANGE_ATTEMPTS = 2
    sent = {"new_password1": NEW, "new_password2": NEW}
    for _ in range(2):
        assert not ExpiredPasswordChangeForm(alice, {**sent, "old_password": "wrong"}).is_valid()
    form = ExpiredPasswordChangeForm(alice, {**sent, "old_password": OLD})
    assert not form.is_valid() and form.old_password_was_wrong


def json_change(client, **sent):
    return client.post("/json-change/", sent, content_type="application/json")


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("name", ["current_password", "currentPassword", "old_password"])
def test_a_json_endpoint_is_counted_like_a_page(
    engine, server, alice, validator, settings, failures, held, name
):
    settings.PWEXPIRE_CHANGE_URL = "json-change"
    settings.ROOT_URLCONF = "tests.urls_oracle"
    browser = login(server, alice)
    if held:
        services.expire_passwords(alice)
    for _ in range(2):
        answer = json_change(browser, **{name: "wrong"}, new_password=OLD)
        assert answer.json() == {"errors": ["wrong"]}
    answer = json_change(browser, **{name: "wrong"}, new_password=OLD)
    assert answer.status_code == 403 and answer.json()["code"] == "session_ended"
    assert failures == ["alice"] * 3
    assert browser.get("/plain/").status_code == 200


def test_a_json_endpoint_says_nothing_before_the_old_password(client, alice, validator, settings):
    settings.PWEXPIRE_CHANGE_URL = "json-change"
    settings.ROOT_URLCONF = "tests.urls_oracle"
    client.force_login(alice)
    assert json_change(client, current_password=OLD, new_password=OLD).json() == {
        "errors": ["password_reused"]
    }
    assert json_change(client, current_password=OLD, new_password=NEW).json() == {"errors": []}


@pytest.mark.parametrize("body", ["", "[1]", "{", '{"new_password": "x"}'])
def test_a_body_without_an_old_password_is_a_try_of_the_wider_limit(client, alice, settings, body):
    settings.PWEXPIRE_CHANGE_URL = "/json-change/"
    settings.ROOT_URLCONF = "tests.urls_oracle"
    client.force_login(alice)
    services.expire_passwords(alice)
    client.post("/json-change/", body, content_type="application/json")
    client.post("/json-change/", body, content_type="application/xml")
    assert PasswordRecord.objects.get(pk=alice.pk).failed_changes == 2


def test_a_refused_new_password_is_no_try_where_the_old_one_was_right(
    client, alice, validator, settings
):
    settings.PWEXPIRE_CHANGE_URL = "json-change"
    settings.ROOT_URLCONF = "tests.urls_oracle"
    client.force_login(alice)
    services.expire_passwords(alice)
    for _ in range(5):
        json_change(client, current_password=OLD, new_password=OLD)
    assert PasswordRecord.objects.get(pk=alice.pk).failed_changes == 0


def test_who_has_no_usable_password_has_nothing_to_guess(client, alice):
    client.force_login(alice)
    alice.set_unusable_password()
    alice.save()
    client.force_login(alice)
    change_password(client, url=DJANGO, old="wrong")
    assert not PasswordRecord.objects.filter(pk=alice.pk, failed_changes__gt=1).exists()


def test_a_validator_in_a_page_that_nobody_knows(client, alice, validator, settings):
    settings.ROOT_URLCONF = "tests.urls_oracle"
    client.force_login(alice)
    for name, content_type, wanted in (
        ("current_password", "application/json", ["password_reused"]),
        ("nothing", "application/json", []),
        ("nothing", "application/xml", ["password_reused"]),
    ):
        sent = json.dumps({name: OLD, "new_password": OLD})
        answer = client.post("/validated/", sent, content_type=content_type)
        assert answer.json() == {"errors": wanted}


def test_of_many_tries_at_the_same_time_no_more_than_the_limit_are_looked_at(alice, settings):
    settings.PWEXPIRE_CHANGE_ATTEMPTS = 2
    taken = [attempts.take_attempt(alice) for _ in range(20)]
    assert taken.count(True) == 2
    attempts.give_back_attempt(alice)
    assert attempts.take_attempt(alice) and not attempts.take_attempt(alice)


@pytest.mark.skipif("connection.vendor == 'sqlite'", reason="SQLite in memory has one connection")
@pytest.mark.parametrize("url", PAGES)
def test_parallel_tries(settings, url):
    settings.PWEXPIRE_CHANGE_ATTEMPTS = 2
    user = UserFactory(is_staff=True)
    PasswordRecord.objects.get_or_create(pk=user.pk)
    browsers = [Client() for _ in range(20)]
    for browser in browsers:
        browser.force_login(user)
    looked_at = []

    def look(given, encoded):
        looked_at.append(given)
        return False

    def attempt(number):
        try:
            change_password(browsers[number], url=url, old=f"guess-{number}")
        finally:
            connection.close()

    with mock.patch.object(guesses, "check_password", look), ThreadPoolExecutor(8) as pool:
        list(pool.map(attempt, range(20)))
    assert len(looked_at) == 2


def test_a_right_old_password_is_of_no_use_beyond_the_limit(client, alice, settings):
    settings.PWEXPIRE_CHANGE_ATTEMPTS = 2
    client.force_login(alice)
    for _ in range(2):
        attempts.take_attempt(alice)
    assert change_password(client)["Location"] == "/accounts/login/"
    alice.refresh_from_db()
    assert alice.check_password(OLD)
    client.post("/accounts/login/", {"username": "alice", "password": OLD})
    assert PasswordRecord.objects.get(pk=alice.pk).failed_changes == 0
    assert change_password(client).status_code == 302


def test_a_page_whose_form_cannot_be_read_has_a_wider_limit(client, alice, settings):
    settings.PWEXPIRE_CHANGE_URL = "other-change"
    settings.ROOT_URLCONF = "tests.urls_oracle"
    settings.PWEXPIRE_CHANGE_ATTEMPTS = 1
    client.force_login(alice)
    services.expire_passwords(alice)
    for _ in range(3):
        client.post("/other/", {"old": "wrong", "new": NEW})
        assert client.get("/plain/").status_code == 302
    client.post("/other/", {"old": "wrong", "new": NEW})
    assert client.get("/plain/").status_code == 200  # public, and nobody is logged in


def test_a_change_on_such_a_page_is_no_try(client, alice, settings):
    settings.PWEXPIRE_CHANGE_URL = "/other/"
    settings.ROOT_URLCONF = "tests.urls_oracle"
    client.force_login(alice)
    services.expire_passwords(alice)
    assert client.post("/other/", {"old": OLD, "new": NEW}).status_code == 200
    assert PasswordRecord.objects.get(pk=alice.pk).failed_changes == 0
    assert client.get("/plain/").status_code == 200


@pytest.mark.parametrize("key", ["hijack_history", "loginas_from_user"])
def test_who_acts_as_another_user_does_not_choose_their_password(client, alice, key):
    client.force_login(alice)
    session = client.session
    session[key] = ["1"]
    session.save()
    assert change_password(client).status_code == 403
    alice.refresh_from_db()
    assert alice.check_password(OLD)


def test_a_user_put_there_by_middleware_does_not_get_another_password(client, alice, bob, settings):
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, "tests.testapp.middleware.OtherUser"]
    client.force_login(alice)
    response = client.post(
        OURS,
        {"old_password": OLD, "new_password1": NEW, "new_password2": NEW},
        headers={"x-user": "bob"},
    )
    assert response.status_code == 403
    bob.refresh_from_db()
    assert bob.check_password(OLD)


def test_an_anonymous_visitor_of_the_change_page_is_sent_to_the_login():
    assert Client().get(OURS)["Location"].startswith("/accounts/login/")


def test_the_admin_sets_the_password_of_another_user_by_the_same_rules(client, root, alice):
    client.force_login(root)
    data = {"password1": NEW, "password2": NEW, "usable_password": "true"}
    assert client.post(f"/admin/auth/user/{alice.pk}/password/", data).status_code == 302
    alice.refresh_from_db()
    assert alice.check_password(NEW)


def test_a_login_succeeds_though_the_count_cannot_begin_anew(client, alice, caplog):
    from django.db import OperationalError

    PasswordRecord.objects.update(failed_changes=1)
    with mock.patch.object(attempts, "savepoint", side_effect=OperationalError("read-only")):
        client.post("/accounts/login/", {"username": "alice", "password": OLD})
    assert client.get("/").content == b"alice"
    assert "could not begin anew" in caplog.text


def test_a_held_user_gets_through(server, engine, alice):
    browser = login(server, alice)
    services.expire_passwords(alice)
    change_password(browser, old="wrong")
    change_password(browser)
    assert not is_held(browser)

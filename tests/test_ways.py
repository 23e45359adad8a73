"""What policies demand and whom they spare, on every session engine, under WSGI and ASGI."""

from __future__ import annotations

import threading
from datetime import timedelta
from functools import partial
from io import StringIO
from unittest import mock

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.tokens import default_token_generator
from django.core.management import call_command
from django.db import DatabaseError, connection, connections
from django.test import Client
from django.utils import timezone
from django.utils.encoding import force_bytes
from django.utils.http import urlsafe_base64_encode

from pwexpire import checks, services
from pwexpire.exceptions import InvalidRequest
from pwexpire.models import ExpiryBatch, PasswordRecord
from pwexpire.policy import Policy
from pwexpire.services import Reason, Require, SessionAction
from pwexpire.services.report import evaluate
from pwexpire.services.selection import Selection
from pwexpire.services.sessions import find_sessions
from pwexpire.services.status import read_state, take_grace
from pwexpire.sessionstore.registry import get_adapter
from pwexpire.signals import expiry_enforced
from tests.factories import UserFactory
from tests.support import NEW, OLD, change_password, is_held, session_of, store_session
from tests.test_laws import login

pytestmark = pytest.mark.django_db(transaction=True)
MODEL = "django.contrib.auth.backends.ModelBackend"
OURS = "pwexpire.backends.PasswordExpiryBackend"
AGED = Policy(max_age=timedelta(days=90), grace_logins=2)


@pytest.fixture
def refusing(settings):
    settings.AUTHENTICATION_BACKENDS = [OURS]


def ago(user, **interval):
    then = timezone.now() - timedelta(**interval)
    PasswordRecord.objects.filter(pk=user.pk).update(changed_at=then)


def fetch(user):
    return get_user_model().objects.get(pk=user.pk)


def try_login(server, user, password=OLD, path="/accounts/login/", **headers):
    browser = server()
    data = {"username": user.username, "password": password}
    return browser, browser.post(path, data, **headers)


def reset_password(browser, user, new=NEW):
    user = fetch(user)
    uid = urlsafe_base64_encode(force_bytes(user.pk))
    link = f"/accounts/reset/{uid}/{default_token_generator.make_token(user)}/"
    form = browser.get(link)
    if form.status_code != 302:
        return form
    return browser.post(form["Location"], {"new_password1": new, "new_password2": new})


# A warning.


def test_a_warning_holds_nobody(engine, server, alice):
    browser = login(server, alice)
    batch = services.expire_passwords(alice, require=Require.WARN, note="soon")
    assert not is_held(browser) and not is_held(login(server, alice))
    assert "password_expired" not in session_of(browser)
    status = services.password_status(alice)
    assert status.warn and not status.must_change and status.note == "soon"
    assert (status.require, status.reason, status.batch) == ("warn", "admin", batch.pk)
    assert batch.users_expired == 1 and batch.state == "done"
    services.expire_passwords(alice)
    assert is_held(browser) and services.password_status(alice).require == "change"
    change_password(browser)
    assert not services.password_status(alice).warn


def test_a_warning_to_everyone(alice, client):
    client.force_login(alice)
    services.expire_everyone(require=Require.WARN)
    assert not is_held(client) and services.password_status(alice).warn
    assert services.flag_sessions(alice).flagged == 1  # by hand: no number stands behind it
    assert is_held(client)


def test_a_warning_is_lifted(alice, bob):
    services.expire_passwords([alice, bob], require=Require.WARN)
    assert services.cancel_expiry(alice) == 0
    assert not services.password_status(alice).warn and services.password_status(bob).warn
    services.expire_everyone(require=Require.WARN)
    services.cancel_expiry(alice)
    assert not services.password_status(alice).warn and services.password_status(bob).warn


def test_whoever_was_logged_out_is_warned_all_the_same(alice):
    services.end_sessions(alice)
    assert services.expire_passwords(alice, require=Require.WARN).users_expired == 1
    assert services.password_status(alice).warn


def test_a_warning_ends_no_sessions(alice):
    with pytest.raises(InvalidRequest, match="ends no sessions"):
        services.expire_passwords(alice, require=Require.WARN, sessions=SessionAction.END)


def test_a_second_warning_changes_nothing_and_a_demand_does(alice):
    assert services.expire_passwords(alice, require=Require.WARN).users_expired == 1
    assert services.expire_passwords(alice, require=Require.WARN).users_expired == 0
    assert services.expire_passwords(alice).users_expired == 1
    assert services.expire_passwords(alice, require=Require.WARN).users_expired == 0


def test_an_aged_password_that_is_only_warned_of(engine, server, alice, settings):
    browser = login(server, alice)
    ago(alice, days=91)
    settings.PWEXPIRE_POLICY = Policy(max_age=timedelta(days=90), require="warn")
    assert not is_held(browser) and not is_held(login(server, alice))
    status = services.password_status(alice)
    assert status.warn and not status.must_change and status.require == "warn"


# The old password is worth nothing.


def test_reset_ends_sessions_and_refuses_the_login(engine, server, alice, refusing):
    browser = login(server, alice)
    store_session(browser, cart=["pen"])
    services.expire_passwords(alice, require=Require.RESET, reason=Reason.COMPROMISED)
    assert browser.get("/")["Location"] == "/accounts/password_reset/"
    assert browser.get("/").content == b"anonymous"
    before = fetch(alice).last_login
    thief, answer = try_login(server, alice)
    assert answer.status_code == 200 and b"Please enter a correct username" in answer.content
    assert b"/accounts/password_reset/" in answer.content
    assert thief.get("/").content == b"anonymous"
    assert fetch(alice).last_login == before
    _, wrong = try_login(server, alice, "wrong")
    assert b"/accounts/password_reset/" not in wrong.content
    assert b"Please enter a correct username" in wrong.content
    owner = server()
    assert reset_password(owner, alice).status_code == 302
    assert not is_held(login(server, alice, NEW))
    assert not services.password_status(alice).must_change


def test_the_reset_link_is_good_for_one_time(server, alice, refusing):
    services.expire_passwords(alice, require=Require.RESET)
    uid = urlsafe_base64_encode(force_bytes(alice.pk))
    link = f"/accounts/reset/{uid}/{default_token_generator.make_token(fetch(alice))}/"
    try_login(server, alice)  # must not make the link useless
    first, second = server(), server()
    data = {"new_password1": NEW, "new_password2": NEW}
    assert first.post(first.get(link)["Location"], data).status_code == 302
    assert b"invalid" in second.get(link).content


def withdraw(user, require):
    """Before any session was ended."""
    with mock.patch("pwexpire.services.batches.project"):
        services.expire_passwords(user, require=require)
    ExpiryBatch.objects.update(sessions=SessionAction.FLAG)


@pytest.mark.parametrize("path, kind", [("/", "get"), ("/cart/", "post")])
def test_a_session_that_cannot_be_reached_is_led_to_the_reset(server, alice, refusing, path, kind):
    """The one that a request saved back, or that the projection has not come to."""
    browser = login(server, alice)
    withdraw(alice, Require.RESET)
    seen = []

    def see(user_id, **kwargs):
        seen.append(user_id)

    expiry_enforced.connect(see)
    response = getattr(browser, kind)(path)
    assert response.status_code == (302 if kind == "get" else 303)
    assert response["Location"] == "/accounts/password_reset/"
    assert response["Cache-Control"] == "no-store" and seen == [str(alice.pk)]
    assert browser.get("/").content == b"anonymous"


@pytest.mark.parametrize("index", [None, True])
@pytest.mark.parametrize("require", [Require.RESET, Require.DENY])
def test_whose_session_was_ended_learns_why_once(
    engine, server, alice, bob, refusing, settings, require, index
):
    settings.PWEXPIRE_SESSION_INDEX = index
    browser, script, other = login(server, alice), login(server, alice), login(server, bob)
    services.expire_passwords(alice, require=require)
    answer = browser.get("/")
    if require == Require.RESET:
        assert answer["Location"] == "/accounts/password_reset/"
    else:
        assert answer.status_code == 403 and b"Ask an administrator" in answer.content
    assert answer["Cache-Control"] == "no-store"
    assert browser.get("/").content == b"anonymous"
    problem = script.post("/json/", {}, content_type="application/json").json()
    assert problem["code"] == f"password_{'reset_required' if require == 'reset' else 'denied'}"
    assert script.get("/").content == b"anonymous"
    assert other.get("/").content == b"bob"
    stranger = server()
    stranger.cookies["sessionid"] = "x" * 32
    assert stranger.get("/").content == b"anonymous"


def test_everyone_learns_why(engine, server, alice, refusing):
    browser = login(server, alice)
    services.expire_everyone(require=Require.RESET)
    assert browser.get("/")["Location"] == "/accounts/password_reset/"
    assert browser.get("/").content == b"anonymous"


def test_nobody_is_told_what_is_no_longer_true(engine, server, alice, bob, refusing, settings):
    browser, late, off, gone = (login(server, alice) for _ in range(4))
    theirs = login(server, bob)
    services.expire_passwords([alice, bob], require=Require.RESET)
    settings.PWEXPIRE_ENFORCE = False
    assert off.get("/plain/").status_code == 200
    settings.PWEXPIRE_ENFORCE = True
    assert late.get("/exempt/").content == b"exempt"
    services.cancel_expiry(alice)
    assert browser.get("/").content == b"anonymous"
    get_user_model().objects.filter(pk=bob.pk).delete()
    assert theirs.get("/").content == b"anonymous"
    assert gone.get("/").content == b"anonymous"


@pytest.mark.parametrize("require", [Require.CHANGE, None])
def test_other_ends_say_nothing(engine, server, alice, refusing, require):
    browser = login(server, alice)
    if require is None:
        services.end_sessions(alice)
    else:
        services.expire_passwords(alice, require=require, sessions=SessionAction.END)
    assert browser.get("/").content == b"anonymous"


def test_a_rule_of_the_site_leaves_the_user_out(server, alice, refusing):
    browser, other = login(server, alice), login(server, alice)
    services.expire_passwords(alice, require=Require.RESET)
    with mock.patch(
        "pwexpire.middleware.PasswordExpiryMiddleware.should_enforce", return_value=False
    ):
        assert browser.get("/").content == b"anonymous"
    with mock.patch(
        "pwexpire.middleware.ended.read_password_state", side_effect=DatabaseError("down")
    ):
        assert other.get("/").content == b"anonymous"


def test_the_trace_of_a_session_is_none_of_a_user(engine, alice, refusing):

    browser = login(Client, alice)
    key = browser.cookies["sessionid"].value
    services.expire_passwords(alice, require=Require.RESET)
    adapter = get_adapter()
    services.expire_passwords(alice, require=Require.DENY)
    assert not any(find_sessions(Selection(alice)))
    adapter.end({key: str(alice.pk)}, trace=True)  # what an index would have found
    if adapter.supports_end:
        adapter._leave_trace(key, str(alice.pk))  # as a run does that goes on with a killed one
    assert adapter.take_trace(key) == (str(alice.pk) if adapter.supports_end else None)
    assert adapter.take_trace(key) is None


@pytest.fixture
def open_session_under(alice, server, refusing):
    """A browser whose session is still there though its password was withdrawn."""

    def make(require):
        browser = login(server, alice)
        withdraw(alice, require)
        return browser

    return make


def test_scripts_are_told_of_the_reset(open_session_under):
    browser = open_session_under(Require.RESET)
    answer = browser.get("/json/", headers={"accept": "application/json"})
    assert answer.status_code == 403 and answer["Content-Type"] == "application/problem+json"
    problem = answer.json()
    assert problem["code"] == "password_reset_required"
    assert problem["reset_url"] == "/accounts/password_reset/"


def test_htmx_is_led_to_the_reset(open_session_under):
    answer = open_session_under(Require.RESET).get("/", headers={"hx-request": "true"})
    assert answer["HX-Redirect"] == "/accounts/password_reset/"


def test_exempt_views_are_served_to_nobody_in_particular(open_session_under):
    assert open_session_under(Require.RESET).get("/exempt/").content == b"exempt"


def test_whom_only_an_administrator_helps(open_session_under, server, alice):
    browser = open_session_under(Require.DENY)
    answer = browser.get("/")
    assert answer.status_code == 403 and b"Ask an administrator" in answer.content
    _, refused = try_login(server, alice)
    assert b"Ask an administrator" in refused.content
    assert b"password_reset" not in refused.content.split(b"Ask an")[1][:40]
    services.cancel_expiry(alice)
    answer = open_session_under(Require.DENY).get("/json/", headers={"accept": "application/json"})
    assert answer.json()["code"] == "password_denied" and "reset_url" not in answer.json()


def test_a_site_without_a_reset_page(open_session_under, settings):
    settings.PWEXPIRE_RESET_URL = "nowhere"
    browser = open_session_under(Require.RESET)
    answer = browser.get("/", headers={"hx-request": "true"})
    assert answer.status_code == 403 and b"reset link" in answer.content


def test_a_reset_link_does_not_meet_what_an_administrator_has_to(server, alice, bob, refusing):
    services.expire_passwords(alice, require=Require.DENY)
    assert reset_password(server(), alice).status_code == 302
    for path in ("/accounts/login/", "/admin/login/"):
        assert try_login(server, alice, NEW, path)[1].status_code == 200
    accomplice = login(server, bob)  # an account of his own makes nobody an administrator
    reset_password(accomplice, alice, OLD)
    assert try_login(server, alice, OLD)[1].status_code == 200
    assert services.password_status(alice).require == "deny"


def test_an_administrator_meets_it(server, alice, root, refusing):
    services.expire_passwords(alice, require=Require.DENY)
    office = login(server, root)
    data = {"password1": NEW, "password2": NEW, "usable_password": "true"}
    assert office.post(f"/admin/auth/user/{alice.pk}/password/", data).status_code == 302
    assert not is_held(login(server, alice, NEW))


def test_denied_to_everyone(alice, bob, server, refusing):
    services.expire_everyone(require=Require.DENY, exclude=bob)
    assert try_login(server, alice)[1].status_code == 200
    reset_password(server(), alice)
    assert try_login(server, alice, NEW)[1].status_code == 200
    assert not is_held(login(server, bob))


def test_the_strictest_demand_counts(alice, refusing):
    services.expire_passwords(alice)
    assert services.expire_passwords(alice, require=Require.RESET).users_expired == 1
    assert services.expire_passwords(alice, require=Require.CHANGE).users_already_expired == 1
    assert services.expire_passwords(alice, require=Require.RESET).users_expired == 0
    assert services.password_status(alice).require == "reset"
    services.cancel_expiry(alice)
    assert services.password_status(alice).require is None


@pytest.mark.parametrize("require", [Require.RESET, Require.DENY])
def test_nothing_is_demanded_that_no_backend_can_keep(alice, require):
    with pytest.raises(InvalidRequest, match="needs a backend that refuses"):
        services.expire_passwords(alice, require=require)


def test_an_aged_password_that_only_a_link_replaces(engine, server, alice, settings, refusing):
    browser = login(server, alice)
    ago(alice, days=91)
    settings.PWEXPIRE_POLICY = Policy(max_age=timedelta(days=90), require="reset")
    assert browser.get("/")["Location"] == "/accounts/password_reset/"
    assert browser.get("/").content == b"anonymous"
    assert try_login(server, alice)[1].status_code == 200
    reset_password(server(), alice)
    assert not is_held(login(server, alice, NEW))


# First use, and passwords that are meant for a while.

GIVEN = Policy(
    change_on_first_use=True, change_after_admin_reset=True, temporary_for=timedelta(days=3)
)


def test_whoever_was_created_by_somebody_else_changes_it_first(engine, server, settings):
    settings.PWEXPIRE_POLICY = GIVEN
    carol = UserFactory(username="carol")
    browser = login(server, carol)
    assert is_held(browser)
    status = services.password_status(carol)
    assert (status.reason, status.require) == ("first_use", "change")
    assert change_password(browser).status_code == 302
    assert not is_held(browser) and not is_held(login(server, carol, NEW))


@pytest.mark.parametrize("none", [None, ""])
def test_a_user_who_gets_the_first_password_in_a_second_save_changes_it_first(
    client, settings, none
):
    settings.PWEXPIRE_POLICY = Policy(change_on_first_use=True)
    carol = get_user_model()(username="carol")
    if none is None:
        carol.set_unusable_password()
    carol.save()
    carol.set_password(OLD)
    carol.save()
    status = services.password_status(carol)
    assert (status.must_change, status.reason) == (True, "first_use")
    browser = login(Client, carol)
    assert is_held(browser) and change_password(browser).status_code == 302
    assert not is_held(browser)
    carol.refresh_from_db()
    carol.set_password(OLD)
    carol.save()
    assert not services.password_status(carol).must_change, "that was no first one"


def test_whoever_signed_up_does_not(server, settings):
    settings.PWEXPIRE_POLICY = GIVEN
    browser = server()
    data = {"username": "dave", "password1": OLD, "password2": OLD}
    assert browser.post("/signup/", data).status_code == 302
    dave = get_user_model().objects.get(username="dave")
    assert not is_held(login(server, dave))


def test_after_an_administrator_set_it(server, alice, root, settings):
    office = login(server, root)
    change = f"/admin/auth/user/{alice.pk}/password/"
    data = {"password1": NEW, "password2": NEW, "usable_password": "true"}
    assert office.post(change, data).status_code == 302
    assert not is_held(login(server, alice, NEW))
    open_before = login(server, alice, NEW)
    settings.PWEXPIRE_POLICY = GIVEN
    assert is_held(open_before)
    status = services.password_status(alice)
    assert status.reason == "first_use" and status.actor == root.pk
    assert change_password(open_before, old=NEW, new=OLD).status_code == 302
    assert not is_held(open_before)
    ago(root, days=1)
    record = PasswordRecord.objects.get(pk=root.pk)
    assert record.given_at is not None  # created by a script
    call_command("pwexpire", "status", "--user", "root", verbosity=0)


def test_an_administrator_who_changes_his_own(server, root, settings):
    office = login(server, root)
    data = {"password1": NEW, "password2": NEW, "usable_password": "true"}
    assert office.post(f"/admin/auth/user/{root.pk}/password/", data).status_code == 302
    settings.PWEXPIRE_POLICY = GIVEN
    assert not is_held(login(server, root, NEW))


def test_a_password_that_is_meant_for_a_while(server, settings, refusing):
    settings.PWEXPIRE_POLICY = GIVEN
    carol = UserFactory(username="carol")
    browser = login(server, carol)
    with mock.patch.object(timezone, "now", return_value=timezone.now() + timedelta(days=4)):
        assert services.password_status(carol).require == "reset"
        assert browser.get("/")["Location"] == "/accounts/password_reset/"
        assert try_login(server, carol)[1].status_code == 200
    reset_password(server(), carol)
    assert not is_held(login(server, carol, NEW))


def test_an_expiry_for_first_use_has_the_same_deadline(alice, settings, refusing):
    settings.PWEXPIRE_POLICY = GIVEN
    services.record_password_change(alice)
    assert not services.password_status(alice).must_change
    services.expire_passwords(alice, reason=Reason.FIRST_USE)
    assert services.password_status(alice).require == "change"
    with mock.patch.object(timezone, "now", return_value=timezone.now() + timedelta(days=4)):
        assert services.password_status(alice).require == "reset"


def test_users_who_were_imported_behind_the_signals(server, alice, settings):
    read_state()
    model = get_user_model()
    [erin] = model.objects.bulk_create([model(username="erin", password=alice.password)])
    erin = model.objects.get(username="erin")
    settings.PWEXPIRE_POLICY = GIVEN
    browser = login(server, erin)
    assert is_held(browser)
    assert services.password_status(erin).reason == "first_use"
    change_password(browser)
    assert not is_held(browser)


# Grace.


def test_an_aged_password_is_good_for_some_more_logins(engine, server, alice, settings):
    before = login(server, alice)
    ago(alice, days=91)
    settings.PWEXPIRE_POLICY = AGED
    assert services.password_status(alice).grace_logins == 2
    assert is_held(before)
    first = login(server, alice)
    assert not is_held(first) and not is_held(first)
    assert services.password_status(alice).grace_logins == 1
    second = login(server, alice)
    assert not is_held(second) and not is_held(first)
    third = login(server, alice)
    assert is_held(third) and services.password_status(alice).grace_logins == 0
    assert not is_held(second) and not is_held(first) and is_held(before)
    change_password(third)
    assert not is_held(third)
    assert PasswordRecord.objects.get(pk=alice.pk).grace_used == 0


def test_there_is_no_grace_for_what_was_demanded(server, alice, settings):
    settings.PWEXPIRE_POLICY = AGED
    ago(alice, days=91)
    browser = login(server, alice)
    assert not is_held(browser)
    services.expire_passwords(alice, reason=Reason.COMPROMISED)
    assert is_held(browser) and is_held(login(server, alice))
    assert PasswordRecord.objects.get(pk=alice.pk).grace_used == 1


def test_a_flag_by_hand_in_a_session_of_grace(server, alice, settings):
    settings.PWEXPIRE_POLICY = AGED
    ago(alice, days=91)
    browser = login(server, alice)
    store_session(browser, password_expired=True)
    assert is_held(browser)


def test_a_flag_by_hand_reaches_no_other_session_of_grace(engine, alice, settings):
    settings.PWEXPIRE_POLICY = AGED
    ago(alice, days=91)
    first, second = login(Client, alice), login(Client, alice)
    store_session(first, password_expired=True)
    assert is_held(first) and not is_held(second)
    store_session(first, password_expired=False)
    assert not is_held(first)


def test_grace_is_not_taken_while_it_cannot_be_counted(server, alice, settings):
    settings.PWEXPIRE_POLICY = AGED
    ago(alice, days=91)
    with mock.patch("pwexpire.receivers.take_grace", side_effect=DatabaseError("read-only")):
        assert is_held(login(server, alice))


def test_grace_ends_with_the_last_login(alice):
    assert [take_grace(alice, 2) for _ in range(3)] == [True, True, False]


def test_grace_is_counted_without_races(alice, settings):
    if connection.vendor == "sqlite":
        pytest.skip("one writer at a time")
    taken = []

    def take():
        taken.append(take_grace(alice, 3))
        connections.close_all()

    threads = [threading.Thread(target=take) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(taken) == 3 and PasswordRecord.objects.get(pk=alice.pk).grace_used == 3


# Whom it applies to.


def test_sessions_of_another_backend_are_not_held(engine, server, alice, settings, client):
    settings.AUTHENTICATION_BACKENDS = [MODEL, "tests.testapp.backends.SingleSignOn"]
    settings.PWEXPIRE_EXEMPT_BACKENDS = ["tests.testapp.backends.SingleSignOn"]
    client.force_login(alice, backend="tests.testapp.backends.SingleSignOn")
    by_password = login(server, alice)
    services.expire_passwords(alice)
    assert is_held(by_password) and not is_held(client) and is_held(by_password)
    assert not is_held(client)
    client.force_login(alice, backend="tests.testapp.backends.SingleSignOn")
    assert not is_held(client) and "password_expired" not in session_of(client)
    services.end_sessions(alice)
    assert client.get("/").content == b"anonymous"


def test_no_grace_is_taken_by_another_backend(alice, settings, client):
    settings.PWEXPIRE_POLICY = AGED
    settings.PWEXPIRE_EXEMPT_BACKENDS = [MODEL]
    ago(alice, days=91)
    client.force_login(alice, backend=MODEL)
    assert not is_held(client)
    assert PasswordRecord.objects.get(pk=alice.pk).grace_used == 0


def test_service_accounts(engine, server, alice, bob, settings):
    settings.PWEXPIRE_APPLIES_TO = "tests.testapp.policies.is_person"
    browser, other = login(server, alice), login(server, bob)
    services.expire_passwords([alice, bob])
    assert is_held(other)
    assert is_held(browser) is False


def test_service_accounts_are_not_warned_and_not_applicable(alice, bob, settings):
    services.expire_passwords([alice, bob], require=Require.WARN)
    settings.PWEXPIRE_APPLIES_TO = "tests.testapp.policies.is_person"
    assert not services.password_status(alice).warn and services.password_status(bob).warn
    states = [row.state for row in evaluate([alice, bob])]
    assert states == ["not_applicable", "warned"]


def test_staff_are_in(server, root):
    office = login(server, root)
    services.expire_passwords(root)
    assert office.get("/admin/")["Location"].startswith("/admin/password_change/")


# Somebody else sits there.


@pytest.fixture
def hijack(settings):
    pytest.importorskip("hijack")
    settings.ROOT_URLCONF = "tests.urls_impersonation"
    settings.HIJACK_PERMISSION_CHECK = "hijack.permissions.superusers_only"


def take_over(browser, user):
    response = browser.post("/hijack/acquire/", {"user_pk": user.pk})
    assert response.status_code == 302, response.content
    assert browser.get("/").content == user.username.encode()


def test_an_administrator_is_not_made_to_change_the_users(engine, alice, root, hijack, client):
    client.force_login(root)
    services.expire_passwords(alice)
    take_over(client, alice)
    assert not is_held(client) and not is_held(client)
    services.expire_passwords(alice, reason=Reason.INCIDENT, require=Require.CHANGE)
    assert not is_held(client)
    client.post("/hijack/release/")
    assert client.get("/").content == b"root"


def test_an_administrator_who_is_expired_himself(engine, alice, root, hijack, client):
    client.force_login(root)
    take_over(client, alice)
    services.expire_passwords(root)
    assert client.get("/").content == b"anonymous"


def test_taking_over_takes_no_grace(alice, root, hijack, client, settings):
    settings.PWEXPIRE_POLICY = Policy(max_age=timedelta(days=90), grace_logins=2)
    client.force_login(root)
    ago(alice, days=91)
    take_over(client, alice)
    assert PasswordRecord.objects.get(pk=alice.pk).grace_used == 0


def test_an_administrator_who_is_gone(alice, root, hijack, client):
    client.force_login(root)
    take_over(client, alice)
    services.expire_passwords(alice)
    root.delete()
    assert client.get("/").content == b"alice"


# Counting only.


def test_report_only_holds_nobody_and_counts(engine, server, alice, bob, settings):
    settings.PWEXPIRE_ENFORCE = "report"
    browser, other = login(server, alice), login(server, bob)
    services.expire_passwords(alice)
    for _ in range(3):
        assert not is_held(browser) and not is_held(other)
    assert not is_held(login(server, alice))
    record = PasswordRecord.objects.get(pk=alice.pk)
    assert record.would_hold in (1, 2) and record.would_hold_at is not None
    assert PasswordRecord.objects.get(pk=bob.pk).would_hold == 0
    settings.PWEXPIRE_ENFORCE = True
    assert is_held(browser)


def test_report_only_with_a_flag_by_hand(server, alice, settings):
    settings.PWEXPIRE_ENFORCE = "report"
    browser = login(server, alice)
    store_session(browser, password_expired=True)
    for _ in range(3):
        assert not is_held(browser)
    assert PasswordRecord.objects.get(pk=alice.pk).would_hold == 1


def test_report_only_demands_nothing_of_the_aged(server, alice, settings, refusing):
    settings.PWEXPIRE_ENFORCE = "report"
    settings.PWEXPIRE_POLICY = AGED
    ago(alice, days=91)
    assert not is_held(login(server, alice))
    record = PasswordRecord.objects.get(pk=alice.pk)
    assert (record.grace_used, record.would_hold) == (0, 1)
    services.expire_passwords(alice, require=Require.RESET)
    assert try_login(server, alice)[1].status_code == 302


# Policies that are exchanged.


def test_another_policy_reaches_open_sessions_and_logs_nobody_out(
    engine, server, alice, bob, settings
):
    browser, other = login(server, alice), login(server, bob)
    ago(alice, days=40)
    settings.PWEXPIRE_POLICY = Policy(max_age=timedelta(days=90))
    assert not is_held(browser) and not is_held(other)
    settings.PWEXPIRE_POLICY = Policy(max_age=timedelta(days=30))
    assert is_held(browser) and not is_held(other)
    assert session_of(browser)["_auth_user_id"] == str(alice.pk)


def test_a_policy_by_group(server, alice, bob, settings):
    from django.contrib.auth.models import Group

    settings.PWEXPIRE_POLICY = {
        "group:Finance": Policy(max_age=timedelta(days=30), name="finance"),
        "default": "nist",
    }
    finance = Group.objects.create(name="Finance")
    alice.groups.add(finance)
    browser, other = login(server, alice), login(server, bob)
    ago(alice, days=31)
    ago(bob, days=31)
    assert is_held(login(server, alice)) and not is_held(other)
    status = services.password_status(alice)
    assert (status.rule, status.policy.name) == ("group:Finance", "finance")
    assert services.password_status(bob).rule == "default"
    bob.groups.add(finance)
    later = timezone.now() + timedelta(hours=2)
    with mock.patch("time.time", return_value=later.timestamp()):
        assert is_held(other) and is_held(browser)  # without logging in again


def test_second_factors(server, alice, bob, settings):
    settings.PWEXPIRE_POLICY = "pci-dss"
    services.record_password_change(alice)
    services.record_password_change(bob)
    ago(alice, days=91)
    ago(bob, days=91)
    settings.PWEXPIRE_SECOND_FACTOR = "tests.testapp.policies.is_bob"
    assert is_held(login(server, alice)) and not is_held(login(server, bob))


def test_the_command_explains_all_of_it(alice, bob, settings, refusing):
    from pwexpire.management.verdict import explain

    settings.PWEXPIRE_POLICY = GIVEN
    said = " ".join(explain(alice)["sentences"])
    assert "first_use, somebody else chose the password." in said
    services.expire_passwords(bob, require=Require.DENY)
    assert "withdrawn (deny)" in " ".join(explain(bob)["sentences"])
    settings.PWEXPIRE_APPLIES_TO = "tests.testapp.policies.is_person"
    settings.PWEXPIRE_ENFORCE = "report"
    said = " ".join(explain(alice)["sentences"])
    assert "PWEXPIRE_APPLIES_TO says so" in said and "only counted" in said


@pytest.mark.parametrize("grace", [0, 2])
def test_check_says_what_the_next_request_does(alice, settings, client, grace):
    settings.PWEXPIRE_POLICY = Policy(max_age=timedelta(days=90), grace_logins=grace)
    sso = "tests.testapp.backends.SingleSignOn"
    settings.AUTHENTICATION_BACKENDS, settings.PWEXPIRE_EXEMPT_BACKENDS = [MODEL, sso], [sso]
    ago(alice, days=91)
    after = Client()

    def check():
        out = StringIO()
        call_command("pwexpire", "check", "--user", "alice", stdout=out)
        return out.getvalue()

    client.force_login(alice, backend=sso)
    assert "alice is held since" in check() and not is_held(client)
    assert f"A session that {sso} opened passes." in check()
    after.force_login(alice, backend=MODEL)
    assert is_held(after) is not bool(grace)
    assert ("A session that a grace login opened passes." in check()) is bool(grace)
    settings.PWEXPIRE_ENFORCE = "report"
    assert "alice would be held since" in check() and "passes" not in check()
    assert not is_held(after)


@pytest.mark.parametrize("closed", [True, False])
def test_check_says_that_a_policy_cannot_be_read(alice, settings, closed):
    settings.PWEXPIRE_POLICY, settings.PWEXPIRE_FAIL_CLOSED = "no-such-preset", closed
    out = StringIO()
    call_command("pwexpire", "check", "--user", "alice", stdout=out)
    said = f"others are {'answered 503' if closed else 'free'}"
    assert "PWEXPIRE_POLICY cannot be read" in out.getvalue() and said in out.getvalue()


def test_a_login_without_a_session(alice, rf):
    from pwexpire.receivers import on_login

    on_login(type(alice), request=None, user=None)
    on_login(type(alice), request=None, user=alice)
    on_login(type(alice), request=rf.get("/"), user=alice)
    assert not PasswordRecord.objects.filter(pk=alice.pk, grace_used__gt=0).exists()


def test_callables_have_a_name_in_every_process(settings):
    from pwexpire.conf import conf

    def of(user):
        return Policy()

    for given in (of, partial(of)):
        settings.PWEXPIRE_POLICY = given
        assert conf.policy_key is not None and "0x" not in conf.policy_key
        assert checks.configuration.check_settings(None) == []
    assert conf.rules is None and conf.policies == ()


def test_an_age_that_no_backend_can_keep_is_met_by_any_change(server, alice, settings):
    ago(alice, days=91)
    settings.PWEXPIRE_POLICY = Policy(max_age=timedelta(days=90), require="deny")
    reset_password(server(), alice)
    assert not services.password_status(alice).must_change

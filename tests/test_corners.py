from __future__ import annotations

import uuid
from datetime import timedelta
from types import SimpleNamespace
from unittest import mock

import pytest
from django.contrib.auth import get_user_model
from django.db import OperationalError, models
from django.http import HttpResponse
from django.utils import timezone

from pwexpire import exemptions, receivers, responses, services
from pwexpire.management import probe, selectors
from pwexpire.middleware import PasswordExpiryMiddleware, tries
from pwexpire.models import EnforcementState, PasswordRecord, SessionEntry
from pwexpire.policy import Policy, decide
from pwexpire.services import expired, index
from pwexpire.services.password_changes import change_context
from pwexpire.services.selection import Selection
from pwexpire.services.status import read_rules
from pwexpire.session_state import RequestState, SessionState, request_state_of
from pwexpire.sessionstore import registry
from pwexpire.views import PasswordChangeView
from tests.support import is_held, made, store_session

pytestmark = pytest.mark.django_db(transaction=True)


def test_no_policy_decides_nothing():
    now = timezone.now()
    decision = decide(Policy(), changed_at=now, now=now)
    assert not decision.must_change and decision.expires_at is None


def test_status_of_a_password_that_aged_out_unseen(alice, settings):
    settings.PWEXPIRE_POLICY = Policy(max_age=timedelta(days=9))
    PasswordRecord.objects.update(changed_at=timezone.now() - timedelta(days=10))
    status = services.password_status(alice)
    assert status.must_change and status.reason == "age" and status.require == "change"


def test_the_probe_finds_a_key_of_every_type():
    assert probe._find_unused_key(models.UUIDField()) == uuid.UUID(int=0)
    assert probe._find_unused_key(models.CharField()) == probe.KEY
    assert probe._find_unused_key(models.BigAutoField()) == 0


def test_fields_that_a_user_model_lacks():
    assert not selectors._has_field("shoe_size")


def test_ids_that_are_none_and_lists_of_users(alice, bob):
    selection = Selection([alice])
    assert selection.among(["x", str(alice.pk), str(bob.pk)]) == {alice.pk}
    assert Selection(get_user_model().objects.all()).among(["x"]) == set()


def test_keys_that_the_index_cannot_hold(alice, settings):
    index.index_session("k" * 65, alice.pk)
    index.index_session(None, alice.pk)
    settings.PWEXPIRE_SESSION_INDEX = False
    index.index_session("k", alice.pk)
    index.forget_session("k")
    assert not SessionEntry.objects.exists()


def test_sessions_are_ended_without_an_index(alice, client, settings):
    settings.PWEXPIRE_SESSION_INDEX = False
    client.force_login(alice)
    assert services.end_sessions(alice).ended == 1


def test_a_session_that_has_no_key_yet_is_made(alice):
    from django.contrib.sessions.backends.db import SessionStore

    request = SimpleNamespace(session=SessionStore())
    request.session["_auth_user_id"] = str(alice.pk)
    receivers.on_login(type(alice), request=request, user=alice)
    assert SessionEntry.objects.get().session_key == request.session.session_key
    with mock.patch.object(receivers, "uses_index", return_value=False):
        receivers.on_login(type(alice), request=request, user=alice)


def test_a_numbered_flag_is_dropped_at_a_login(alice, client):
    client.force_login(alice)
    store_session(client, password_expired=True, _password_expired_demand=1)
    client.post("/accounts/login/", {"username": "alice", "password": "old-Password-1"})
    assert "password_expired" not in client.session


def test_other_databases_get_no_state(alice):
    EnforcementState.objects.all().delete()
    receivers.after_migrate(None, using="elsewhere")
    assert not EnforcementState.objects.exists()
    receivers.after_migrate(None, using="default")
    assert EnforcementState.objects.exists()


def test_an_admin_view_of_no_site_is_not_exempt():
    view = SimpleNamespace(admin_site=object(), __wrapped__=len)
    assert not exemptions._is_admin_exempt(view)


def test_under_the_admin_without_a_site_to_ask(rf):
    match = SimpleNamespace(app_names=["admin"], func=len)
    assert responses.admin_change_url(rf.get("/"), match) is None


def test_a_held_request_outside_of_a_middleware_call(rf, alice, client):
    client.force_login(alice)
    request = rf.get("/")
    request.session, request.user = client.session, alice
    case = made(SessionState, user_id=str(alice.pk), flagged=True)
    ours = PasswordExpiryMiddleware(lambda request: None)
    request_state_of(request).state = case
    assert ours._hold(request, request_state_of(request)).status_code == 302
    ours._drop_stale_flag(request, case)
    assert not case.flagged and not is_held(client)


def test_a_store_whose_module_has_a_session_model(monkeypatch):
    from django.contrib.sessions.backends.base import SessionBase
    from django.contrib.sessions.models import Session

    monkeypatch.setattr(probe, "Session", Session, raising=False)
    assert registry._find_model(probe.SessionStore) is Session
    monkeypatch.setattr(probe, "Session", get_user_model())
    assert registry._find_model(probe.SessionStore) is None
    assert registry._find_model(SessionBase) is None


def test_more_of_the_same(alice, client, settings):
    assert not exemptions.is_exempt(len, None)
    batch = services.expire_passwords(alice)
    batch.state = "staged"
    batch.number = None
    batch.save()
    assert services.resume_expiry(batch).state == "done"


def test_a_relation_that_is_no_user(settings):
    from django.contrib.admin.models import LogEntry

    from pwexpire.sessionstore.rows import _find_user_column

    assert _find_user_column(LogEntry) == "user_id"
    with mock.patch("pwexpire.sessionstore.rows.get_user_model", return_value=LogEntry):
        assert _find_user_column(LogEntry) is None


def test_the_index_follows_a_new_key(alice, client):
    client.force_login(alice)
    old = client.session.session_key
    client.get("/cycle/")
    new = client.session.session_key
    assert new != old and [entry.pk for entry in SessionEntry.objects.all()] == [new]
    assert services.expire_passwords(alice).sessions_flagged == 1


def test_a_numbered_flag_in_a_session_that_logs_in_again(alice):
    from django.contrib.sessions.backends.db import SessionStore

    session = SessionStore()
    session.update({"password_expired": True, "_password_expired_demand": 1})
    session["_auth_user_id"] = str(alice.pk)
    receivers.on_login(type(alice), request=SimpleNamespace(session=session), user=alice)
    assert "password_expired" not in session


def test_what_could_not_be_ended_stays_in_the_index(alice, client):
    from pwexpire.sessionstore.rows import RowAdapter

    client.force_login(alice)
    with mock.patch.object(RowAdapter, "_delete_rows", side_effect=OperationalError("down")):
        assert services.end_sessions(alice).ended == 0
    assert SessionEntry.objects.count() == 1
    assert services.end_sessions(alice).ended == 1
    assert not SessionEntry.objects.exists()


def test_a_login_that_meets_the_end_of_its_sessions_stays_in_the_index(alice, client):
    from django.contrib.auth.signals import user_logged_in

    def end(**kwargs):
        """As another process, while the row is there and nothing is written in it."""
        services.end_sessions(alice)

    user_logged_in.connect(end)
    try:
        client.force_login(alice)
    finally:
        user_logged_in.disconnect(end)
    assert [entry.pk for entry in SessionEntry.objects.all()] == [client.session.session_key]
    assert services.end_sessions(alice).ended == 1
    assert not SessionEntry.objects.exists()


def test_a_view_that_asks_for_no_old_password_is_no_change_page(rf):
    request = rf.post("/nowhere/")
    request.resolver_match = None
    assert not exemptions.is_change_page(request, len)


def test_a_page_that_changes_no_password_is_open_to_who_acts_as_another_user(rf, monkeypatch):
    monkeypatch.setattr("pwexpire.middleware.answers.is_impersonated", lambda request: True)
    monkeypatch.setattr("pwexpire.middleware.answers.is_change_page", lambda *given: True)
    monkeypatch.setattr("pwexpire.middleware.answers.is_change_of_password", lambda *given: False)
    ours = PasswordExpiryMiddleware(lambda request: None)
    assert ours._enter_change(rf.get("/"), None, len) is None


def test_our_page_refuses_who_acts_as_another_user_without_the_middleware(rf, alice, monkeypatch):
    monkeypatch.setattr("pwexpire.views.is_impersonated", lambda request: True)
    request = rf.get("/")
    request.user = alice
    assert PasswordChangeView.as_view()(request).status_code == 403


def test_a_session_that_became_nobodys_is_not_followed_up(rf, client):
    request = rf.get("/")
    request.session = client.session
    ours = PasswordExpiryMiddleware(lambda request: None)
    request_state_of(request)
    response = HttpResponse()
    assert ours._leave(request, response) is response


def test_a_change_is_followed_up_for_the_user_of_the_session(rf, alice, bob, client):
    client.force_login(alice)
    request = rf.get("/")
    request.session, request.user = client.session, bob
    request.session["password_expired"] = True
    state = made(SessionState, user_id=str(alice.pk), flagged=True)
    token = change_context.set(made(RequestState, real_changes={str(alice.pk): True}))
    try:
        PasswordExpiryMiddleware(lambda request: None)._settle(request, state)
    finally:
        change_context.reset(token)
    assert "password_expired" not in request.session


def test_a_policy_that_only_warns_is_a_condition_in_sql(alice):
    PasswordRecord.objects.filter(pk=alice.pk).update(changed_at=timezone.now() - timedelta(days=9))
    rules = read_rules()
    for policy, warned in (
        (Policy(max_age=timedelta(days=5), require="warn"), True),
        (Policy(max_age=timedelta(days=5)), False),
        (Policy(), False),
    ):
        asked = get_user_model().objects.filter(expired._warns_by_itself(policy, rules))
        assert asked.exists() is warned


def test_a_user_model_without_a_day_of_joining_was_never_imported(alice, monkeypatch):
    monkeypatch.setattr(expired, "_has_joined", lambda: False)
    PasswordRecord.objects.all().delete()
    policy = Policy(change_on_first_use=True)
    asked = expired._is_given(policy, read_rules(), None)
    assert not get_user_model().objects.filter(asked).exists()


def test_an_old_password_that_comes_without_a_session_of_its_user_is_no_try(alice, rf):
    from django.contrib.sessions.backends.db import SessionStore

    request = rf.post("/", {"old_password": "wrong"})
    request.user, request.session = alice, SessionStore()
    with mock.patch.object(tries, "verify_only_one") as verify:
        assert tries.verify_try(request, len) is None
    assert not verify.called


def test_who_aged_out_since_they_joined_is_asked_in_sql(alice, settings):
    settings.PWEXPIRE_POLICY = Policy(max_age=timedelta(days=9))
    settings.PWEXPIRE_ASSUME_CHANGED = "joined"
    users = get_user_model().objects.all()
    PasswordRecord.objects.all().delete()
    assert services.preview_expiry(users).already_expired == 0
    users.update(date_joined=timezone.now() - timedelta(days=10))
    assert services.preview_expiry(users).already_expired == 1


def test_a_flag_by_hand_beside_the_number_of_a_cancelled_demand(client, alice):
    client.force_login(alice)
    services.expire_passwords(alice)
    services.cancel_expiry(alice)
    session = client.session
    session["password_expired"] = True
    session.pop("_password_expired_demand", None)
    session.save()
    assert is_held(client)

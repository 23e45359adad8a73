from __future__ import annotations

from unittest import mock

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.hashers import make_password
from django.core.management import call_command
from django.db import OperationalError, transaction

from pwexpire import receivers, services
from pwexpire.conf import conf
from pwexpire.feed import feed
from pwexpire.middleware import PasswordExpiryMiddleware
from pwexpire.models import (
    BatchState,
    Demand,
    EnforcementState,
    Exclusion,
    ExpiryBatch,
    Notice,
    OldPassword,
    PasswordRecord,
    SessionEntry,
)
from pwexpire.pages import find_reset_url
from pwexpire.policy import Policy
from pwexpire.services.mails import reason_label
from tests.support import NEW, OLD, change_password, is_held, store_session

pytestmark = pytest.mark.django_db(transaction=True)
DOWN = OperationalError("down")


def test_a_login_without_a_session_or_request(alice):
    receivers.on_login(type(alice), request=None, user=alice)
    receivers.on_logout(type(alice), request=None, user=alice)


def test_a_fault_keeps_nobody_from_logging_in(alice, client, caplog):
    with mock.patch.object(receivers, "read_counter_and_state", side_effect=DOWN):
        client.force_login(alice)
    assert client.get("/").content == b"alice"
    with mock.patch.object(receivers, "index_session", side_effect=DOWN):
        client.force_login(alice)
    with mock.patch.object(receivers, "forget_session", side_effect=DOWN):
        client.logout()
    assert caplog.text.count("down") == 3


def test_another_user_in_the_same_session(alice, bob, client):
    client.force_login(alice)
    client.post("/accounts/login/", {"username": "bob", "password": OLD})
    assert [entry.user for entry in SessionEntry.objects.all()] == [bob]


def test_a_login_under_atomic_requests(alice, client, monkeypatch):
    from django.db import connection

    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)
    services.expire_passwords(alice)
    client.post("/accounts/login/", {"username": "alice", "password": OLD})
    assert is_held(client) and SessionEntry.objects.count() == 1


def test_faults_while_saving_a_user_are_logged(alice, caplog):
    alice.set_password(NEW)
    with mock.patch.object(receivers, "read_change", side_effect=DOWN):
        alice.save()
    alice.set_password(OLD)
    with mock.patch("pwexpire.services.saves.meet_demands", side_effect=DOWN):
        alice.save()
    assert "could not be prepared" in caplog.text and "could not be recorded" in caplog.text


def test_fixtures_and_partial_saves_are_no_change(alice, tmp_path):
    services.expire_passwords(alice)
    path = tmp_path / "users.json"
    call_command("dumpdata", "auth.user", output=str(path), verbosity=0)
    call_command("loaddata", str(path), verbosity=0)
    alice.set_password(NEW)
    alice.save(update_fields=["email"])
    assert services.password_status(alice).must_change


def test_a_hash_without_its_password_is_told(alice, caplog):
    services.expire_passwords(alice)
    feed.view(feed.scope())
    alice.password = make_password(NEW)
    alice.save()
    assert "record_password_change" in caplog.text and NEW not in caplog.text
    assert services.password_status(alice).must_change
    services.record_password_change(alice)
    caplog.clear()
    alice.password = make_password(OLD)
    alice.save()
    assert not caplog.text


def test_a_hash_and_a_refreshed_session_are_a_change_when_they_are_recorded(alice, client):
    client.force_login(alice)
    services.expire_passwords(alice)
    assert client.post("/exempt/hash/", {"password": NEW}).status_code == 200
    assert is_held(client)
    assert client.post("/exempt/hash/", {"password": OLD, "record": "1"}).status_code == 200
    assert not is_held(client)


def test_a_policy_looks_at_the_same_password_too(alice, settings):
    from datetime import timedelta

    settings.PWEXPIRE_POLICY = Policy(max_age=timedelta(days=9))
    before = PasswordRecord.objects.get(pk=alice.pk).changed_at
    alice.set_password(OLD)
    alice.save()
    assert PasswordRecord.objects.get(pk=alice.pk).changed_at == before


def test_a_lift_leaves_the_stored_flag_behind(alice, client):
    client.force_login(alice)
    services.expire_passwords(alice)
    services.cancel_expiry(alice)
    assert not is_held(client)
    assert "password_expired" not in client.session


def test_a_site_may_spare_somebody(alice, client, settings):
    settings.MIDDLEWARE = [
        name.replace(
            "pwexpire.middleware.PasswordExpiryMiddleware", "tests.testapp.middleware.OwnExpiry"
        )
        for name in settings.MIDDLEWARE
    ]
    alice.username = "service-a"
    alice.save()
    client.force_login(alice)
    services.expire_passwords(alice)
    assert client.get("/").status_code == 200


def test_an_aged_session_is_held_through_a_fault(alice, client, settings):
    from datetime import timedelta

    client.force_login(alice)
    settings.PWEXPIRE_POLICY = Policy(max_age=timedelta(days=9))
    PasswordRecord.objects.update(changed_at=alice.date_joined - timedelta(days=99))
    assert is_held(client) and client.session["password_expired"] is True
    with mock.patch("pwexpire.middleware.enforcement.read_password_state", side_effect=DOWN):
        assert is_held(client)


def test_a_fault_after_a_change_is_logged(alice, client, caplog):
    client.force_login(alice)
    services.expire_passwords(alice)
    with mock.patch.object(PasswordExpiryMiddleware, "_settle", side_effect=DOWN):
        assert change_password(client).status_code == 302
    assert "could not be followed up" in caplog.text
    assert not is_held(client)


def test_a_fault_in_the_admin_leads_to_the_sites_page(root, client):
    services.expire_passwords(root)
    client.force_login(root)
    with mock.patch("pwexpire.middleware.hooks.admin_change_url", side_effect=DOWN):
        assert client.get("/admin/")["Location"].startswith("/account/password-change/")


def test_a_held_answer_never_leads_to_itself(alice, client, settings):
    settings.PWEXPIRE_CHANGE_URL = "plain"
    client.force_login(alice)
    services.expire_passwords(alice)
    with mock.patch.object(PasswordExpiryMiddleware, "is_exempt", return_value=False):
        assert client.get("/plain/").status_code == 503


def test_other_change_pages_are_told_by_a_message(alice, client, settings):
    settings.PWEXPIRE_CHANGE_URL = "password_change"
    client.force_login(alice)
    services.expire_passwords(alice)
    response = client.post("/cart/", {"item": "pen"})
    assert response["Location"].startswith("/accounts/password_change/")
    assert "messages" in response.cookies
    settings.MESSAGE_STORAGE = "django.contrib.messages.storage.session.SessionStorage"
    assert "messages" not in client.post("/cart/", {"item": "pen"}).cookies


def test_words_for_people(settings):
    settings.PWEXPIRE_REASONS = {"merger": "the merger"}
    assert reason_label("merger") == "the merger" and reason_label(None) == ""
    assert reason_label("gone") == "it was asked for" and "admin" in reason_label("admin")
    settings.PWEXPIRE_RESET_URL = "nowhere"
    assert find_reset_url() is None


def test_the_well_known_url_without_a_page(client, settings):
    settings.PWEXPIRE_CHANGE_URL = "nowhere"
    assert client.get("/.well-known/change-password").status_code == 503


def test_rows_have_names(alice):
    batch = ExpiryBatch(pk=1, reason="admin", state=BatchState.DONE)
    rows = [
        EnforcementState(counter=3),
        batch,
        PasswordRecord(user=alice),
        Demand(batch=batch, user=alice),
        Exclusion(batch=batch, user=alice),
        OldPassword(user=alice),
        Notice(user=alice, key="batch:1"),
        SessionEntry(session_key="0123456789", user=alice),
    ]
    assert all(str(row) for row in rows) and "6789" not in str(rows[-1])


def test_policy_of_a_site_is_asked_per_user(alice, settings):
    settings.PWEXPIRE_POLICY = "tests.testapp.policies.strict"
    policy_for = conf.policy
    assert policy_for is not None and policy_for(alice).policy.max_age is not None
    assert conf.policy_key == "tests.testapp.policies.strict"


def test_a_rolled_back_user_leaves_no_record():
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        get_user_model().objects.create_user("ghost", password=OLD)
        raise ZeroDivisionError
    assert not PasswordRecord.objects.exists()


def test_a_hand_set_flag_outlives_a_login(alice, client):
    client.force_login(alice)
    store_session(client, password_expired=True)
    client.post("/accounts/login/", {"username": "alice", "password": OLD})
    assert is_held(client)


def test_a_login_that_could_not_be_judged_is_judged_at_its_next_request(alice, client):
    services.end_sessions(alice)
    assert client.get("/").content == b"anonymous"
    feed.view(feed.scope())
    with mock.patch.object(receivers, "read_counter_and_state", side_effect=DOWN):
        client.force_login(alice)
    assert client.session["_pwexpire"]["n"] == 0 and client.session["_pwexpire"]["b"] > 0
    assert client.get("/").content == b"alice"
    services.expire_passwords(alice)
    with mock.patch.object(receivers, "read_counter_and_state", side_effect=DOWN):
        client.force_login(alice)
    assert client.get("/").status_code == 302


def test_a_refreshed_session_alone_is_no_change(alice, client):
    """The hash of a session may have more than the password in it, or a new algorithm."""
    client.force_login(alice)
    services.expire_passwords(alice)
    changed_at = PasswordRecord.objects.get(pk=alice.pk).changed_at
    with mock.patch.object(type(alice), "get_session_auth_hash", lambda self: "another"):
        with mock.patch.object(
            type(alice), "get_session_auth_fallback_hash", lambda self: iter(())
        ):
            session = client.session
            session["_auth_user_hash"] = "another"
            session.save()
            response = client.post("/exempt/sudo/", {"password": OLD})
            assert response.status_code == 200
            assert is_held(client)
    assert PasswordRecord.objects.get(pk=alice.pk).changed_at == changed_at


def test_the_same_password_is_no_change_without_a_policy(alice):
    changed_at = PasswordRecord.objects.get(pk=alice.pk).changed_at
    alice.set_password(OLD)
    alice.save()
    assert PasswordRecord.objects.get(pk=alice.pk).changed_at == changed_at


def test_what_is_written_to_another_database_is_no_change(alice):
    services.expire_passwords(alice)
    signal = {"raw": False, "update_fields": None}
    alice.set_password(NEW)
    receivers.before_user_saved(type(alice), alice, using="archive", **signal)
    receivers.after_user_saved(type(alice), alice, created=False, using="archive", **signal)
    assert services.password_status(alice).must_change


def test_a_copy_that_is_saved_elsewhere_without_a_new_password_asks_nothing(
    alice, django_assert_num_queries
):
    fresh = type(alice).objects.get(pk=alice.pk)
    signal = {"raw": False, "update_fields": None}
    with django_assert_num_queries(0):
        receivers.before_user_saved(type(alice), fresh, using="archive", **signal)
        receivers.after_user_saved(type(alice), fresh, created=False, using="archive", **signal)


def test_a_hash_of_an_algorithm_that_is_gone_is_no_failure(alice):
    services.expire_passwords(alice)
    feed.view(feed.scope())
    type(alice).objects.filter(pk=alice.pk).update(password="gone$1$salt$hash")
    alice.password = "md5$salt$hash"
    alice.save()
    assert services.password_status(alice).must_change

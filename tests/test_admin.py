from __future__ import annotations

import re
from datetime import datetime
from unittest import mock

import pytest
from django.contrib import admin, messages
from django.contrib.admin.models import LogEntry
from django.contrib.auth import get_user_model
from django.contrib.auth.admin import UserAdmin
from django.contrib.auth.models import Permission
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.db import DatabaseError, connection, transaction
from django.http import HttpResponse
from django.test import Client
from django.urls import path

from pwexpire import admin_actions, services
from pwexpire.admin import (
    PasswordExpiryUserAdminMixin,
    cancel_expiry_action,
    expire_passwords_action,
    extend_user_admin,
)
from pwexpire.models import ExpiryBatch
from pwexpire.responses import held_text
from pwexpire.services import selection, staging
from tests.factories import StaffFactory
from tests.support import NEW, change_password, session_of
from tests.test_laws import login
from tests.urls import urlpatterns

pytestmark = pytest.mark.django_db(transaction=True)
URL = "/admin/auth/user/"


@pytest.fixture
def office(client, root):
    client.force_login(root)
    return client


def act(client, action, users, **data):
    return client.post(
        URL, {"action": action, "_selected_action": [user.pk for user in users], **data}
    )


CONFIRMED = {"confirm": "yes", "reason": "compromised", "sessions": "flag", "note": "4711"}


def test_nothing_happens_without_confirmation(office, alice):
    page = act(office, "expire_passwords_action", [alice])
    assert page.status_code == 200 and page.context["preview"].users == 1
    assert b'name="confirm"' in page.content and not ExpiryBatch.objects.exists()
    again = act(office, "expire_passwords_action", [alice], confirm="yes", reason="whim")
    assert again.status_code == 200 and again.context["form"].errors
    assert not ExpiryBatch.objects.exists()


def test_expire(office, alice, root):
    done = act(office, "expire_passwords_action", [alice], **CONFIRMED)
    assert done.status_code == 302
    batch = ExpiryBatch.objects.get()
    assert (batch.reason, batch.note, batch.actor) == ("compromised", "4711", root)
    entry = LogEntry.objects.get(content_type__model="expirybatch")
    assert "1 password was expired." in entry.change_message and entry.object_id == str(batch.pk)
    assert b"1 password was expired." in office.get(URL).content


def test_keep_me_out(office, alice, root):
    act(office, "expire_passwords_action", [alice, root], keep_me_out="on", **CONFIRMED)
    assert services.password_status(alice).must_change
    assert not services.password_status(root).must_change


def test_select_all_across_pages(office, users):
    everybody = users(3)
    page = act(office, "expire_passwords_action", everybody[:1], select_across="1", index="0")
    assert page.context["preview"].users == 4 and page.context["select_across"] == "1"
    act(
        office,
        "expire_passwords_action",
        everybody[:1],
        select_across="1",
        index="0",
        keep_me_out="on",
        **CONFIRMED,
    )
    assert all(services.password_status(user).must_change for user in everybody)


def test_the_page_asks_the_same_number_of_statements_of_any_number_of_users(
    office, users, monkeypatch, count_queries
):
    monkeypatch.setattr(selection, "RANGE", 2)
    monkeypatch.setattr(admin_actions, "PREVIEWED_MAX", 4)
    everybody = users(6)
    asked = []
    for count in (5, 5, 6):  # what is read once a process is read by the first
        with count_queries() as seen:
            page = act(office, "expire_passwords_action", everybody[:count])
        asked.append(len(seen))
        assert page.context["preview"] is None and page.context["count"] == count
        assert f"{count} users selected" in page.content.decode()
        assert b"manage.py pwexpire preview" in page.content
    assert asked[1] == asked[2]
    page = act(office, "expire_passwords_action", everybody[:4])
    assert page.context["preview"].users == 4


def test_users_who_cannot_be_selected_in_time_are_not_expired_and_the_page_says_so(
    office, users, monkeypatch, capsys
):
    monkeypatch.setattr(selection, "CHUNK", 1)
    monkeypatch.setattr(selection, "RANGE", 1)
    monkeypatch.setattr(admin_actions, "REQUEST_SECONDS", 0)
    everybody = users(2)
    answer = act(office, "expire_passwords_action", everybody, **CONFIRMED)
    assert answer.status_code == 302
    batch = ExpiryBatch.objects.get()
    assert batch.state == "staging" and batch.number is None and batch.users_expired == 1
    assert not any(services.password_status(user).must_change for user in everybody)
    entry = LogEntry.objects.get(content_type__model="expirybatch")
    said = f"manage.py pwexpire resume {batch.pk}"
    assert entry.object_id == str(batch.pk) and said in entry.change_message
    page = office.get(URL).content.decode()
    assert "Nobody was expired" in page and said in page and "errornote" not in page
    names = [f"--user={user.username}" for user in everybody]
    call_command("pwexpire", "resume", str(batch.pk), *names)
    assert all(services.password_status(user).must_change for user in everybody)


@pytest.mark.parametrize("how", ["stopped", "cancelled"])
def test_a_batch_that_somebody_else_ends_while_it_selects_expired_nobody(
    office, users, monkeypatch, how
):
    everybody, real = users(2), staging._stage_chunk
    end = services.stop_expiry if how == "stopped" else services.cancel_expiry

    def end_first(batch, *args):
        end(ExpiryBatch.objects.get(pk=batch.pk))
        return real(batch, *args)

    monkeypatch.setattr(staging, "_stage_chunk", end_first)
    act(office, "expire_passwords_action", everybody, **CONFIRMED)
    batch = ExpiryBatch.objects.get()
    assert batch.state == how and batch.number is None
    page = office.get(URL).content.decode()
    said = f"Nobody was expired: batch {batch.pk} was {how} meanwhile."
    assert said in page and "expired. Already" not in page
    assert said in LogEntry.objects.get(content_type__model="expirybatch").change_message


def test_sessions_that_cannot_be_reached_in_time_are_held_and_left_to_the_command(
    office, server, alice, bob, monkeypatch, capsys
):
    browser = login(server, alice)
    monkeypatch.setattr(admin_actions, "REQUEST_SECONDS", 0)
    monkeypatch.setattr(selection, "RANGE", 10)
    act(office, "expire_passwords_action", [alice, bob], **CONFIRMED)
    batch = ExpiryBatch.objects.get()
    assert batch.state == "active" and batch.number is not None and batch.sessions_flagged == 0
    assert "password_expired" not in session_of(browser)
    said = f"manage.py pwexpire resume {batch.pk}"
    assert said in office.get(URL).content.decode()
    assert said in LogEntry.objects.get(content_type__model="expirybatch").change_message
    call_command("pwexpire", "resume", str(batch.pk))
    assert session_of(browser)["password_expired"] is True
    assert ExpiryBatch.objects.get().state == "done"


def test_cancel(office, alice):
    services.expire_passwords(alice)
    assert act(office, "cancel_expiry_action", [alice]).status_code == 200
    act(office, "cancel_expiry_action", [alice], confirm="yes", note="all clear")
    assert not services.password_status(alice).must_change
    assert "all clear" in LogEntry.objects.get().change_message


def test_the_permission_is_needed(client, alice):
    clerk = StaffFactory(username="clerk")
    clerk.user_permissions.add(*Permission.objects.filter(codename__in=["view_user"]))
    client.force_login(clerk)
    assert b"expire_passwords_action" not in client.get(URL).content
    act(client, "expire_passwords_action", [alice], **CONFIRMED)
    assert not ExpiryBatch.objects.exists()
    clerk.user_permissions.add(Permission.objects.get(codename="expire_passwords"))
    assert b"expire_passwords_action" in client.get(URL).content


class Stock(UserAdmin):
    actions = [expire_passwords_action, cancel_expiry_action]


@pytest.mark.parametrize("action", ["expire_passwords_action", "cancel_expiry_action"])
def test_the_stock_admin_refuses_without_the_permission(client, settings, alice, action):
    site = admin.AdminSite()
    site.register(get_user_model(), Stock)
    assert site.get_model_admin(get_user_model()).check() == []
    settings.ROOT_URLCONF = (path("admin/", site.urls),)
    clerk = StaffFactory(username="clerk")
    clerk.user_permissions.add(Permission.objects.get(codename="view_user"))
    client.force_login(clerk)
    assert act(client, action, [alice], **CONFIRMED).status_code == 403
    assert not ExpiryBatch.objects.exists() and not LogEntry.objects.exists()
    clerk.user_permissions.add(Permission.objects.get(codename="expire_passwords"))
    assert act(client, action, [alice]).status_code == 200


def test_a_popup_and_a_site_without_actions_offer_none(office, settings, alice):
    assert b"expire_passwords_action" not in office.get(URL, {"_popup": "1"}).content
    site = admin.AdminSite()
    site.register(get_user_model(), type("Bare", (UserAdmin,), {"actions": None}))
    extend_user_admin(site)
    settings.ROOT_URLCONF = (path("admin/", site.urls),)
    page = office.get(URL)
    assert page.status_code == 200 and b"expire_passwords_action" not in page.content


def test_the_list_filter(office, alice, bob, eve, root):
    services.expire_passwords(alice)
    eve.set_unusable_password()
    eve.save()

    def names(value):
        page = office.get(URL, {"expiry": value} if value else {})
        return {user.username for user in page.context["cl"].queryset}

    assert names("yes") == {"alice"} and names("no") == {"bob", "eve", "root"}
    everyone = services.expire_everyone(exclude=root)
    assert names("yes") == {"alice", "bob"}
    assert names("") == {"alice", "bob", "eve", "root"}
    bob.set_password(NEW)
    bob.save()
    assert names("yes") == {"alice"}
    with transaction.atomic():
        services.expire_passwords(bob)
        assert names("yes") == {"alice"}  # not in force yet
    assert names("yes") == {"alice", "bob"}
    services.cancel_expiry(ExpiryBatch.objects.latest("number"))
    services.cancel_expiry(ExpiryBatch.objects.earliest("number"))
    assert names("yes") == {"alice"}
    services.cancel_expiry(everyone)
    assert names("yes") == set()


def test_inside_a_request_transaction_it_is_pending(office, alice, monkeypatch):
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)
    act(office, "expire_passwords_action", [alice], **CONFIRMED)
    assert services.password_status(alice).must_change
    assert b"when this request is finished" in office.get(URL).content


def test_batches_are_read_only(office, alice):
    batch = services.expire_passwords(alice)
    assert office.get("/admin/pwexpire/expirybatch/").status_code == 200
    assert office.get("/admin/pwexpire/expirybatch/add/").status_code == 403
    assert office.post(f"/admin/pwexpire/expirybatch/{batch.pk}/delete/").status_code == 403
    assert office.post(f"/admin/pwexpire/expirybatch/{batch.pk}/change/").status_code == 403


def test_a_site_without_users_is_told():
    extend_user_admin()  # twice is once
    with pytest.raises(ImproperlyConfigured, match="register it first"):
        extend_user_admin(admin.AdminSite())
    site = admin.AdminSite("second")
    site.register(get_user_model(), UserAdmin)
    extend_user_admin(site)
    assert isinstance(site.get_model_admin(get_user_model()), PasswordExpiryUserAdminMixin)


def test_sessions_are_counted_where_they_can_be(client, settings, alice, root):
    Client().force_login(alice)
    client.force_login(root)
    page = act(client, "expire_passwords_action", [alice])
    assert page.context["preview"].sessions == 1
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
    other = Client()
    other.force_login(root)
    page = act(other, "expire_passwords_action", [alice])
    assert page.context["preview"].sessions is None and b"cannot be counted" in page.content


def test_sessions_can_be_ended(office, alice, bob):
    Client().force_login(alice)
    act(office, "expire_passwords_action", [alice], **{**CONFIRMED, "sessions": "end"})
    assert b"sessions ended: 1." in office.get(URL).content
    bob.set_unusable_password()
    bob.save()
    act(office, "expire_passwords_action", [alice, bob], **CONFIRMED)
    told = office.get(URL).content
    assert b"0 passwords were expired. Already expired: 1, not applicable: 1" in told


def test_a_reason_of_the_site_takes_the_place_of_ours(office, alice, settings):
    settings.PWEXPIRE_REASONS = {"merger": "the merger", "incident": "what happened"}
    page = act(office, "expire_passwords_action", [alice])
    choices = dict(page.context["form"].fields["reason"].choices)
    assert choices["merger"] == "the merger" and choices["incident"] == "what happened"
    assert page.content.count(b'value="incident"') == 1


def test_the_page_sends_back_what_was_selected(office, users):
    everybody = users(3)
    page = act(office, "expire_passwords_action", everybody[:2], select_across="1", index="0")
    hidden = re.findall(r'type="hidden" name="(\w+)" value="(\w*)"', page.content.decode())
    sent = {name: [v for n, v in hidden if n == name] for name, _ in hidden}
    assert sent["_selected_action"] == [str(user.pk) for user in everybody[:2]]
    office.post(URL, {**sent, **CONFIRMED})
    assert services.password_status(everybody[2]).must_change


def test_what_is_demanded_can_be_chosen(office, alice, root, settings):
    assert b'value="reset"' not in act(office, "expire_passwords_action", [alice]).content
    wrong = {**CONFIRMED, "require": "warn", "sessions": "end"}
    page = act(office, "expire_passwords_action", [alice], **wrong)
    assert b"A warning ends no sessions." in page.content and not ExpiryBatch.objects.exists()
    settings.AUTHENTICATION_BACKENDS = ["pwexpire.backends.PasswordExpiryBackend"]
    office.force_login(root)
    assert b'value="reset"' in act(office, "expire_passwords_action", [alice]).content
    act(office, "expire_passwords_action", [alice], **{**CONFIRMED, "require": "reset"})
    assert ExpiryBatch.objects.get().require == "reset"


@pytest.mark.parametrize("url", ["/admin/password_change/", "/accounts/password_change/"])
def test_a_held_administrator_reads_why(engine, server, root, url):
    browser = login(server, root)
    services.expire_passwords(root, reason="compromised")
    for page in (browser.get(url), change_password(browser, url=url, old="wrong")):
        said = page.content.decode()
        assert "can go on: the password may be known to others." in said
        assert re.search(r"This is so since [^<]* C[SD]T\.", said)
        assert "Enter your old password and a new one." in said
    assert said.count("can go on") == 1
    assert change_password(browser, url=url).status_code == 302
    assert "can go on" not in browser.get(url).content.decode()
    assert "can go on" not in browser.get("/admin/").content.decode()


def test_other_messages_are_shown_beside_it(client, root, settings):
    settings.ROOT_URLCONF = (path("message/", leave_message), *urlpatterns)
    client.force_login(root)
    client.get("/message/")
    services.expire_passwords(root)
    said = client.get("/admin/password_change/").content.decode()
    assert "Kept for you" in said and "can go on" in said
    assert "Kept for you" not in client.get("/admin/password_change/").content.decode()


def test_the_page_of_the_try_that_ended_the_session_says_nothing(client, root, settings):
    settings.PWEXPIRE_CHANGE_ATTEMPTS = 1
    client.force_login(root)
    services.expire_passwords(root)
    answer = client.post("/admin/password_change/", {"new_password1": NEW, "new_password2": NEW})
    assert answer.status_code == 200 and b"can go on" not in answer.content
    assert client.get("/").content == b"anonymous"


def test_who_is_held_by_hand_reads_what_to_do(client, root):
    client.force_login(root)
    session = client.session
    session["password_expired"] = True
    session.save()
    said = client.get("/admin/password_change/").content.decode()
    assert "before you can go on. Enter your old password and a new one." in said


def test_the_page_is_shown_though_the_reason_cannot_be_asked(client, root):
    client.force_login(root)
    services.expire_passwords(root)
    with mock.patch(
        "pwexpire.middleware.explaining.password_status", side_effect=DatabaseError("down")
    ):
        answer = client.get("/admin/password_change/")
    assert answer.status_code == 200 and b"can go on" not in answer.content


def test_a_time_without_a_zone_is_said_as_it_is():
    assert "since Nov. 25, 2026, 9 a.m. America/Chicago. Enter" in held_text(
        "", datetime(2026, 11, 25, 9)
    )


def leave_message(request):
    messages.info(request, "Kept for you")
    return HttpResponse("left")

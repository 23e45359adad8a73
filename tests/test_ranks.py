"""Nobody acts above their rank in the admin, and what was done or refused can be read."""

from __future__ import annotations

import re

import pytest
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.auth import get_user_model
from django.contrib.auth.admin import UserAdmin
from django.contrib.auth.models import Permission
from django.db import connection
from django.urls import path

from pwexpire import admin_log, services
from pwexpire.admin import PasswordExpiryUserAdminMixin, expire_passwords_action
from pwexpire.models import Cancellation, ExpiryBatch, Require
from tests.factories import StaffFactory

pytestmark = pytest.mark.django_db(transaction=True)
URL = "/admin/auth/user/"
CONFIRMED = {"confirm": "yes", "reason": "compromised", "sessions": "flag", "note": "4711"}
ACTIONS = ["expire_passwords_action", "cancel_expiry_action"]


def act(client, action, users, **data):
    return client.post(
        URL, {"action": action, "_selected_action": [user.pk for user in users], **data}
    )


def entries_of(user):
    entries = LogEntry.objects.filter(content_type__model="user", object_id=str(user.pk))
    return list(entries.order_by("pk").values_list("user__username", "change_message"))


def must_change(user):
    return services.password_status(user).must_change


@pytest.fixture
def office(client, root):
    client.force_login(root)
    return client


@pytest.fixture
def clerk():
    clerk = StaffFactory(username="clerk")
    codes = ["expire_passwords", "view_user"]
    clerk.user_permissions.add(*Permission.objects.filter(codename__in=codes))
    return clerk


@pytest.fixture
def desk(client, clerk):
    client.force_login(clerk)
    return client


@pytest.fixture
def refusing(settings):
    settings.AUTHENTICATION_BACKENDS = [
        "pwexpire.backends.PasswordExpiryBackend",
        *settings.AUTHENTICATION_BACKENDS[1:],
    ]


def test_a_clerk_expires_no_superuser(desk, alice, root, clerk):
    page = act(desk, "expire_passwords_action", [alice, root])
    assert page.context["preview"].users == 1 and b"do this to them: root" in page.content
    done = act(desk, "expire_passwords_action", [alice, root], **CONFIRMED)
    assert done.status_code == 302 and must_change(alice) and not must_change(root)
    assert b"Skipped, because you may not do this to them: root." in desk.get(URL).content
    assert entries_of(root) == [("clerk", "expiry refused 4711")]
    (entry,) = entries_of(alice)
    assert entry[0] == "clerk" and "1 password was expired." in entry[1] and "4711" in entry[1]
    refused = Cancellation.objects.get()
    assert (refused.kind, refused.user, refused.actor) == ("expiry_refused", root, clerk)


def test_a_clerk_cancels_no_superusers_expiry(desk, alice, root):
    services.expire_passwords([alice, root])
    act(desk, "cancel_expiry_action", [alice, root], confirm="yes", note="n")
    assert must_change(root) and not must_change(alice)
    assert entries_of(root) == [("clerk", "cancellation refused n")]
    assert entries_of(alice)[0][1].endswith("does not have to change the password any more. n")
    assert Cancellation.objects.get(user=root).kind == "cancel_refused"


@pytest.mark.parametrize("action", ACTIONS)
def test_where_all_are_refused_nothing_is_done(desk, root, action):
    batches = ExpiryBatch.objects.count()
    act(desk, action, [root], **CONFIRMED)
    assert ExpiryBatch.objects.count() == batches and not must_change(root)
    assert len(entries_of(root)) == 1 and b"Skipped" in desk.get(URL).content


@pytest.mark.parametrize("who", ["root", "clerk"])
def test_nobody_cancels_a_demand_on_themselves(client, root, clerk, alice, who):
    user = {"root": root, "clerk": clerk}[who]
    client.force_login(user)
    services.expire_passwords([user, alice], require=Require.WARN)
    act(client, "cancel_expiry_action", [user, alice], confirm="yes", note="")
    assert services.password_status(user).warn and not services.password_status(alice).warn
    assert entries_of(user) == [(who, "cancellation refused")]


def test_a_superuser_expires_a_superuser(office, clerk):
    other = StaffFactory(username="other", is_superuser=True)
    act(office, "expire_passwords_action", [other], **CONFIRMED)
    assert must_change(other) and not Cancellation.objects.exists()


def test_the_actions_alone_keep_to_the_rule_as_well(desk, settings, alice, root):
    site = admin.AdminSite()
    site.register(
        get_user_model(), type("Stock", (UserAdmin,), {"actions": [expire_passwords_action]})
    )
    settings.ROOT_URLCONF = (path("admin/", site.urls),)
    act(desk, "expire_passwords_action", [alice, root], **CONFIRMED)
    assert must_change(alice) and not must_change(root)


def test_a_site_adds_ranks_of_its_own(office, settings, alice, bob, root):
    class Ranked(PasswordExpiryUserAdminMixin, UserAdmin):
        def get_expirable_users(self, request, users):
            return get_user_model().objects.exclude(username="bob")  # more than was selected

        def get_cancellable_users(self, request, users):
            return users.filter(username="bob")

    site = admin.AdminSite()
    site.register(get_user_model(), Ranked)
    settings.ROOT_URLCONF = (path("admin/", site.urls),)
    act(office, "expire_passwords_action", [alice, bob], **CONFIRMED)
    assert must_change(alice) and not must_change(bob) and not must_change(root)
    assert entries_of(bob) == [("root", "expiry refused 4711")]
    services.expire_passwords(bob)
    act(office, "cancel_expiry_action", [alice, bob], confirm="yes", note="")
    assert must_change(alice) and not must_change(bob)


def test_ten_skipped_users_are_named(desk, users):
    get_user_model().objects.filter(pk__in=[user.pk for user in users(12)]).update(
        is_superuser=True
    )
    skipped = list(get_user_model().objects.filter(is_superuser=True))
    words = act(desk, "expire_passwords_action", skipped).context["skipped"]
    assert words.count(",") == 9 and words.endswith("and 2 more")


def test_an_action_on_many_users_leaves_one_entry(office, users, monkeypatch):
    monkeypatch.setattr(admin_log, "LOGGED_MAX", 2)
    act(office, "expire_passwords_action", users(3), **CONFIRMED)
    assert LogEntry.objects.get().content_type.model == "expirybatch"
    act(office, "cancel_expiry_action", users(3), confirm="yes", note="all clear")
    assert "all clear" in LogEntry.objects.latest("pk").change_message
    assert LogEntry.objects.count() == 2


@pytest.mark.parametrize("chosen, action", [("no", ACTIONS[0]), ("yes", ACTIONS[1])])
def test_users_who_leave_the_filtered_list_are_logged_as_well(office, alice, chosen, action):
    if chosen == "yes":
        services.expire_passwords(alice)
    data = {"action": action, "_selected_action": [alice.pk], **CONFIRMED}
    assert office.post(f"{URL}?expiry={chosen}", data).status_code == 302
    assert must_change(alice) == (chosen == "no")
    assert len(entries_of(alice)) == 1


def test_the_log_names_no_user_who_could_be_erased(office, alice):
    act(office, "expire_passwords_action", [alice], **CONFIRMED)
    texts = LogEntry.objects.values_list("object_repr", "change_message")
    assert not re.search("alice", str(list(texts)))


def test_the_page_says_if_you_or_the_last_superuser_are_selected(office, alice, root):
    words = [b"You are one of them", b"The last active superuser is one of them"]
    page = act(office, "expire_passwords_action", [alice, root])
    assert b"2 users selected" in page.content
    assert [word in page.content for word in words] == [True, True]
    StaffFactory(username="other", is_superuser=True)
    page = act(office, "expire_passwords_action", [alice, root])
    assert [word in page.content for word in words] == [True, False]
    page = act(office, "expire_passwords_action", [alice])
    assert not any(word in page.content for word in words)


@pytest.mark.parametrize("require", ["reset", "deny"])
def test_an_administrator_does_not_lock_themselves_out_by_mistake(
    refusing, office, alice, root, require
):
    data = {**CONFIRMED, "require": require}
    page = act(office, "expire_passwords_action", [alice, root], **data)
    errors = page.context["form"].errors["force"]
    assert len(errors) == 2 and "locks you out" in errors[0] and "last active" in errors[1]
    assert not ExpiryBatch.objects.exists() and not LogEntry.objects.exists()
    act(office, "expire_passwords_action", [alice, root], keep_me_out="on", **data)
    assert must_change(alice) and not must_change(root)
    act(office, "expire_passwords_action", [alice, root], force="on", **data)
    assert must_change(root)


def test_a_superuser_without_a_password_keeps_their_way_in(refusing, office, root):
    other = StaffFactory(username="other", is_superuser=True)
    other.set_unusable_password()
    other.save()
    data = {**CONFIRMED, "require": "deny"}
    page = act(office, "expire_passwords_action", [root, other], **data)
    (error,) = page.context["form"].errors["force"]
    assert "locks you out" in error
    act(office, "expire_passwords_action", [root, other], force="on", **data)
    assert must_change(root) and not must_change(other)


def test_warned_users_are_not_called_expired(office, alice, bob, root, monkeypatch):
    act(office, "expire_passwords_action", [alice], **{**CONFIRMED, "require": "warn"})
    content = office.get(URL).content
    assert b"1 user was warned." in content and b"was expired" not in content
    services.expire_passwords(bob)
    services.expire_passwords(bob, require=Require.WARN)

    def names(value):
        queryset = office.get(URL, {"expiry": value}).context["cl"].queryset
        return {user.username for user in queryset}

    assert names("warned") == {"alice"} and names("yes") == {"bob"}
    assert names("no") == {"alice", "root"}
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)
    act(office, "expire_passwords_action", [root], **{**CONFIRMED, "require": "warn"})
    assert b"The users are warned when this request is finished" in office.get(URL).content

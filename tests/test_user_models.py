"""User models with other primary keys, without the usual fields, with a manager that hides some.

Each needs a process with settings of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from django.contrib.auth import get_user_model
from django.utils import timezone

from pwexpire import services
from pwexpire.models import PasswordRecord
from pwexpire.policy import Policy
from pwexpire.services.demands import usable_password
from pwexpire.services.password_state import has_password

ROOT = Path(__file__).resolve().parent.parent
STORY = """
import django
django.setup()
from django.core.management import call_command
from django.contrib.auth import get_user_model
from django.db import connection
from django.test import Client
from pwexpire import services
from pwexpire.services import demand_filters
call_command("migrate", verbosity=0, run_syncdb=True)
User = get_user_model()
keys = [dict(code=c) if User._meta.pk.name == "code" else {} for c in ("a/ b", "B")]
alice = User.objects.create_user("alice@example.com", "old-Password-1", **keys[0])
bob = User.objects.create_user("bob@example.com", "old-Password-1", hidden=True, **keys[1])
def log_in(user):
    browser = Client()
    form = {"username": user.email, "password": "old-Password-1"}
    assert browser.post("/accounts/login/", form).status_code == 302 or user is bob
    return browser
def lose_flag(browser):
    session = browser.session
    del session["password_expired"], session["_password_expired_demand"]
    session.save()
browser = log_in(alice)
assert browser.get("/").status_code == 200
assert services.expire_passwords(User._base_manager.all()).users_expired == 2
assert browser.session["password_expired"] is True
lose_flag(browser)
assert browser.get("/").status_code == 302
done = browser.post("/account/password-change/", {"old_password": "old-Password-1",
    "new_password1": "new-Password-2", "new_password2": "new-Password-2"})
assert done.status_code == 302 and browser.get("/").status_code == 200
assert services.password_status(bob).must_change
services.expire_everyone(exclude=bob)
assert browser.get("/").status_code == 302
assert services.cancel_expiry([alice, bob]) == 2
assert browser.get("/").status_code == 200
demand_filters.FILTER_FROM = 1
services.expire_passwords(User._base_manager.all())
lose_flag(browser)
assert browser.get("/").status_code == 302
assert services.cancel_expiry([alice, bob]) == 2
assert browser.get("/").status_code == 200
call_command("pwexpire", "check")
call_command("pwexpire", "expire", "--user", "alice@example.com", "--changed-before", "0d")
call_command("pwexpire", "sessions")
print("held and released")
"""


@pytest.mark.parametrize("model", ["uuid", "named", "prefixed"])
def test_the_story_of_another_user_model(model):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", STORY],
        cwd=ROOT,
        env={
            **os.environ,
            "DJANGO_SETTINGS_MODULE": f"tests.settings_{model}",
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("held and released\n")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("stored", ["", "*", "!unusable"])
def test_who_has_no_password_that_could_be_right_is_not_held(client, users, settings, stored):
    settings.PWEXPIRE_POLICY = Policy(max_age=timedelta(days=90))
    alice, bob = users(2)
    model = get_user_model()
    model.objects.filter(pk=alice.pk).update(password=stored)
    alice.refresh_from_db()
    client.force_login(alice)
    assert services.preview_expiry(model.objects.all()).not_applicable == 1
    batch = services.expire_passwords(model.objects.all())
    assert (batch.users_expired, batch.users_not_applicable) == (1, 1)
    assert not services.password_status(alice).must_change
    assert not has_password(alice) and has_password(bob)
    assert list(model.objects.filter(usable_password())) == [bob]
    session = client.session
    session["password_expired"] = True
    session.save()
    assert client.get("/plain/").status_code == 200
    PasswordRecord.objects.update(changed_at=timezone.now() - timedelta(days=100))
    assert client.get("/plain/").status_code == 200


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("stored", ["unknown$1$salt$hash", "{SSHA}hash"])
def test_who_has_a_hash_that_no_hasher_knows_is_held_and_can_be_sent_a_link(
    client, alice, mailoutbox, stored
):
    get_user_model().objects.filter(pk=alice.pk).update(password=stored, email="a@example.com")
    alice.refresh_from_db()
    client.force_login(alice)
    services.expire_passwords(alice)
    assert client.get("/plain/").status_code == 302
    page = client.get("/account/password-change/")
    assert b'href="/accounts/password_reset/"' in page.content
    client.post("/accounts/password_reset/", {"email": "a@example.com"})
    assert len(mailoutbox) == 1

"""The way out in a site whose pages are other packages', in a process with settings of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("allauth", "djoser", "django_otp", "mozilla_django_oidc", "two_factor", "wagtail")
MISSING = [name for name in PACKAGES if find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")

SITE = """
import django
django.setup()
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.test import Client
from django.urls import reverse
from django.test.utils import setup_test_environment
from pwexpire import services
setup_test_environment()
call_command("migrate", verbosity=0)
OLD, NEW = "old-Password-1", "new-Password-2"
MODEL = "django.contrib.auth.backends.ModelBackend"
user = get_user_model().objects.create_superuser("alice", "alice@example.com", OLD)

def held_browser():
    browser = Client()
    browser.force_login(user, backend=MODEL)
    services.expire_passwords(user)
    assert browser.get("/").status_code == 302
    return browser

def is_held(answer):
    return answer.status_code in (302, 303) and "/account/password-change/" in answer["Location"]
"""

REACHABLE = [
    "account_logout",
    "account_change_password",
    "account_reset_password",
    "account_reset_password_done",
    "account_reset_password_from_key_done",
    "wagtailadmin_logout",
    "wagtailadmin_password_reset",
    "wagtailadmin_password_reset_done",
    "wagtailadmin_password_reset_complete",
    "two_factor:login",
    "two_factor:setup",
    "two_factor:setup_complete",
    "two_factor:qr",
    "oidc_logout",
    "oidc_authentication_init",
    "oidc_authentication_callback",
    "user-set-password",
    "user-reset-password",
    "user-reset-password-confirm",
    "pwexpire:logout",
]
HELD = [
    "home",
    "logout",
    "account_email",
    "account_reauthenticate",
    "wagtailadmin_home",
    "wagtailadmin_account",
    "two_factor:profile",
    "two_factor:disable",
    "two_factor:backup_tokens",
    "user-list",
    "user-me",
    "user-set-username",
    "admin:index",
]
STORIES = {
    "views": f"""
from django.urls import resolve
from pwexpire.exemptions import is_exempt
for names, wanted in (({REACHABLE!r}, True), ({HELD!r}, False)):
    for name in names:
        match = resolve(reverse(name))
        assert is_exempt(match.func, match) is wanted, name
for name in {HELD!r}:
    assert is_held(browser.get(reverse(name))) or name == "admin:index", name
for name in {[name for name in REACHABLE if not name.startswith("oidc")]!r}:
    assert not is_held(browser.options(reverse(name))), name
""",
    "the log-out button is that of allauth": """
page = browser.get("/account/password-change/").content.decode()
assert 'action="/accounts/logout/"' in page
browser.post("/accounts/logout/")
assert "_auth_user_id" not in browser.session
""",
    "the change page of allauth": """
from django.test import override_settings
with override_settings(PWEXPIRE_CHANGE_URL="account_change_password"):
    assert browser.get("/")["Location"].startswith("/accounts/password/change/")
    assert browser.get("/accounts/password/change/").status_code == 200
    data = {"oldpassword": OLD, "password1": NEW, "password2": NEW}
    assert browser.post("/accounts/password/change/", data).status_code == 302
    assert browser.get("/").content == b"alice"
""",
    "the change endpoint of djoser": """
data = {"current_password": OLD, "new_password": NEW}
answer = browser.post("/api/users/set_password/", data, content_type="application/json")
assert answer.status_code == 204, answer.content
assert not services.password_status(user).must_change
""",
    "wrong present passwords": """
from django.test import override_settings
from pwexpire.models import PasswordRecord
NEW_ONE = {"new_password": NEW, "new_username": "alicia"}
ALLAUTH = {"password1": NEW, "password2": NEW}
WAGTAIL = {"password-new_password1": NEW, "password-new_password2": NEW}
PLACES = [
    ("/api/users/set_password/", "current_password", NEW_ONE, "application/json"),
    ("/api/users/set_username/", "current_password", NEW_ONE, "application/json"),
    ("/accounts/password/change/", "oldpassword", ALLAUTH, None),
    ("/cms/account/", "password-old_password", WAGTAIL, None),
]
record = PasswordRecord.objects.filter(pk=user.pk)
for address, field, sent, kind in PLACES:
    for held in (True, False):
        if held and "set_username" in address or held and "cms" in address:
            continue
        record.update(failed_changes=0)
        services.cancel_expiry(user)
        browser = held_browser() if held else Client()
        browser.force_login(user, backend=MODEL)
        typed = {"content_type": kind} if kind else {}
        with override_settings(PWEXPIRE_CHANGE_ATTEMPTS=3):
            for number in (1, 2):
                answer = browser.post(address, {field: "wrong", **sent}, **typed)
                assert answer.status_code in (200, 400), (address, answer.status_code)
                assert record.get().failed_changes == number, address
            answer = browser.post(address, {field: OLD, **sent}, **typed)
            if "cms" in address:  # the other parts of the form are missing
                assert record.get().failed_changes == 2
            elif "set_username" not in address:
                assert answer.status_code in (204, 302), (address, answer.content)
                user.set_password(OLD)
                user.save()
            record.update(failed_changes=3)
            browser = Client()
            browser.force_login(user, backend=MODEL)
            record.update(failed_changes=3)
            answer = browser.post(address, {field: OLD, **sent}, **typed)
            assert answer.status_code == (403 if kind else 303), (address, answer.status_code)
            assert "_auth_user_id" not in browser.session
get_user_model().objects.update(username="alice")
user.refresh_from_db()
""",
    "the reset of djoser is no try": """
browser.post("/api/users/reset_password/", {"email": "x"}, content_type="application/json")
browser.post("/api/users/set_password/", {"new_password": NEW}, content_type="application/json")
assert PasswordRecord.objects.get(pk=user.pk).failed_changes == 1
""",
    "the reset of allauth": """
from django.core import mail
browser.post("/accounts/password/reset/", {"email": user.email})
assert len(mail.outbox) == 1
from pwexpire.pages import find_reset_url
assert find_reset_url() == "/accounts/password/reset/"
""",
    "a backend that checks passwords beside ours": """
from pwexpire.conf import conf
from django.test import override_settings
ALLAUTH = "allauth.account.auth_backends.AuthenticationBackend"
OURS = "pwexpire.backends.PasswordExpiryBackend"
with override_settings(AUTHENTICATION_BACKENDS=[OURS, ALLAUTH]):
    assert conf.lax_backends == [ALLAUTH] and not conf.refuses_logins
""",
    "the checks and the command": """
from pwexpire import checks
found = [one for check in checks.ALL for one in check(None)]
assert [one.id for one in found if one.id not in ("pwexpire.W013",)] == [], found
call_command("pwexpire", "check")
""",
    "wagtail's log-out": """
browser.post("/cms/logout/")
assert "_auth_user_id" not in browser.session
""",
}


def test_the_way_out_of_a_site_of_packages():
    script = [SITE]
    for name, story in STORIES.items():
        script.append(f"print({name!r}, flush=True)\nuser.set_password(OLD)\nuser.save()")
        script.append(f"browser = held_browser()\n{story}")
    done = subprocess.run(
        [sys.executable, "-c", "\n".join([*script, "print('done')"])],
        cwd=ROOT,
        env={
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "tests.settings_packages",
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout.endswith("done\n")

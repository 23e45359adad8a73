"""Somebody acts as another user: held is who really sits there, by real packages and by a hook."""

from __future__ import annotations

from datetime import timedelta
from importlib.util import find_spec

import pytest
from django.contrib.auth.models import AnonymousUser
from django.core.signing import TimestampSigner
from django.utils import timezone

from pwexpire import services
from pwexpire.middleware import PasswordExpiryMiddleware
from pwexpire.middleware.tries import is_change_of_password
from pwexpire.models import PasswordRecord
from pwexpire.policy import Policy
from tests.factories import StaffFactory
from tests.support import NEW, OLD, change_password, is_held, session_of, store_session

pytestmark = pytest.mark.django_db(transaction=True)
OURS = "pwexpire.middleware.PasswordExpiryMiddleware"
IMPERSONATE = "impersonate.middleware.ImpersonateMiddleware"
CHANGE_PAGES = [
    "/account/password-change/",
    "/accounts/password_change/",
    "/admin/password_change/",
]
HOW = {
    "hijack": lambda user: ("post", "/hijack/acquire/", {"user_pk": user.pk}),
    "loginas": lambda user: ("post", f"/loginas/login/user/{user.pk}/", {}),
    "impersonate-before": lambda user: ("get", f"/impersonate/{user.pk}/", {}),
    "impersonate-behind": lambda user: ("get", f"/impersonate/{user.pk}/", {}),
}
STOP = {
    "hijack": ("post", "/hijack/release/"),
    "loginas": ("get", "/loginas/logout/"),
    "impersonate-before": ("get", "/impersonate/stop/"),
    "impersonate-behind": ("get", "/impersonate/stop/"),
}


@pytest.fixture
def alice(db):
    return StaffFactory(username="alice")


@pytest.fixture(params=HOW)
def package(request, settings):
    name, _, place = request.param.partition("-")
    if find_spec(name) is None:
        pytest.skip(f"not installed: {name}")
    settings.ROOT_URLCONF = "tests.urls_impersonation"
    settings.HIJACK_PERMISSION_CHECK = "hijack.permissions.superusers_only"
    if place:
        at = settings.MIDDLEWARE.index(OURS) + (place == "behind")
        settings.MIDDLEWARE = [*settings.MIDDLEWARE[:at], IMPERSONATE, *settings.MIDDLEWARE[at:]]
    return request.param


@pytest.fixture
def browser(engine, server, package, root, alice):
    """``root`` acts as ``alice``."""
    found = server()
    found.post("/accounts/login/", {"username": "root", "password": OLD})
    method, path, data = HOW[package](alice)
    assert getattr(found, method)(path, data).status_code == 302
    assert found.get("/").content == b"alice"
    return found


def stop(browser, package):
    method, path = STOP[package]
    getattr(browser, method)(path)
    return browser.get("/")


def test_who_acts_as_a_held_user_is_not_held(browser, package, alice, root):
    services.expire_passwords(alice)
    assert not is_held(browser) and not is_held(browser)
    services.expire_everyone(exclude=root)
    assert not is_held(browser)
    assert stop(browser, package).content == b"root"


def test_who_was_expired_before_they_acted_as_another_is_held(engine, server, alice, root):
    """A demand that came while they were about to: the new session was cleared for alice alone."""
    services.expire_passwords(root)
    browser = server()
    browser.post("/accounts/login/", {"username": "alice", "password": OLD})
    store_session(browser, hijack_history=[str(root.pk)])
    assert browser.get("/").content == b"anonymous"


def test_who_is_expired_is_held_whoever_they_act_as(browser, package, root):
    services.expire_passwords(root)
    if package.startswith("impersonate"):
        assert is_held(browser) and is_held(browser)
    else:  # in that session there is nothing that they could change
        assert browser.get("/").content == b"anonymous"


def test_an_end_of_their_sessions_ends_this_one(browser, root):
    services.end_sessions(root)
    assert browser.get("/").content == b"anonymous"


@pytest.mark.parametrize("page", CHANGE_PAGES)
def test_nobody_changes_the_password_of_whom_they_act_as(browser, package, alice, page):
    # Under /admin/ django-impersonate lets nobody act as another user.
    own = package.startswith("impersonate") and page.startswith("/admin/")
    assert change_password(browser, url=page).status_code == (302 if own else 403)
    alice.refresh_from_db()
    assert alice.check_password(OLD)
    assert PasswordRecord.objects.filter(pk=alice.pk, failed_changes__gt=0).count() == 0


@pytest.mark.parametrize("page", CHANGE_PAGES)
def test_afterwards_they_change_their_own(browser, package, root, page):
    assert stop(browser, package).content == b"root"
    assert change_password(browser, url=page).status_code == 302
    root.refresh_from_db()
    assert root.check_password(NEW)


@pytest.mark.parametrize("page", CHANGE_PAGES)
def test_who_is_held_changes_their_own_password(browser, package, root, alice, page):
    if not package.startswith("impersonate"):
        pytest.skip("the session is over")
    services.expire_passwords(root)
    assert is_held(browser)
    assert browser.get(page).status_code == 200
    assert change_password(browser, url=page).status_code == 302
    root.refresh_from_db()
    alice.refresh_from_db()
    assert root.check_password(NEW) and alice.check_password(OLD)
    assert not is_held(browser)
    assert browser.get("/").content == b"alice"


def test_to_act_as_a_user_takes_none_of_their_grace(engine, server, package, root, alice, settings):
    settings.PWEXPIRE_POLICY = Policy(max_age=timedelta(days=90), grace_logins=2)
    ago = timezone.now() - timedelta(days=91)
    PasswordRecord.objects.update_or_create(user=alice, defaults={"changed_at": ago})
    found = server()
    found.post("/accounts/login/", {"username": "root", "password": OLD})
    method, path, data = HOW[package](alice)
    getattr(found, method)(path, data)
    assert found.get("/").content == b"alice"
    assert PasswordRecord.objects.get(pk=alice.pk).grace_used == 0


# The hook.


class ByHeader(PasswordExpiryMiddleware):
    users = {}

    def real_user(self, request):
        name = request.headers.get("x-real")
        return super().real_user(request) if name is None else self.users[name]


@pytest.fixture
def hook(settings, alice, root):
    for user in (alice, root):
        ByHeader.users |= {user.username: user, f"pk:{user.username}": user.pk}
    ByHeader.users["nobody"] = AnonymousUser()
    path = "tests.test_impersonation.ByHeader"
    settings.MIDDLEWARE = [path if name == OURS else name for name in settings.MIDDLEWARE]


@pytest.fixture
def session(engine, server, hook, alice):
    found = server()
    found.post("/accounts/login/", {"username": "alice", "password": OLD})
    return found


def asks(browser, name, path="/"):
    return browser.get(path, headers={"x-real": name}).content


@pytest.mark.parametrize("name", ["root", "pk:root"])
def test_the_hook_says_of_whom_it_is_demanded(session, alice, root, name):
    services.expire_passwords(alice)
    assert asks(session, name) == b"alice"
    services.expire_passwords(root)
    assert asks(session, name) == b"anonymous"


@pytest.mark.parametrize("name", ["nobody", "alice", "pk:alice"])
def test_nobody_or_the_user_themselves_is_the_sessions_own(session, alice, name):
    services.expire_passwords(alice)
    assert asks(session, name) == b""
    assert is_held(session)


def test_the_hook_closes_the_change_page(session, alice):
    data = {"old_password": OLD, "new_password1": NEW, "new_password2": NEW}
    for page in CHANGE_PAGES:
        assert session.post(page, data, headers={"x-real": "root"}).status_code == 403
    alice.refresh_from_db()
    assert alice.check_password(OLD)


def test_a_real_user_who_is_gone_is_asked_nothing(engine, server, alice):
    browser = server()
    browser.post("/accounts/login/", {"username": "alice", "password": OLD})
    store_session(browser, hijack_history=["123456"])
    services.expire_passwords(alice)
    assert not is_held(browser)


@pytest.mark.parametrize(
    ("signed", "held"),
    [("right", False), ("1:forged:x", True), (["1"], True)],
)
def test_the_key_of_django_loginas_counts_if_it_is_signed(server, alice, root, signed, held):
    browser = server()
    browser.post("/accounts/login/", {"username": "alice", "password": OLD})
    key = TimestampSigner().sign(str(root.pk)) if signed == "right" else signed
    store_session(browser, loginas_from_user=key)
    services.expire_passwords(alice)
    assert is_held(browser) is held
    services.cancel_expiry(alice)
    # Nobody knows who it is, but it is somebody else.
    assert change_password(browser).status_code == 403


def test_the_session_of_nobody_else_costs_no_query_more(server, alice, count_queries, settings):
    settings.PWEXPIRE_POLL_SECONDS = 60
    browser = server()
    browser.post("/accounts/login/", {"username": "alice", "password": OLD})
    browser.get("/plain/")
    store_session(browser, hijack_history=["123456"])
    browser.get("/plain/")
    with count_queries() as queries:
        browser.get("/plain/")
    assert len(queries) == 1  # the session
    assert "password_expired" not in session_of(browser)


@pytest.mark.parametrize(
    ("sent", "changes"),
    [
        ({"name-first_name": "Alice"}, False),
        ({"name-first_name": "Alice", "password-old_password": ""}, False),
        ({"password-old_password": OLD}, True),
    ],
)
def test_a_page_for_more_than_the_password_is_closed_to_that_alone(rf, sent, changes):
    request = rf.post("/cms/account/", sent)
    request.resolver_match = None
    assert is_change_of_password(request, lambda request: None) is changes

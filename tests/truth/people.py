"""The states in which a user may be, and the ways to change a password, each as a site does it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from io import StringIO
from typing import Any
from unittest import mock

from django.contrib.auth import get_user_model
from django.contrib.auth.hashers import make_password
from django.contrib.auth.tokens import default_token_generator
from django.core.management import call_command
from django.test import Client, override_settings
from django.utils import timezone
from django.utils.encoding import force_bytes
from django.utils.http import urlsafe_base64_encode

from pwexpire import services
from pwexpire.models import ExpiryBatch, PasswordRecord
from pwexpire.policy import PRESETS, Policy
from pwexpire.services import Reason, Require
from tests.factories import UserFactory
from tests.support import NEW, OLD, change_password, store_session
from tests.truth import oracle
from tests.truth.oracle import Facts, Rules, Wanted

DAY = timedelta(days=1)
QUARTER = timedelta(days=90)
PASSWORD_CHANGE = "/accounts/password_change/"

# What is set, and what the oracle is told of it.
POLICIES: dict[str, tuple[Any, Rules]] = {
    "none": (None, Rules(Policy())),
    "nist": ("nist", Rules(PRESETS["nist"].policy)),
    "grace": (one := Policy(max_age=QUARTER, grace_logins=2), Rules(one)),
    "reset": (one := Policy(max_age=QUARTER, require="reset"), Rules(one)),
    "reset-grace": (
        one := Policy(max_age=QUARTER, require="reset", grace_logins=1),
        Rules(one),
    ),
    "deny": (one := Policy(max_age=QUARTER, require="deny"), Rules(one)),
    "warn": (one := Policy(max_age=QUARTER, require="warn", warn_before=7 * DAY), Rules(one)),
    "given": (
        one := Policy(
            change_on_first_use=True, change_after_admin_reset=True, temporary_for=3 * DAY
        ),
        Rules(one),
    ),
    "pci": ("pci-dss", Rules(PRESETS["pci-dss"].policy)),
    "pci-second": ("pci-dss", Rules(PRESETS["pci-dss"].policy, second_factor=True)),
}


@dataclass
class Person:
    """``facts``: what the oracle is told. ``undo``: what must not outlive the row."""

    user: Any
    facts: Facts
    by_hand: bool = False
    undo: Callable[[], Any] | None = None


# States. Each gets a user with a password of his own and an open session.


def nothing(person: Person, browser: Any) -> None:
    pass


def demanded(require: str, **options: Any) -> Callable[[Person, Any], None]:
    def make(person: Person, browser: Any) -> None:
        services.expire_passwords(person.user, require=require, **options)
        first_use = options.get("reason") == Reason.FIRST_USE
        person.facts.demands.append(Wanted(require, timezone.now(), first_use))

    return make


def expired_for_first_use(person: Person, browser: Any) -> None:
    batch = services.expire_passwords(person.user, reason=Reason.FIRST_USE)
    then = timezone.now() - 4 * DAY
    ExpiryBatch.objects.filter(pk=batch.pk).update(activated_at=then)
    person.facts.demands.append(Wanted("change", then, first_use=True))


def demanded_of_everyone(require: str) -> Callable[[Person, Any], None]:
    def make(person: Person, browser: Any) -> None:
        roots = get_user_model().objects.filter(is_superuser=True)
        batch = services.expire_everyone(require=require, exclude=roots)
        person.facts.demands.append(Wanted(require, timezone.now()))
        person.undo = lambda: services.cancel_expiry(batch)

    return make


def spared(person: Person, browser: Any) -> None:
    batch = services.expire_everyone(exclude=get_user_model().objects.all())
    person.undo = lambda: services.cancel_expiry(batch)


def cancelled(person: Person, browser: Any) -> None:
    services.expire_passwords(person.user)
    services.cancel_expiry(person.user)


def flagged(person: Person, browser: Any) -> None:
    store_session(browser, password_expired=True)
    person.by_hand = True


def aged(grace_used: int) -> Callable[[Person, Any], None]:
    def make(person: Person, browser: Any) -> None:
        person.facts.changed = timezone.now() - 91 * DAY
        person.facts.grace_used = grace_used
        PasswordRecord.objects.filter(pk=person.user.pk).update(
            changed_at=person.facts.changed, grace_used=grace_used
        )

    return make


def aged_again(person: Person, browser: Any) -> None:
    """The grace of the last time is no business of this one's."""
    aged(grace_used=99)(person, browser)
    services.record_password_change(person.user)
    person.facts.changed, person.facts.grace_used = timezone.now() - 91 * DAY, 0
    PasswordRecord.objects.filter(pk=person.user.pk).update(changed_at=person.facts.changed)


def given(days: int, *, new: bool) -> Callable[[Person, Any], None]:
    def make(person: Person, browser: Any) -> None:
        then = timezone.now() - days * DAY
        person.facts.changed = person.facts.given = then
        person.facts.given_new = new
        PasswordRecord.objects.filter(pk=person.user.pk).update(
            changed_at=then, renewed_at=None if new else then, given_at=then
        )

    return make


def both(*makers: Callable[[Person, Any], None]) -> Callable[[Person, Any], None]:
    def make(person: Person, browser: Any) -> None:
        for one in makers:
            one(person, browser)

    return make


STATES: dict[str, Callable[[Person, Any], None]] = {
    "nothing": nothing,
    "warned": demanded(Require.WARN),
    "demanded": demanded(Require.CHANGE),
    "reset": demanded(Require.RESET),
    "denied": demanded(Require.DENY),
    "first use demanded": expired_for_first_use,
    "everyone": demanded_of_everyone(Require.CHANGE),
    "everyone reset": demanded_of_everyone(Require.RESET),
    "everyone denied": demanded_of_everyone(Require.DENY),
    "everyone else": spared,
    "cancelled": cancelled,
    "flagged by hand": flagged,
    "aged": aged(grace_used=99),
    "aged with grace": aged(grace_used=0),
    "aged again": aged_again,
    "aged and demanded": both(aged(grace_used=0), demanded(Require.CHANGE)),
    "aged and denied": both(aged(grace_used=0), demanded(Require.DENY)),
    "created by others": given(0, new=True),
    "set by others": given(0, new=False),
    "temporary, over": given(4, new=True),
    "set by others, over": given(4, new=False),
    "given and aged": given(100, new=True),
    "imported": nothing,
}
# Whose password was chosen by somebody else when the row begins.
NEW_STATES = {"created by others", "temporary, over", "given and aged"}


def make_person(state: str) -> Person:
    now = timezone.now()
    if state == "imported":
        model = get_user_model()
        name = UserFactory.build().username
        model.objects.bulk_create([model(username=name, password=make_password(OLD))])
        user = model.objects.get(username=name)
        return Person(user, Facts(changed=now, given=user.date_joined, given_new=True))
    if state in NEW_STATES:
        return Person(UserFactory(), Facts(changed=now, given=now, given_new=True))
    if state.startswith("set by others"):
        user = UserFactory(password="zeroth-Password-0")
        user.set_password(OLD)
        user.save()
        return Person(user, Facts(changed=now, given=now))
    user = UserFactory()
    services.record_password_change(user)
    return Person(user, Facts(changed=now))


# Ways. Each says what it did: ``self`` or ``other`` for a real change, ``same``, ``login``, "".


@dataclass
class Scene:
    """``browser``: with the session from before. ``office``: of an administrator."""

    person: Person
    browser: Any
    office: Any
    new_browser: Callable[[], Any]


def by_our_page(scene: Scene) -> None:
    change_password(scene.browser)


def by_djangos_page(scene: Scene) -> None:
    change_password(scene.browser, url=PASSWORD_CHANGE)


def by_the_same_again(scene: Scene) -> None:
    change_password(scene.browser, new=OLD, url=PASSWORD_CHANGE)


def by_the_admin(scene: Scene) -> None:
    data = {"password1": NEW, "password2": NEW, "usable_password": "true"}
    url = f"/admin/auth/user/{scene.person.user.pk}/password/"
    assert scene.office.post(url, data).status_code == 302


def fetch(user: Any) -> Any:
    return get_user_model().objects.get(pk=user.pk)


def by_a_link(scene: Scene) -> None:
    user = fetch(scene.person.user)
    follow_link(scene.new_browser(), user, NEW)


def follow_link(browser: Any, user: Any, password: str) -> None:
    uid = urlsafe_base64_encode(force_bytes(user.pk))
    link = f"/accounts/reset/{uid}/{default_token_generator.make_token(user)}/"
    form = browser.get(link)
    data = {"new_password1": password, "new_password2": password}
    assert browser.post(form["Location"], data).status_code == 302


def by_command(scene: Scene) -> None:
    asking = "django.contrib.auth.management.commands.changepassword.Command._get_pass"
    with mock.patch(asking, return_value=NEW):
        call_command("changepassword", scene.person.user.username, stdout=StringIO())


def by_a_script(scene: Scene) -> None:
    user = fetch(scene.person.user)
    user.set_password(NEW)
    user.save()


def by_record(scene: Scene) -> None:
    user = scene.person.user
    get_user_model().objects.filter(pk=user.pk).update(password=make_password(NEW))
    services.record_password_change(fetch(user))


def by_an_upgrade(scene: Scene) -> None:
    """Not in the session from before: that one is over when the hash is another."""
    from django.conf import settings

    with override_settings(PASSWORD_HASHERS=settings.PASSWORD_HASHERS[::-1]):
        browser = scene.new_browser()
        post_login(browser, scene.person.user, OLD)


def by_another_login(scene: Scene) -> None:
    scene.browser.post("/accounts/logout/")
    scene.browser = scene.new_browser()
    post_login(scene.browser, scene.person.user, OLD)


def by_a_visit(scene: Scene) -> None:
    scene.browser.get("/account/password-change/")
    scene.browser.get("/accounts/password_reset/")


def post_login(browser: Any, user: Any, password: str) -> Any:
    data = {"username": user.username, "password": password}
    return browser.post("/accounts/login/", data)


@dataclass
class ChangedBy:
    """``needs``: the session from before. ``changes``: who chose the new password, if it is new.

    ``ends``: the session from before is over. ``logs_in``: with the old password.
    """

    go: Callable[[Scene], None]
    needs: bool = False
    changes: str = ""
    ends: bool = False
    logs_in: bool = False


WAYS: dict[str, ChangedBy] = {
    "our page": ChangedBy(by_our_page, needs=True, changes="self"),
    "django's page": ChangedBy(by_djangos_page, needs=True, changes="self"),
    "the same again": ChangedBy(by_the_same_again, needs=True),
    "the admin": ChangedBy(by_the_admin, changes="other", ends=True),
    "a link": ChangedBy(by_a_link, changes="self", ends=True),
    "changepassword": ChangedBy(by_command, changes="other", ends=True),
    "a script": ChangedBy(by_a_script, changes="other", ends=True),
    "update and record": ChangedBy(by_record, changes="self", ends=True),
    "an upgrade": ChangedBy(by_an_upgrade, ends=True, logs_in=True),
    "another login": ChangedBy(by_another_login, logs_in=True),
    "a visit": ChangedBy(by_a_visit),
}


def look(browser: Any) -> str:
    """What a browser meets with at an ordinary page."""
    response = browser.get("/")
    if response.status_code == 302:
        if response["Location"].startswith("/account/password-change/"):
            return "held"
        assert response["Location"] == "/accounts/password_reset/", response["Location"]
        return "out"
    if response.status_code == 403 or response.content == b"anonymous":
        return "out"
    assert response.status_code == 200, response.status_code
    return "free"


def try_login(browser: Any, user: Any, password: str) -> str:
    """``refused``, or what the session of the login meets with."""
    if isinstance(browser, Client):
        done = browser.login(username=user.username, password=password)
    else:
        done = post_login(browser, user, password).status_code == 302
    return look(browser) if done else "refused"


def enter(browser: Any, user: Any) -> None:
    """A session, without asking for the password."""
    client = Client()
    client.force_login(user, backend="pwexpire.backends.PasswordExpiryBackend")
    browser.cookies["sessionid"] = client.cookies["sessionid"].value


def promised_login(facts: Facts, rules: Rules) -> str:
    said = oracle.log_in(facts, rules, timezone.now())
    return "free" if said == "grace" else said

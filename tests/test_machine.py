"""A site played at random: whatever happens in whatever order, the laws hold."""

from __future__ import annotations

import itertools
from datetime import timedelta
from unittest import mock

import pytest
from django.conf import settings as django_settings
from django.contrib.auth import get_user_model
from django.contrib.auth.hashers import check_password
from django.contrib.auth.signals import user_logged_in
from django.db import connections
from django.test import Client, RequestFactory, override_settings
from django.utils import timezone
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pwexpire import services, testing
from pwexpire.feed import feed
from pwexpire.models import ExpiryBatch, PasswordRecord
from pwexpire.policy import Policy
from tests import servers
from tests.support import change_password, open_session, session_of, store_session

NAMES = ["alice", "bob", "eve"]
names = st.sampled_from(NAMES)
FORMS = ["/account/password-change/", "/accounts/password_change/"]
counter = itertools.count()


class Site(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        testing.reset()
        get_user_model().objects.all().delete()
        self.passwords = {}
        self.demanded = {name: set() for name in NAMES}  # primary keys of batches
        self.old = dict.fromkeys(NAMES, False)
        self.max_age = None
        self.policy = override_settings(PWEXPIRE_POLICY=None)
        self.policy.enable()
        self.browsers = []  # [owner, client, is the flag set by hand]
        self.impersonations = []  # (whom the session names, who sits there, client)
        self.copies = []
        self.carts = {}

    @initialize()
    def people(self):
        for name in NAMES:
            self.passwords[name] = self.fresh()
            get_user_model().objects.create_user(name, password=self.passwords[name])

    def teardown(self):
        self.policy.disable()

    def is_due(self, name):
        too_old = self.max_age is not None and self.old[name] and self.max_age < 40
        return bool(self.demanded[name] or too_old)

    def demand(self, batch, *expired):
        """An open demand stays as it is: a second batch takes nobody who has one."""
        for name in expired:
            if batch.everyone or not self.demanded[name]:
                self.demanded[name].add(batch.pk)

    def fresh(self):
        return f"Some-Password-{next(counter)}"

    def user(self, name):
        return get_user_model().objects.get(username=name)

    def browser(self, data, usable=True):
        return data.draw(st.sampled_from(self.browsers))

    @rule(name=names)
    def log_in(self, name):
        browser = Client()
        form = {"username": name, "password": self.passwords[name]}
        assert browser.post("/accounts/login/", form).status_code == 302
        self.browsers.append([name, browser, False])
        self.browsers = self.browsers[-6:]

    @rule(name=names, real=names)
    def act_as_another_user(self, name, real):
        """As django-hijack leaves the session: it names the other user."""
        browser = Client()
        form = {"username": name, "password": self.passwords[name]}
        assert browser.post("/accounts/login/", form).status_code == 302
        store_session(browser, hijack_history=[str(self.user(real).pk)])
        self.impersonations = [*self.impersonations, (name, real, browser)][-3:]

    @rule(name=names)
    def expire_one(self, name):
        self.demand(services.expire_passwords(self.user(name)), name)

    @rule(chosen=st.sets(names))
    def expire_many(self, chosen):
        users = get_user_model().objects.filter(username__in=chosen)
        self.demand(services.expire_passwords(users), *chosen)

    @rule(out=names)
    def expire_everyone(self, out):
        batch = services.expire_everyone(exclude=self.user(out))
        self.demand(batch, *(name for name in NAMES if name != out))

    @rule(name=names, skew=st.integers(-30, 30))
    def expire_from_a_server_with_another_clock(self, name, skew):
        moved = timezone.now() + timedelta(seconds=skew)
        with mock.patch("django.utils.timezone.now", return_value=moved):
            self.demand(services.expire_passwords(self.user(name)), name)

    @rule(name=names)
    def expire_in_another_process(self, name):
        with mock.patch.object(feed, "drop"):
            self.demand(services.expire_passwords(self.user(name)), name)

    @rule(name=names)
    def cancel(self, name):
        services.cancel_expiry(self.user(name))
        self.demanded[name] = set()

    @precondition(lambda self: any(self.demanded.values()))
    @rule(data=st.data())
    def cancel_a_batch(self, data):
        open_batches = sorted(set().union(*self.demanded.values()))
        batch = data.draw(st.sampled_from(open_batches))
        services.cancel_expiry(ExpiryBatch.objects.get(pk=batch))
        for batches in self.demanded.values():
            batches.discard(batch)

    @rule(grown_old=st.sets(names, min_size=2))
    def age(self, grown_old):
        """Their passwords become 40 days old; 30 are allowed."""
        for name in grown_old:
            record, _ = PasswordRecord.objects.get_or_create(user=self.user(name))
            record.changed_at = timezone.now() - timedelta(days=40)
            record.save()
            self.old[name] = True
        self.allow(30)

    @precondition(lambda self: self.max_age == 30)
    @rule(max_age=st.sampled_from([None, 60]))
    def correct_the_policy(self, max_age):
        self.allow(max_age)

    def allow(self, max_age):
        """A policy that never was before, so that sessions are asked about anew."""
        self.max_age = max_age
        self.policy.disable()
        policy = None
        if max_age is not None:
            policy = Policy(max_age=timedelta(days=max_age, seconds=next(counter)))
        self.policy = override_settings(PWEXPIRE_POLICY=policy)
        self.policy.enable()

    @rule(name=names)
    def change_by_save(self, name):
        self.passwords[name] = self.fresh()
        user = self.user(name)
        user.set_password(self.passwords[name])
        user.save()
        self.changed(name)

    @rule(name=names)
    def save_the_same_password(self, name):
        user = self.user(name)
        user.set_password(self.passwords[name])
        user.save()
        self.close(name)

    @rule(name=names)
    def upgrade_the_hasher(self, name):
        hashers = list(django_settings.PASSWORD_HASHERS)
        hashers.append(hashers.pop(0))
        with override_settings(PASSWORD_HASHERS=hashers):
            assert self.user(name).check_password(self.passwords[name])
        self.close(name)

    @rule(name=names)
    def save_to_another_database(self, name):
        user = self.user(name)
        user.set_password(self.fresh())
        with connections["archive"].cursor() as cursor:
            cursor.execute("DELETE FROM auth_user")
        user.save(using="archive")

    @precondition(lambda self: self.browsers)
    @rule(data=st.data())
    def refresh_the_hash_of_a_session(self, data):
        """The hasher is upgraded, and the session is told: the password is the same."""
        entry = self.browser(data)
        name, browser, _ = entry
        hashers = list(django_settings.PASSWORD_HASHERS)
        hashers.append(hashers.pop(0))
        with override_settings(PASSWORD_HASHERS=hashers):
            browser.post("/exempt/sudo/", {"password": self.passwords[name]})
        self.close(name, entry)

    @precondition(lambda self: self.browsers)
    @rule(data=st.data(), name=names)
    def log_in_by_token(self, data, name):
        """Somebody is logged in for one request, which comes with a session of somebody else."""
        owner, browser, _ = self.browser(data)
        if owner == name or "_auth_user_id" not in session_of(browser):
            return
        before = session_of(browser)
        request = RequestFactory().get("/")
        request.session = open_session(browser)
        user = self.user(name)
        user_logged_in.send(type(user), request=request, user=user)
        assert session_of(browser) == before and not request.session.modified

    @precondition(lambda self: self.browsers)
    @rule(
        data=st.data(),
        url=st.sampled_from(["/account/password-change/", "/accounts/password_change/"]),
    )
    def change_by_form(self, data, url):
        entry = self.browser(data)
        name, browser, _ = entry
        new = self.fresh()
        done = change_password(browser, old=self.passwords[name], new=new, url=url)
        if done.status_code == 302 and check_password(new, self.user(name).password):
            self.passwords[name] = new
            self.changed(name, keep=entry)
            entry[2] = False
            assert "password_expired" not in session_of(browser)

    @precondition(lambda self: self.browsers)
    @rule(data=st.data())
    def set_the_flag_by_hand(self, data):
        entry = self.browser(data)
        if "_auth_user_id" in session_of(entry[1]):
            store_session(entry[1], password_expired=True, _password_expired_demand=None)
            entry[2] = True

    @precondition(lambda self: self.browsers)
    @rule(data=st.data())
    def take_a_copy_of_a_session(self, data):
        entry = self.browser(data)
        if not entry[2]:
            session = open_session(entry[1])
            session.get("x")
            self.copies = [*self.copies, (entry, session)][-2:]

    @precondition(lambda self: self.copies)
    @rule()
    def save_a_stale_copy(self):
        from django.contrib.sessions.backends.base import UpdateError

        entry, session = self.copies.pop()
        if session.session_key != entry[1].cookies["sessionid"].value or entry[2]:
            return
        session["stale"] = True
        try:
            session.save()
        except UpdateError:
            return
        entry[1].cookies["sessionid"] = session.session_key

    @precondition(lambda self: self.browsers)
    @rule(data=st.data())
    def log_out(self, data):
        entry = self.browser(data)
        entry[1].post("/accounts/logout/")
        self.browsers.remove(entry)

    @precondition(lambda self: self.browsers)
    @rule(data=st.data())
    def fill_the_cart(self, data):
        name, browser, by_hand = self.browser(data)
        if "_auth_user_id" not in session_of(browser):
            return  # a login upgraded the hash, which ended the sessions with the one before
        before = session_of(browser).get("cart", [])
        browser.post("/cart/", {"item": "pen"})
        cart = session_of(browser).get("cart", [])
        if self.is_due(name) or by_hand:
            assert cart == before

    @rule(name=names)
    def end_sessions(self, name):
        services.end_sessions(self.user(name))
        self.close(name)

    def changed(self, name, keep=None):
        self.demanded[name] = set()
        self.old[name] = False
        self.close(name, keep)

    def close(self, name, keep=None):
        """The sessions whose password hash is another one, or that were ended."""
        self.browsers = [e for e in self.browsers if e[0] != name or e is keep]
        self.impersonations = [e for e in self.impersonations if name not in e[:2]]

    @invariant()
    def held_exactly_when_a_change_is_due(self):
        for name, browser, by_hand in self.browsers:
            response = browser.get("/")
            if response.status_code == 200 and response.content == b"anonymous":
                continue  # a copy that was saved over a newer session
            assert (response.status_code == 302) == (self.is_due(name) or by_hand), (name, by_hand)

    @invariant()
    def held_is_who_really_sits_there(self):
        for entry in list(self.impersonations):
            name, real, browser = entry
            response = browser.get("/")
            if self.is_due(real) and name != real:
                assert response.content == b"anonymous", (name, real)
                self.impersonations.remove(entry)
            elif self.is_due(real):
                assert response.status_code == 302, (name, real)
            else:
                assert response.content == name.encode(), (name, real)

    @invariant()
    def the_record_says_the_same(self):
        for name in self.passwords:
            assert services.password_status(self.user(name)).must_change is self.is_due(name)


@pytest.fixture
def archive(tmp_path):
    """A second database, with users of its own."""
    given = {**servers.database("sqlite"), "NAME": str(tmp_path / "archive.sqlite3")}
    configured = connections.configure_settings({"default": {}, "archive": given})
    connections.settings["archive"] = configured["archive"]
    connection = connections["archive"]
    # Django's test case allows the databases only that there were when it began.
    connection.ensure_connection = lambda: connection.connection or connection.connect()
    with connection.schema_editor() as editor:
        editor.create_model(get_user_model())
    yield
    connections["archive"].close()
    del connections["archive"]
    del connections.settings["archive"]


@pytest.mark.django_db(transaction=True)
def test_the_laws_hold_in_any_order(engine, archive):
    run_state_machine_as_test(
        Site,
        settings=settings(
            max_examples=12,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )

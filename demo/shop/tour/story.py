"""The story: what is done, and what has to come of it."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from django.conf import settings
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.core.management import call_command

from pwexpire.services import password_status
from shop.seed import password_of
from shop.tour.browser import Answer, Browser
from shop.tour.report import Report

FLAG = "password_expired"
ACTION = "Expire passwords of selected users"
WANTED = "/cart/?sort=name"
NEW_PASSWORD = "Tulips-in-March-2027"
LAST_PASSWORD = "Asters-in-October-2027"
CHANGING_HEADERS = ("date", "expires", "set-cookie")


@dataclass(frozen=True)
class Stored:
    """A session as it lies in the database."""

    content: dict[str, Any]
    expires: datetime


def stored(browser: Browser) -> Stored | None:
    row = Session.objects.filter(session_key=browser.session_key).first()
    return None if row is None else Stored(row.get_decoded(), row.expire_date)


class Story:
    def __init__(self, report: Report, url: str, url_without_hook: str, mails: Path) -> None:
        self.report = report
        self.mails = mails
        self.expect = report.expect
        self.alice = self.browser("alice, laptop", url)
        self.alice_phone = self.browser("alice, phone", url)
        self.bob = self.browser("bob, laptop", url)
        self.bob_phone = self.browser("bob, phone", url)
        self.admin = self.browser("admin", url)
        self.eve = self.browser("eve", url)
        self.eve_elsewhere = self.browser("eve, no hook", url_without_hook)
        self.bob_elsewhere = self.browser("bob, no hook", url_without_hook)

    def browser(self, name: str, url: str) -> Browser:
        return Browser(name, url, self.report.tell)

    @property
    def alices(self) -> tuple[Browser, Browser]:
        return self.alice, self.alice_phone

    @property
    def bobs(self) -> tuple[Browser, Browser]:
        return self.bob, self.bob_phone

    def play(self) -> None:
        self.log_in()
        self.expire_alice()
        self.alice_is_held()
        self.look_into_the_store()
        self.alice_changes_her_password()
        self.eve_guesses()
        self.alices_password_is_stolen()
        self.summary()

    def log_in(self) -> None:
        self.report.step("alice and bob log in, each with two browsers; alice fills her cart")
        for name, browsers in (("alice", self.alices), ("bob", self.bobs)):
            for browser in browsers:
                answer = browser.log_in(name, password_of(name))
                self.expect(answer.status == 302 and browser.session_key, f"{browser.name} is in")
        self.open_pages = {browser.name: browser.get("/cart/") for browser in self.alices}
        self.add(self.alice, "tea")
        found = cart(self.alice)
        self.expect(found == {"tea": 1}, "there is tea in alice's cart", found)
        self.before = {browser.name: stored(browser) for browser in self.alices}

    def add(self, browser: Browser, item: str) -> Answer:
        """Add to the cart, with the form of the page that has been open since the login."""
        at = self.open_pages[browser.name]
        return browser.submit(at, at.page.form_with("item"), {"item": item}, show=f"item={item}")

    def expire_alice(self) -> None:
        self.report.step("the admin expires alice's password, with the action of the admin")
        admin = self.admin
        answer = admin.log_in("admin", password_of("admin"), "/admin/login/?next=/admin/auth/user/")
        at = admin.follow(answer)
        form = at.page.form_with("action")
        chosen = {
            "action": form.option("action", ACTION),
            "_selected_action": str(User.objects.get(username="alice").pk),
        }
        at = admin.follow(admin.submit(at, form, chosen, show=f'"{ACTION}": alice'))
        if self.expect("confirm" in names(at), "a page asks to confirm it", at.page.title):
            open_before = password_status(User.objects.get(username="alice")).must_change
            self.expect(not open_before, "nothing is expired before that", open_before)
            form = at.page.form_with("confirm")
            button = form.buttons.get("confirm") or ["yes"]
            note = "demo: phishing mail of Monday"
            values = {"confirm": button[0], "note": note}
            at = admin.follow(admin.submit(at, form, values, show=f'confirm, note="{note}"'))
            self.report.say(f'the admin reads: "{at.page.listed("messagelist")}"')
        status = password_status(User.objects.get(username="alice"))
        self.expect(status.must_change, "alice has to change her password", status)
        self.expect(status.reason == "admin", "the reason is admin", status.reason)

    def alice_is_held(self) -> None:
        self.report.step("both browsers of alice are held, whatever they ask for; bob's are not")
        self.held = {browser.name: browser.get(WANTED) for browser in self.alices}
        for browser in self.alices:
            held = self.held[browser.name]
            self.expect(held.status == 302, f"{browser.name}, GET: 302", held.status)
            self.expect(next_of(held) == WANTED, f"... with next={WANTED}", held.location)
            self.expect("no-store" in cache_control(held), "... and no-store", cache_control(held))
        change = urlsplit(self.held[self.alice.name].location).path
        for browser in self.alices:
            answer = self.add(browser, "honey")
            self.expect(answer.status == 303, f"{browser.name}, POST: 303", answer.status)
            to_change = urlsplit(answer.location).path == change and not next_of(answer)
            self.expect(to_change, "... to the change page, without next", answer.location)
            self.expect("honey" not in (cart(browser) or {}), "... and no honey in the cart")
            self.expect_problem(browser, browser.fetch("/api/cart/"), change)
            self.expect_held(browser, browser.get("/no/such/page/"), change, "an unknown URL")
        for browser in self.bobs:
            answer = browser.get("/cart/")
            self.expect(answer.status == 200, f"{browser.name} is not held", answer.status)

    def expect_problem(self, browser: Browser, answer: Answer, change: str) -> None:
        problem = answer.status == 403 and answer.kind == "application/problem+json"
        self.expect(problem, f"{browser.name}, fetch: 403 application/problem+json", answer.kind)
        code, leads = answer.json.get("code"), str(answer.json.get("change_url", ""))
        self.expect(code == FLAG, f"... with code {FLAG}", code)
        self.expect(urlsplit(leads).path == change, "... and the change_url", leads)

    def expect_held(self, browser: Browser, answer: Answer, change: str, what: str) -> None:
        held = answer.status == 302 and urlsplit(answer.location).path == change
        self.expect(held, f"{browser.name}, {what}: to the change page", answer.status)

    def look_into_the_store(self) -> None:
        self.report.step("what lies in the session store: the flag is there, nothing else changed")
        for browser in self.alices:
            before, after = self.before[browser.name], stored(browser)
            if before is None or after is None:
                self.expect(False, f"{browser.name}: the session is in the store")
                continue
            shown = {key: value for key, value in after.content.items() if "auth" not in key}
            self.report.say(f"{browser.name}: {shown}, until {after.expires:%Y-%m-%d %H:%M:%S}")
            self.expect(after.content.get(FLAG) is True, f"{browser.name}: {FLAG} is True")
            own = {key for key in after.content if "pwexpire" in key or FLAG in key}
            kept = without(before.content, own) == without(after.content, own)
            self.expect(kept, "... every other key is what it was, the cart included")
            self.expect(after.expires == before.expires, "... and so is the expiry date")
        for browser in self.bobs:
            found = stored(browser)
            self.expect(found and FLAG not in found.content, f"{browser.name}: no flag")

    def alice_changes_her_password(self) -> None:
        self.report.step("alice changes her password, and is where she wanted to go")
        bobs = [browser.session_key for browser in self.bobs]
        old = password_of("alice")
        at = self.alice.get(self.held[self.alice.name].location)
        at = self.change(at, old, old, "the old password once more")
        self.report.say(f'alice reads: "{at.page.listed("errorlist")}"')
        refused = at.status == 200 and "new_password1" in names(at)
        self.expect(refused, "the same password again is refused", at.status)
        held = self.alice.get("/cart/")
        self.expect(held.status == 302, "... and she is still held", held.status)

        answer = self.change(at, old, NEW_PASSWORD, "a new password")
        self.expect(answer.status in (302, 303), "a new password is taken", answer.status)
        after = stored(self.alice)
        flagged = after is None or FLAG in after.content
        self.expect(not flagged, "the flag has left her session with that very answer")
        at = self.alice.follow(answer)
        self.expect((at.status, at.path) == (200, WANTED), f"she is at {WANTED}", at.path)
        self.expect(cart(self.alice) == {"tea": 1}, "her cart survived", cart(self.alice))
        lines = self.alice.fetch("/api/cart/")
        self.expect(lines.status == 200, "fetch is answered again", lines.status)

        phone = self.alice_phone.get("/cart/")
        to_login = phone.status == 302 and phone.location.startswith("/accounts/login/")
        self.expect(to_login, "her phone has to log in again", phone.location or phone.status)
        answer = self.alice_phone.log_in("alice", NEW_PASSWORD)
        at = self.alice_phone.get("/cart/")
        self.expect(at.status == 200, "... and is not held after that", at.status)

        for browser, key in zip(self.bobs, bobs, strict=True):
            quiet = browser.get("/cart/").status == 200 and browser.session_key == key
            self.expect(quiet, f"{browser.name} never noticed")

    def change(self, at: Answer, old: str, new: str, show: str) -> Answer:
        form = at.page.form_with("new_password1")
        values = {"old_password": old, "new_password1": new, "new_password2": new}
        return self.alice.submit(at, form, values, show=show)

    def eve_guesses(self) -> None:
        self.report.step("eve guesses at bob's password until django-axes locks the name")
        limit = settings.AXES_FAILURE_LIMIT
        guesses = [f"bob-guess-{number}" for number in range(1, limit + 1)]
        here = [self.eve.log_in("bob", guess) for guess in guesses]
        locked = here[-1].status == 429
        self.expect(locked, f"wrong password {limit} locks the name: 429", here[-1].status)

        self.report.say("the same at a server without PWEXPIRE_EXPIRE_ON_LOCKOUT, and with no bob:")
        self.bob_elsewhere.log_in("bob", password_of("bob"))
        elsewhere = [self.eve_elsewhere.log_in("bob", guess) for guess in guesses]
        nobody = [self.eve.log_in("nobody", guess) for guess in guesses]
        told = differences(here, elsewhere)
        self.expect(not told, "eve's answers do not differ from those without the hook", told)
        told = differences(here[-1:], nobody[-1:])
        self.expect(not told, "... nor from those for a name that does not exist", told)

        wait = settings.PWEXPIRE_POLL_SECONDS
        self.report.say(f"waiting {wait} s (PWEXPIRE_POLL_SECONDS) ...")
        time.sleep(wait)
        for browser in self.bobs:
            held = browser.get("/cart/")
            to_change = held.status == 302 and next_of(held) == "/cart/"
            self.expect(to_change, f"{browser.name} is held on the next request", held.status)
        free = self.bob_elsewhere.get("/cart/")
        self.expect(free.status == 200, "without the hook bob would not be held", free.status)

    def alices_password_is_stolen(self) -> None:
        self.report.step("alice's password turns up in a leak: it is withdrawn, only a link helps")
        say = "manage.py pwexpire expire --user alice --require reset --reason compromised --yes"
        self.report.say(say)
        wanted = {"require": "reset", "reason": "compromised", "format": "json", "yes": True}
        call_command("pwexpire", "expire", "--user", "alice", stdout=StringIO(), **wanted)
        time.sleep(settings.PWEXPIRE_POLL_SECONDS)
        for browser in self.alices:
            why, after = browser.get("/cart/"), browser.get("/cart/")
            shown = why.status == 302 and why.location.startswith("/accounts/password_reset/")
            out = shown and after.status == 302 and after.location.startswith("/accounts/login/")
            found = (why.location or why.status, after.location or after.status)
            self.expect(out, f"{browser.name} is led to the reset once, then logged out", found)
        thief = self.eve.log_in("alice", NEW_PASSWORD)
        wrong = self.eve.log_in("alice", "a wrong one")
        error = wrong.page.listed("errorlist")
        refused = thief.status == 200 and error in thief.page.listed("errorlist")
        self.expect(refused, "eve, with the right password: the error of a wrong one", thief.status)
        link = "/accounts/password_reset/"
        shown_to = [link in answer.response.text.split("</form>")[0] for answer in (thief, wrong)]
        self.expect(
            shown_to == [True, False], "... and the way out, which a wrong one does not get"
        )
        held = self.eve.get("/cart/")
        self.expect(held.status == 302, "... and she is not in", held.status)

        at = self.alice.get(link)
        at = self.alice.submit(at, at.page.form_with("email"), {"email": "alice@example.com"})
        mail = "".join(file.read_text() for file in self.mails.glob("*"))
        found = re.search(r"http://[^/]+(/accounts/reset/\S+)", mail)
        if not self.expect(found is not None, "alice gets a mail with a link"):
            return
        assert found is not None
        at = self.alice.follow(self.alice.get(found[1]))
        form = at.page.form_with("new_password1")
        again = {"new_password1": NEW_PASSWORD, "new_password2": NEW_PASSWORD}
        at = self.alice.submit(at, form, again, show="the stolen password once more")
        self.expect(at.status == 200, "the stolen password is refused there as well", at.status)
        form = at.page.form_with("new_password1")
        values = {"new_password1": LAST_PASSWORD, "new_password2": LAST_PASSWORD}
        at = self.alice.submit(at, form, values, show="a new password")
        self.expect(at.status == 302, "a new one is taken", at.status)
        self.alice.log_in("alice", LAST_PASSWORD)
        at = self.alice.get("/cart/")
        self.expect(at.status == 200, "... and with it alice is in, and is not held", at.status)

    def summary(self) -> None:
        self.report.step("what pwexpire.services.password_status says in the end")
        for name, reason in (("admin", None), ("alice", None), ("bob", "lockout")):
            status = password_status(User.objects.get(username=name))
            said = ", ".join(
                f"{item.name}={shown(getattr(status, item.name))}"
                for item in fields(status)
                if item.name not in ("policy", "rule")
            )
            self.report.say(f"{name}: {said}")
            found = (status.must_change, status.reason)
            wanted = f"has to change it, because of a {reason}" if reason else "may go on"
            self.expect(found == (reason is not None, reason), f"{name} {wanted}", found)


def shown(value: object) -> str:
    return f"{value:%Y-%m-%d %H:%M:%S}" if isinstance(value, datetime) else repr(value)


def cart(browser: Browser) -> dict[str, int] | None:
    found = stored(browser)
    return found.content.get("cart") if found else None


def names(answer: Answer) -> set[str]:
    return {name for form in answer.page.forms for name in form.names}


def next_of(answer: Answer) -> str:
    return parse_qs(urlsplit(answer.location).query).get("next", [""])[0]


def cache_control(answer: Answer) -> str:
    found: str = answer.response.headers.get("Cache-Control", "")
    return found


def without(content: dict[str, Any], keys: set[str]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key not in keys}


def differences(some: Sequence[Answer], others: Sequence[Answer]) -> list[str]:
    """By what the answers can be told apart."""
    found = []
    for number, (one, other) in enumerate(zip(some, others, strict=True), 1):
        mine, yours = look(one), look(other)
        found += [f"{part} of answer {number}" for part in mine if mine[part] != yours[part]]
    return found


def look(answer: Answer) -> dict[str, object]:
    response = answer.response
    headers = {k: v for k, v in response.headers.items() if k not in CHANGING_HEADERS}
    text = re.sub(r'(csrfmiddlewaretoken" value=)"\w+"', r"\1", response.text)
    cookies = sorted(response.cookies)
    return {"status": answer.status, "headers": headers, "cookies": cookies, "text": text}

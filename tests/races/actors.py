"""What one process does to the site, and the log of it: one line of JSON for each act."""

from __future__ import annotations

import json
import logging
import random
import time
import traceback
from collections.abc import Callable, Iterator, MutableSequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from django.contrib.auth import get_user_model
from django.db import connections
from django.db.models.signals import pre_save
from django.test import Client
from django.test.client import ClientHandler

from pwexpire import services

ACTORS = 8
USERS = 24
BROWSERS = 6
LEFT_ALONE = 0.3
PAUSE_SECONDS = 0.01
WRITE_PAUSE_SECONDS = 0.15
CHANGE_PAGE = "/account/password-change/"
PACKAGE = str(Path(services.__file__).parent.parent)


def name_of(number: int) -> str:
    return f"user{number}"


def password_of(number: int, generation: int) -> str:
    return f"secret of {number}, {generation}"


def side_of(error: BaseException) -> str:
    """``ours`` if pwexpire took any part in what failed, else ``site``."""
    for frame in traceback.extract_tb(error.__traceback__):
        # The dispatch() of our view is around all that Django's view does.
        if frame.filename.startswith(PACKAGE) and frame.name != "dispatch":
            return "ours"
    return "site"


class Browser:
    """One session at a time; ``name`` changes where the session begins anew, not with its key."""

    def __init__(self, handler: ClientHandler, number: int, name: str) -> None:
        self.client = Client(raise_request_exception=False)
        self.client.handler = handler
        self.number = number
        self.name = name
        self.logged_in = False

    @property
    def key(self) -> str | None:
        cookie = self.client.cookies.get("sessionid")
        return (cookie.value or None) if cookie is not None else None


class Complaints(logging.Handler):
    def __init__(self, write: Callable[..., None]) -> None:
        super().__init__(logging.WARNING)
        self.write = write

    def emit(self, record: logging.LogRecord) -> None:
        at = time.monotonic()
        self.write(kind="log", t0=at, t1=at, outcome=record.levelname, error=self.format(record))


class Actor:
    def __init__(
        self,
        number: int,
        file: Path,
        users: list[Any],
        generations: MutableSequence[int],
        seed: int,
    ) -> None:
        self.number = number
        self.users = users
        self.generations = generations
        self.random = random.Random(seed * ACTORS + number)
        self.handler = ClientHandler(enforce_csrf_checks=False)
        self.browsers: list[Browser] = []
        self.names = self.items = 0
        self.log = file.open("w")
        self.mine = [one for one in range(USERS) if one % ACTORS == number]
        self.written: float | None = None
        pre_save.connect(self.before_written, sender=get_user_model())
        logger = logging.getLogger("pwexpire")
        logger.addHandler(Complaints(self.write))
        logger.propagate = False
        for other in ("django.request", "django.security"):
            logging.getLogger(other).setLevel(logging.CRITICAL + 1)

    def write(self, **event: Any) -> None:
        self.log.write(json.dumps({"actor": self.number, **event}) + "\n")

    def before_written(self, instance: Any, **kwargs: Any) -> None:
        """A new password waits for its row, as behind a lock; an expiry meanwhile has to win."""
        if getattr(instance, "_password", None) is not None:
            self.written = time.monotonic()
            time.sleep(self.random.random() * WRITE_PAUSE_SECONDS)

    def play(self, until: float) -> None:
        acts: list[tuple[Callable[[], None], float]] = [
            (self.put, 42),
            (self.look, 16),
            (self.change, 12),
            (self.set_password, 2),
            (self.login, 12),
            (self.logout, 4),
            (self.expire, 5),
            (self.expire_many, 2),
            (self.flag, 5),
            (self.end, 2),
            (self.cancel, 1),
        ]
        choices, weights = zip(*acts, strict=True)
        try:
            while time.monotonic() < until:
                self.random.choices(choices, weights)[0]()
            self.write(kind="finished", t0=until, t1=time.monotonic(), outcome="ok")
        finally:
            self.log.close()
            connections.close_all()

    # As a browser does.

    def new_browser(self, number: int) -> Browser:
        self.names += 1
        return Browser(self.handler, number, f"{self.number}.{self.names}")

    def begins_anew(self, browser: Browser) -> None:
        self.names += 1
        browser.name = f"{self.number}.{self.names}"

    def some_browser(self, mine: bool = False) -> Browser | None:
        there = [one for one in self.browsers if not mine or one.number in self.mine]
        return self.random.choice(there) if there else None

    def send(self, browser: Browser, kind: str, method: str, path: str, data: Any, **more: Any):
        event = {
            "kind": kind,
            "user": self.users[browser.number],
            "session": browser.name,
            "key": browser.key,
            "logged_in": browser.logged_in,
            **more,
        }
        self.written = None
        event["t0"] = time.monotonic()
        response = getattr(browser.client, method)(path, data)
        event["t1"], event["wall"] = time.monotonic(), time.time()
        event["written"] = self.written
        event["new_key"] = browser.key
        event["status"] = response.status_code
        if response.status_code >= 500:
            error = response.exc_info[1] if getattr(response, "exc_info", None) else None
            event["outcome"] = "error"
            event["side"] = side_of(error) if error is not None else "ours"
            event["error"] = "".join(traceback.format_exception(error)) if error else "no exception"
        elif response.status_code == 400:
            event["outcome"] = "interrupted"
        return response, event

    def ask(self, kind: str, method: str, data: Any, **more: Any) -> None:
        browser = self.some_browser()
        if browser is None:
            return self.login()
        response, event = self.send(browser, kind, method, "/cart/", data, **more)
        anonymous = False
        if response.status_code == 200:
            answer = response.json()
            anonymous = answer["user"] is None
            event["outcome"] = "anonymous" if anonymous else "passed"
            event["cart"] = answer["cart"]
        elif response.status_code in (302, 303):
            event["outcome"] = "held"
            assert response["Location"].startswith(CHANGE_PAGE), response["Location"]
        if event["new_key"] != event["key"]:
            self.begins_anew(browser)
        event["new_session"] = browser.name
        self.write(**event)
        if response.status_code == 400 or anonymous:
            self.browsers.remove(browser)
        elif event.get("outcome") == "held" and browser.number in self.mine:
            if self.random.random() < 0.4:
                self.change_in(browser)
        return None

    def put(self) -> None:
        self.items += 1
        item = f"{self.number}-{self.items}"
        pause = self.random.random() * PAUSE_SECONDS
        self.ask("cart", "post", {"item": item, "pause": pause}, item=item)

    def look(self) -> None:
        self.ask("look", "get", {})

    def login(self) -> None:
        number = self.random.randrange(USERS)
        if self.random.random() < 0.5:
            number = self.random.choice(self.mine)
        browser = self.new_browser(number)
        generation = self.generations[number]
        data = {"username": name_of(number), "password": password_of(number, generation)}
        response, event = self.send(browser, "login", "post", "/accounts/login/", data)
        if response.status_code == 302:
            event["outcome"] = "ok"
            browser.logged_in = True
            if self.random.random() > LEFT_ALONE:
                if len(self.browsers) == BROWSERS:
                    self.browsers.pop(self.random.randrange(BROWSERS))
                self.browsers.append(browser)
        elif response.status_code == 200:
            event["outcome"] = "refused"
        self.write(**event)

    def logout(self) -> None:
        browser = self.some_browser()
        if browser is None:
            return
        response, event = self.send(browser, "logout", "post", "/accounts/logout/", {})
        event.setdefault("outcome", "ok" if response.status_code in (200, 302) else "refused")
        self.write(**event)
        self.browsers.remove(browser)

    def change(self) -> None:
        browser = self.some_browser(mine=True)
        if browser is not None:
            self.change_in(browser)

    def change_in(self, browser: Browser) -> None:
        number = browser.number
        generation = self.generations[number]
        new = password_of(number, generation + 1)
        old = password_of(number, generation)
        data = {"old_password": old, "new_password1": new, "new_password2": new}
        response, event = self.send(browser, "change", "post", CHANGE_PAGE, data)
        if response.status_code == 302:
            done = response["Location"].startswith(CHANGE_PAGE)
            event["outcome"] = "ok" if done else "anonymous"
        event.setdefault("outcome", "refused")
        kept = event["outcome"] == "ok"
        if not kept:
            self.begins_anew(browser)
            self.browsers.remove(browser)
        event["new_session"] = browser.name
        self.write(**event)
        self.find_generation(number)

    def find_generation(self, number: int) -> None:
        """A change that was not acknowledged may have been made all the same."""
        user = get_user_model().objects.get(pk=self.users[number])
        if user.check_password(password_of(number, self.generations[number] + 1)):
            self.generations[number] += 1

    # As the site's own code does.

    @contextmanager
    def act(self, kind: str, users: list[int], **more: Any) -> Iterator[dict[str, Any]]:
        event: dict[str, Any] = {"kind": kind, "users": users, "outcome": "ok", **more}
        self.written = None
        event["t0"] = time.monotonic()
        try:
            yield event
        except Exception as error:
            event["outcome"] = "error"
            event["side"] = side_of(error)
            event["error"] = "".join(traceback.format_exception(error))
        event["t1"], event["written"] = time.monotonic(), self.written
        self.write(**event)

    def set_password(self) -> None:
        number = self.random.choice(self.mine)
        pk = self.users[number]
        new = password_of(number, self.generations[number] + 1)
        with self.act("set_password", [pk]):
            user = get_user_model().objects.get(pk=pk)
            user.set_password(new)
            user.save()
        self.find_generation(number)

    def some_users(self, least: int, most: int) -> tuple[Any, list[int]]:
        size = self.random.randint(least, most)
        first = self.random.randrange(USERS - size + 1)
        pks = self.users[first : first + size]
        rows = get_user_model().objects.filter(pk__gte=pks[0], pk__lte=pks[-1])
        return rows, pks

    def expire(self) -> None:
        pk = self.random.choice(self.users)
        user = get_user_model().objects.get(pk=pk)
        with self.act("expire", [pk]) as event:
            self.note(event, services.expire_passwords(user))

    @staticmethod
    def note(event: dict[str, Any], batch: services.ExpiryBatch) -> None:
        event["state"] = batch.state
        event["all_new"] = batch.users_expired == len(event["users"])

    def expire_many(self) -> None:
        rows, pks = self.some_users(3, 10)
        end = self.random.random() < 0.1
        action = services.SessionAction.END if end else services.SessionAction.FLAG
        with self.act("expire", pks, ends=end) as event:
            self.note(event, services.expire_passwords(rows, sessions=action))

    def flag(self) -> None:
        rows, pks = self.some_users(4, 12)
        with self.act("flag", pks) as event:
            outcomes = services.flag_sessions(rows).outcomes
            event["outcomes"] = {str(name): count for name, count in outcomes.items()}

    def end(self) -> None:
        rows, pks = self.some_users(1, 3)
        with self.act("end", pks, ends=True):
            services.end_sessions(rows)

    def cancel(self) -> None:
        pk = self.random.choice(self.users)
        user = get_user_model().objects.get(pk=pk)
        with self.act("cancel", [pk]):
            services.cancel_expiry(user)

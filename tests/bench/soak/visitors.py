"""The load: visitors who log in, look, change and log out, and those who only measure."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

import httpx

from tests.bench.measure import in_turns
from tests.bench.soak.model import Model, Session, Visitor

CSRF = "x" * 32
CHANGE = "/account/password-change/"
LOG_OUT = "/account/log-out/"
# How a browser, a script and a form ask for the same view.
WAYS: list[dict[str, Any]] = [
    {},
    {"headers": {"Accept": "application/json"}},
    {"form": {"field": "value"}},
]


class Browser:
    """Requests with one session's cookie each, on connections of their own.

    A connection that is kept would be cut by a redeploy, and a form sent twice.
    """

    def __init__(self, url: str) -> None:
        limits = httpx.Limits(max_keepalive_connections=0)
        self.client = httpx.Client(base_url=url, limits=limits, timeout=30, trust_env=False)

    def ask(
        self, session: Session, path: str, form: dict[str, str] | None = None, **request: Any
    ) -> tuple[str, str, float, float]:
        """Kind of the answer, a word on it, when it was sent, and when the answer was there."""
        headers = {**request.pop("headers", {}), "Connection": "close"}
        cookies = {"csrftoken": CSRF} | ({"sessionid": session.key} if session.key else {})
        headers["Cookie"] = "; ".join(f"{name}={value}" for name, value in cookies.items())
        if form is not None:
            request["data"] = {**form, "csrfmiddlewaretoken": CSRF}
        method, sent = "GET" if form is None else "POST", time.monotonic()
        try:
            response = self.client.request(method, path, headers=headers, **request)
        except httpx.HTTPError as error:
            return "error", f"{method} {path}: {error!r}", sent, time.monotonic()
        answered = time.monotonic()
        for cookie in response.headers.get_list("set-cookie"):
            if cookie.startswith("sessionid="):
                session.key = cookie.partition("=")[2].partition(";")[0].strip('"')
        self.client.cookies.clear()
        text = f"{method} {path}: {response.status_code} {response.headers.get('location', '')}"
        return kind_of(response), text, sent, answered


def kind_of(response: httpx.Response) -> str:
    place = response.headers.get("location", "")
    if response.status_code in (302, 303):
        held = place.partition("?")[0] == CHANGE
        return "held" if held else "out" if place.startswith("/login/") else "moved"
    if response.status_code == 403 and "password_expired" in response.text:
        return "held"
    return {200: "passed", 401: "out", 403: "refused"}.get(response.status_code, "error")


class Load(threading.Thread):
    """So many visitors, one request at a time, ``pause`` seconds apart."""

    def __init__(self, url: str, model: Model, visitors: list[Visitor], pause: float) -> None:
        super().__init__(daemon=True)
        self.browser, self.model, self.visitors = Browser(url), model, visitors
        self.pause = pause
        self.ended = threading.Event()
        self.fault: BaseException | None = None
        # Who is asked for at a certain moment, because something has just been done to them.
        self.soon: list[tuple[float, Visitor]] = []

    def run(self) -> None:
        try:
            while not self.ended.is_set():
                began = time.monotonic()
                self.visit(self._next(began))
                self.ended.wait(max(0.0, began + self.pause - time.monotonic()))
        except BaseException as error:
            self.fault = error

    def _next(self, now: float) -> Visitor:
        for entry in list(self.soon):
            if entry[0] <= now:
                self.soon.remove(entry)
                return entry[1]
        return random.choice(self.visitors)

    def visit(self, one: Visitor) -> None:
        session = random.choice(one.sessions)
        if not session.key:
            self.log_in(one, session)
            return
        before = session.stays
        kind, text, sent, answered = self.browser.ask(session, "/", **random.choice(WAYS))
        self.model.check(one, kind, sent, answered, text)
        if kind == "out":
            if before and not self.model.outages.touch(sent, answered):
                self.model.count("logged out though nothing was done", f"{one.name}: {text}")
            session.key = ""
        elif kind == "held":
            if random.random() < 0.35:
                self.change(one, session)
        elif kind == "passed" and (dice := random.random()) < 0.05:
            self.log_out(session) if dice < 0.03 else self.change(one, session)

    def log_in(self, one: Visitor, session: Session) -> None:
        for password in list(one.passwords):
            form = {"username": one.name, "password": password}
            kind, text, sent, answered = self.browser.ask(session, "/login/", form)
            if kind == "passed":
                one.passwords, session.stays = [password], True
                self.model.count("logins")
                return
            session.key = ""
            if kind == "error":
                self.model.check(one, kind, sent, answered, text)
                return
        self.model.count("logins that failed", f"{one.name}: {text}")

    def log_out(self, session: Session) -> None:
        self.browser.ask(session, LOG_OUT, {})
        session.key, session.stays = "", False
        self.model.count("logouts")

    def change(self, one: Visitor, session: Session) -> None:
        if len(one.passwords) > 1:  # the next login finds out which it is
            return
        old, new = one.passwords[0], f"{one.name}-{random.getrandbits(64):x}"
        form = {"old_password": old, "new_password1": new, "new_password2": new}
        kind, text, sent, answered = self.browser.ask(session, CHANGE, form)
        if kind == "moved":
            one.passwords = [new]
            self.model.change(one, sent, answered)
            self.model.count("changes")
            for other in one.sessions:  # Django logs out the others
                other.stays = other is session
        elif kind == "error":
            self.model.check(one, kind, sent, answered, text)
            one.passwords = list(dict.fromkeys([*one.passwords, new]))
            self.model.change(one, sent, None)
            for other in one.sessions:
                other.stays, other.key = False, "" if other is session else other.key
        elif kind == "out":
            session.key = ""
        else:
            self.model.count("changes that were refused", f"{one.name}: {text}")


class Stopwatch(threading.Thread):
    """Users who are never expired ask two servers in turns: one has the middleware, one has not."""

    def __init__(self, urls: dict[str, str], home: str, model: Model, users: list[Visitor]) -> None:
        super().__init__(daemon=True)
        self.browsers = {name: Browser(url) for name, url in urls.items()}
        self.home, self.model, self.users = Browser(home), model, users
        self.seconds: dict[str, list[float]] = {name: [] for name in urls}
        self.ended = threading.Event()
        self.fault: BaseException | None = None

    def run(self) -> None:
        try:
            turn = 0
            while not self.ended.wait(0.1):
                self.measure(self.users[turn % len(self.users)], turn)
                turn += 1
        except BaseException as error:
            self.fault = error

    def measure(self, one: Visitor, turn: int) -> None:
        session = one.sessions[0]
        if not session.key:
            form = {"username": one.name, "password": one.passwords[0]}
            kind, *_ = self.home.ask(session, "/login/", form)
            session.key = session.key if kind == "passed" else ""
            return
        taken = {}
        for name in in_turns(turn, self.browsers):
            kind, text, sent, answered = self.browsers[name].ask(session, "/")
            self.model.check(one, kind, sent, answered, text)
            taken[name] = answered - sent
            if kind != "passed":
                session.key = ""
                return
        for name, seconds in taken.items():
            self.seconds[name].append(seconds)

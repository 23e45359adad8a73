"""What a logged-in user who has nothing to change pays for the middleware, request by request."""

from __future__ import annotations

import gc
import statistics
import sys
from dataclasses import dataclass
from http.cookies import SimpleCookie
from importlib import import_module
from importlib.metadata import version
from io import BytesIO
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model, login
from django.core.handlers.wsgi import WSGIHandler
from django.core.signals import setting_changed
from django.http import HttpResponse
from django.test import RequestFactory, override_settings

from tests.bench.data import CART, PASSWORD
from tests.bench.measure import Spread, counted_queries, timed

OURS = "pwexpire.middleware.PasswordExpiryMiddleware"
POLL = "PWEXPIRE_POLL_SECONDS"


@dataclass
class Variant:
    name: str
    middleware: str | None
    app: str = ""
    poll: float = 1


VARIANTS = [
    Variant("nothing (the noise of this run)", None),
    Variant("pwexpire, a poll a second", OURS),
    Variant("pwexpire, a poll at every request", OURS, poll=0),
    Variant(
        "Django's `LoginRequiredMiddleware`",
        "django.contrib.auth.middleware.LoginRequiredMiddleware",
    ),
    Variant(
        "django-password-policies-iplweb",
        "password_policies.middleware.PasswordChangeMiddleware",
        app="password_policies",
    ),
    Variant(
        "django-password-rotate",
        "password_rotate.middleware.PasswordRotateMiddleware",
        app="password_rotate",
    ),
]


class Served:
    """A WSGI handler with ``extra`` as its last middleware, and one session to ask it with."""

    def __init__(self, extra: str | None) -> None:
        added = [extra] if extra else []
        with override_settings(MIDDLEWARE=[*settings.MIDDLEWARE, *added]):
            self.handler = WSGIHandler()
        self.key = ""
        self.environ = RequestFactory()._base_environ(PATH_INFO="/")

    def log_in(self, user: Any) -> None:
        """Through ``login()``, so that the session holds what it would hold on a site."""
        engine = import_module(settings.SESSION_ENGINE)
        request = RequestFactory().get("/login/")
        request.session = engine.SessionStore()
        login(request, user, backend="django.contrib.auth.backends.ModelBackend")
        request.session.update({"cart": CART, "language": "en"})
        request.session.save()
        cookie = SimpleCookie({settings.SESSION_COOKIE_NAME: request.session.session_key})
        self.environ["HTTP_COOKIE"] = cookie.output(header="", sep="; ").strip()

    def ask(self, path: str = "/") -> HttpResponse:
        environ = {**self.environ, "PATH_INFO": path, "wsgi.input": BytesIO()}
        response = self.handler(environ, _start_response)
        b"".join(response)
        response.close()
        return response

    def ask_often(self, times: int) -> None:
        for _ in range(times):
            self.ask()

    def calls(self) -> int:
        """Function calls of one request: the same whatever else the machine does."""
        found = []
        for _ in range(5):  # the fewest: one of them may be the one that polls
            number = 0

            def see(frame: Any, event: str, argument: Any) -> None:
                nonlocal number
                number += event in ("call", "c_call")

            sys.setprofile(see)
            try:
                self.ask()
            finally:
                sys.setprofile(None)
            found.append(number)
        return min(found)

    def queries(self, path: str = "/", times: int = 20) -> tuple[float, float]:
        with counted_queries() as queries:
            for _ in range(times):
                self.ask(path)
        return queries.reads / times, queries.writes / times


def _start_response(status: str, headers: Any, info: Any = None) -> None:
    pass


def set_poll(seconds: float | None) -> None:
    """Not with ``override_settings``: while it is active, every look at a setting is dearer."""
    if seconds is None:
        delattr(settings, POLL)
    else:
        setattr(settings, POLL, seconds)
    setting_changed.send(sender=None, setting=POLL, value=seconds, enter=True)


def measure_variant(variant: Variant, user: Any, pairs: int, times: int) -> dict[str, Any]:
    bare, served = Served(None), Served(variant.middleware)
    for side in (bare, served):
        side.log_in(user)
        for _ in range(3):
            response = side.ask()
            if response.status_code != 200 or response.content != user.username.encode():
                raise RuntimeError(f"answered {response.status_code}")
    reads, writes = served.queries()
    bare_reads, bare_writes = bare.queries()
    wall, cpu, added = [], [], []
    for turn in range(pairs):
        order = (served, bare) if turn % 2 else (bare, served)
        taken = {side: timed(lambda side=side: side.ask_often(times)) for side in order}
        wall.append(taken[served].wall / taken[bare].wall)
        cpu.append(taken[served].cpu / taken[bare].cpu)
        added.append((taken[served].cpu - taken[bare].cpu) / times * 1e6)
    return {
        "name": variant.name,
        "time": Spread.of(wall),
        "cpu": Spread.of(cpu),
        "calls": served.calls() / bare.calls(),
        "calls_added": served.calls() - bare.calls(),
        "added_us": statistics.median(added),
        "reads_added": reads - bare_reads,
        "writes_added": writes - bare_writes,
    }


def measure_idle(pairs: int, times: int, troubles: dict[str, str]) -> list[dict[str, Any]]:
    user = get_user_model().objects.create(username="idle", password=PASSWORD)
    rows = []
    gc.freeze()  # a collection before each sample, and none of what was there before
    for variant in VARIANTS:
        if variant.app in troubles:
            rows.append({"name": variant.name, "trouble": troubles[variant.app]})
            continue
        if variant.app:
            variant.name += f" {version(variant.name)}"
        if variant.middleware == OURS and variant.poll != 1:
            set_poll(variant.poll)
        try:
            rounds = pairs // 4 if variant.app else pairs
            rows.append(measure_variant(variant, user, rounds, times))
        except Exception as error:
            if not variant.app:
                raise
            rows.append({"name": variant.name, "trouble": f"does not work: {error}"})
        finally:
            if variant.middleware == OURS and variant.poll != 1:
                set_poll(None)
    user.delete()
    return rows


def measure_strangers() -> list[dict[str, Any]]:
    """Requests that have nothing to do with a password, on a view that reads no session."""
    user = get_user_model().objects.create(username="stranger", password=PASSWORD)
    rows = []
    for name, known in (("anonymous, no cookie", False), ("logged in", True)):
        bare, served = Served(None), Served(OURS)
        for side in (bare, served):
            if known:
                side.log_in(user)
            side.ask("/plain/")
        before, after = bare.queries("/plain/"), served.queries("/plain/")
        rows.append(
            {
                "name": name,
                "reads_added": after[0] - before[0],
                "writes_added": after[1] - before[1],
                "vary": served.ask("/plain/").headers.get("Vary", ""),
            }
        )
    user.delete()
    return rows


def measure_lookup(rounds: int = 20, times: int = 200) -> float:
    """Microseconds (processor time) for one row by its primary key: as little as a query costs."""
    user = get_user_model().objects.create(username="lookup", password=PASSWORD)
    users = get_user_model()._default_manager

    def look_up() -> None:
        for _ in range(times):
            users.get(pk=user.pk)

    taken = [timed(look_up).cpu / times * 1e6 for _ in range(rounds)]
    user.delete()
    return statistics.median(taken)

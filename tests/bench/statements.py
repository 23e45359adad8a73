"""Statements of a login, a change and a logout, with pwexpire and without it.

Transactions count as well: BEGIN, COMMIT, SAVEPOINT and RELEASE are trips to the database.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.signals import user_logged_in, user_logged_out
from django.db import connection
from django.db.models.signals import post_save, pre_save
from django.http import HttpRequest, HttpResponse
from django.test import Client, override_settings
from django.test.utils import CaptureQueriesContext
from django.urls import include, path


def home(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.user.get_username())


urlpatterns = [
    path("", home),
    path("accounts/", include("django.contrib.auth.urls")),
    path("account/", include("pwexpire.urls")),
]

# At most so many are added.
BOUNDS = {"login": 4, "change": 8, "own change page": 8, "logout": 1, "save": 0}
OURS = "pwexpire.middleware.PasswordExpiryMiddleware"
RECEIVERS = {
    user_logged_in: ("on_login", "pwexpire.login"),
    user_logged_out: ("on_logout", "pwexpire.logout"),
    pre_save: ("before_user_saved", "pwexpire.before_user_saved"),
    post_save: ("after_user_saved", "pwexpire.after_user_saved"),
}


@contextmanager
def _side(*, ours: bool) -> Iterator[None]:
    from pwexpire import receivers

    middleware = [name for name in settings.MIDDLEWARE if name != OURS]
    used = override_settings(
        MIDDLEWARE=[*middleware, OURS] if ours else middleware,
        ROOT_URLCONF=__name__,
        LOGOUT_REDIRECT_URL="/",
        PWEXPIRE_POLL_SECONDS=3600,
    )
    for signal, (_, uid) in RECEIVERS.items() if not ours else ():
        signal.disconnect(dispatch_uid=uid)
    try:
        with used:
            yield
    finally:
        for signal, (name, uid) in RECEIVERS.items():
            signal.connect(getattr(receivers, name), dispatch_uid=uid)


def _count(work: Callable[[], Any]) -> int:
    with CaptureQueriesContext(connection) as captured:
        work()
    return len(captured)


class _Visitor:
    """One user with a second open session, as most have."""

    def __init__(self, name: str) -> None:
        self.password = "old-Password-1"
        self.user = get_user_model().objects.create_user(name, password=self.password)
        self.client = Client()
        self.log_in()
        self.client.get("/")
        self.client = Client()

    def log_in(self) -> None:
        form = {"username": self.user.username, "password": self.password}
        answer = self.client.post("/accounts/login/", form)
        assert answer.status_code == 302, answer.status_code

    def change(self, url: str) -> None:
        new = f"{self.password}x"
        form = {"old_password": self.password, "new_password1": new, "new_password2": new}
        assert self.client.post(url, form).status_code == 302
        self.password = new

    def log_out(self) -> None:
        self.client.post("/accounts/logout/")

    def save(self) -> None:
        user = get_user_model().objects.get(pk=self.user.pk)
        user.email = "another@example.com"
        user.save()


def _measure(name: str, *, ours: bool) -> dict[str, int]:
    with _side(ours=ours):
        visitor = _Visitor(name)
        found = {"login": _count(visitor.log_in)}
        visitor.client.get("/")
        found["change"] = _count(lambda: visitor.change("/accounts/password_change/"))
        found["save"] = _count(visitor.save)
        if ours:
            found["own change page"] = _count(lambda: visitor.change("/account/password-change/"))
        found["logout"] = _count(visitor.log_out)
    return found


def measure_statements() -> dict[str, dict[str, int]]:
    """Work -> statements ``without`` pwexpire, and ``added`` by it, beside the ``bound``."""
    # Twice: content types, sites and the like are read once a process.
    for turn in range(2):
        plain = _measure(f"without-{turn}", ours=False)
        full = _measure(f"with-{turn}", ours=True)
    plain["own change page"] = plain["change"]
    return {
        work: {"without": plain[work], "added": full[work] - plain[work], "bound": bound}
        for work, bound in BOUNDS.items()
    }

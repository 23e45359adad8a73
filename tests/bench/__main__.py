"""What pwexpire costs, as ratios within one run: ``python -m tests.bench [--quick]``.

Each figure is the median of interleaved pairs, so that noise of the machine meets both sides; the
cost of a request is taken in processor time, in short blocks that alternate.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

WORK = tempfile.TemporaryDirectory()
os.environ["PWEXPIRE_BENCH_FILE"] = str(Path(WORK.name) / "bench.sqlite3")
os.environ["DJANGO_SETTINGS_MODULE"] = "tests.bench.settings"

import django  # noqa: E402

django.setup()

from django.conf import settings  # noqa: E402
from django.contrib.auth import (  # noqa: E402
    BACKEND_SESSION_KEY,
    HASH_SESSION_KEY,
    SESSION_KEY,
    get_user_model,
)
from django.contrib.auth.hashers import make_password  # noqa: E402
from django.contrib.sessions.backends.db import SessionStore  # noqa: E402
from django.contrib.sessions.models import Session  # noqa: E402
from django.core.handlers.base import BaseHandler  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.db import connection  # noqa: E402
from django.test import RequestFactory, override_settings  # noqa: E402
from django.test.utils import CaptureQueriesContext  # noqa: E402
from django.utils import timezone  # noqa: E402

from pwexpire import services  # noqa: E402
from pwexpire.models import Demand, ExpiryBatch, PasswordRecord, SessionEntry  # noqa: E402
from pwexpire.sessionstore.registry import get_adapter  # noqa: E402

OURS = "pwexpire.middleware.PasswordExpiryMiddleware"
VARIANTS = {
    "pwexpire, polled once a second": (OURS, {}),
    "pwexpire, polled at every request": (OURS, {"PWEXPIRE_POLL_SECONDS": 0}),
    "Django's LoginRequiredMiddleware": (
        "django.contrib.auth.middleware.LoginRequiredMiddleware",
        {},
    ),
    "django-password-policies-iplweb 0.9.5": (
        "password_policies.middleware.PasswordChangeMiddleware",
        {},
    ),
    "django-password-rotate 1.0.2": ("password_rotate.middleware.PasswordRotateMiddleware", {}),
}
PAYLOAD = {"cart": [{"sku": f"item-{n}", "quantity": n} for n in range(5)], "language": "en"}
User = get_user_model()
password = make_password("old-Password-1")


def say(line: str) -> None:
    sys.stdout.write(line + "\n")


def handler(*extra: str) -> BaseHandler:
    with override_settings(MIDDLEWARE=[*settings.BASE, *extra]):
        built = BaseHandler()
        built.load_middleware()
    return built


def ask(served: BaseHandler, key: str | None, path: str = "/") -> Any:
    request = RequestFactory().get(path)
    if key:
        request.COOKIES["sessionid"] = key
    return served.get_response(request)


def block(served: BaseHandler, key: str, times: int) -> float:
    began = time.process_time()
    for _ in range(times):
        ask(served, key)
    return time.process_time() - began


def count_calls(served: BaseHandler, key: str) -> int:
    """Python function calls of one request: the same in every run, whatever the machine does."""
    calls = 0

    def see(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call"

    ask(served, key)
    sys.setprofile(see)
    ask(served, key)
    sys.setprofile(None)
    return calls


def idle(pairs: int, times: int) -> None:
    user = User.objects.create(username="idle", password=password, last_login=timezone.now())
    store = SessionStore()
    store.update(session_of(user))
    store.save()
    key = store.session_key
    bare = handler()
    say("\n| a logged-in, unexpired request | time | calls | queries added | writes added |")
    say("|---|---|---|---|---|")
    with CaptureQueriesContext(connection) as base:
        ask(bare, key)
    for name, (path, given) in VARIANTS.items():
        try:
            with override_settings(**given):
                served = handler(path)
                if (status := ask(served, key).status_code) != 200:
                    raise RuntimeError(f"answered {status}")
                with CaptureQueriesContext(connection) as found:
                    ask(served, key)
                ratios = []
                for turn in range(pairs):
                    first, second = (bare, served) if turn % 2 else (served, bare)
                    one, two = block(first, key, times), block(second, key, times)
                    ratios.append(two / one if first is bare else one / two)
                calls = count_calls(served, key) / count_calls(bare, key)
        except Exception as error:
            say(f"| {name} | not measured: {error} | | | |")
            continue
        added = len(found) - len(base)
        writes = sum(not query["sql"].startswith("SELECT") for query in found)
        say(f"| {name} | {statistics.median(ratios):.3f} | {calls:.3f} | {added} | {writes} |")
    with CaptureQueriesContext(connection) as found:
        response = ask(handler(OURS), None, "/plain/")
    vary = response.headers.get("Vary", "none")
    say(f"\nAnonymous, without a cookie: {len(found)} queries, Vary: {vary}.")


def session_of(user: Any) -> dict[str, Any]:
    return {
        SESSION_KEY: str(user.pk),
        BACKEND_SESSION_KEY: "django.contrib.auth.backends.ModelBackend",
        HASH_SESSION_KEY: user.get_session_auth_hash(),
        **PAYLOAD,
    }


def clear() -> None:
    for model in (Demand, SessionEntry, PasswordRecord, ExpiryBatch, Session):
        model._base_manager.all().delete()
    User._base_manager.all().delete()


def people(count: int) -> None:
    clear()
    made = (User(username=f"user{n}", password=password) for n in range(count))
    User.objects.bulk_create(made, batch_size=5_000)


def sessions() -> list[str]:
    """A stored and indexed session of each user."""
    Session.objects.all().delete()
    SessionEntry.objects.all().delete()
    store, until = SessionStore(), timezone.now() + timezone.timedelta(days=14)
    rows, entries = [], []
    for number, user in enumerate(User.objects.all()):
        key = f"{number:032d}"
        data = store.encode(session_of(user))
        rows.append(Session(session_key=key, session_data=data, expire_date=until))
        entries.append(SessionEntry(session_key=key, user=user, created_at=timezone.now()))
    Session.objects.bulk_create(rows, batch_size=5_000)
    SessionEntry.objects.bulk_create(entries, batch_size=5_000)
    return [row.session_key for row in rows]


def timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def naive(keys: list[str]) -> None:
    for key in keys:
        store = SessionStore(key)
        store["password_expired"] = True
        store.save()


def flagging(count: int, rounds: int) -> None:
    people(count)
    everybody = User.objects.all()
    own, loop, floor, whole = [], [], [], []
    for _ in range(rounds):
        sessions()
        wanted = {entry.pk: (str(entry.user_id), 1) for entry in SessionEntry.objects.iterator()}
        floor.append(timed(partial(get_adapter().flag, wanted)))
        sessions()
        own.append(timed(lambda: services.flag_sessions(everybody)))
        keys = sessions()
        loop.append(timed(partial(naive, keys)))
        sessions()
        Demand.objects.all().delete()
        whole.append(timed(lambda: services.expire_passwords(everybody)))
    pairs = [slow / fast for slow, fast in zip(loop, own, strict=True)]
    whole_pairs = [slow / fast for slow, fast in zip(loop, whole, strict=True)]
    say(f"\nFlagging {count:,} sessions, against the loop that loads and saves each:")
    say(f"- `flag_sessions`: {statistics.median(pairs):.1f} times as fast")
    say(f"- `expire_passwords`, records and flags: {statistics.median(whole_pairs):.1f} times")
    shares = [one / two for one, two in zip(own, floor, strict=True)]
    say(f"- `flag_sessions` / writing known keys only: {statistics.median(shares):.2f}")


def memory(count: int) -> None:
    peaks = []
    for size in (count // 4, count):
        people(size)
        sessions()
        users = User.objects.all()
        tracemalloc.start()
        services.flag_sessions(users)
        peaks.append(tracemalloc.get_traced_memory()[1] / 2**20)
        tracemalloc.stop()
    say(f"- peak memory for {count // 4:,} and {count:,}: {peaks[0]:.1f} and {peaks[1]:.1f} MiB")


def everyone(few: int, many: int, rounds: int) -> None:
    taken = {}
    for count in (few, many):
        people(count)
        taken[count] = statistics.median(timed(services.expire_everyone) for _ in range(rounds))
    say(f"\n`expire_everyone`, {many:,} users / {few:,} users: {taken[many] / taken[few]:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller numbers, a minute")
    quick = parser.parse_args().quick
    call_command("migrate", verbosity=0)
    versions = f"Python {platform.python_version()}, Django {django.__version__}, SQLite"
    say(f"{versions}, {os.cpu_count()} cores.")
    idle(pairs=41 if quick else 401, times=25)
    flagging(2_000 if quick else 20_000, rounds=3)
    memory(2_000 if quick else 20_000)
    everyone(200, 20_000 if quick else 200_000, rounds=5)


if __name__ == "__main__":
    main()

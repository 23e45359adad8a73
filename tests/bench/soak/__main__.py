"""A site under load for as long as you like, each answer checked against a model: ``--help``.

Visitors log in, look, change and log out; operators expire one, many and all, and cancel; workers
are forked and replaced, the database crashes. Needs the extras test and bench, the binaries of
PostgreSQL, of which it starts a cluster of its own, and Linux.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.bench import record
from tests.bench.measure import say
from tests.bench.targets import Figure, as_row
from tests.clusters import HOST, PostgresCluster

SETTINGS = "tests.bench.soak.settings"
BYSTANDERS = 10
NAME = "soak"


def arguments() -> argparse.Namespace:
    said = (__doc__ or "").partition("\n\n")[2]
    parser = argparse.ArgumentParser(prog="python -m tests.bench.soak", description=said)
    add = parser.add_argument
    servers = ["gthread", "gevent", "uvicorn"]
    add("--server", nargs="+", choices=servers, default=servers, help="one after the other")
    add("--minutes", type=float, default=60, help="for each server (60)")
    add("--users", type=int, default=2_000, help="visitors (2,000)")
    add("--rate", type=float, default=80, help="requests a second of all visitors (80)")
    add("--threads", type=int, default=6, help="visitors who ask at the same time (6)")
    add("--json", type=Path, metavar="FILE", help="where the run is written; build/ by default")
    options = parser.parse_args()
    needed = {"gthread": ["gunicorn"], "gevent": ["gunicorn", "gevent"], "uvicorn": ["uvicorn"]}
    packages = {"httpx", "psycopg", *(one for name in options.server for one in needed[name])}
    absent = sorted(name for name in packages if find_spec(name) is None)
    if absent:
        parser.error(f'{", ".join(absent)} not found: pip install -e ".[test,bench]"')
    return options


def prepare(users: int) -> list[Any]:
    from django.contrib.auth import get_user_model
    from django.contrib.auth.hashers import make_password
    from django.core.management import call_command

    from tests.bench.soak.model import Visitor

    call_command("migrate", verbosity=0)
    call_command("pwexpire", "reindex", stdout=io.StringIO())
    model = get_user_model()
    same = make_password("first")
    made = model.objects.bulk_create(
        model(username=f"visitor{n}", password=same) for n in range(users + BYSTANDERS)
    )
    return [Visitor(user.pk, user.username, ["first"]) for user in made]


def tables(operator: Any) -> list[tuple[str, int, int]]:
    """Name of a table, its rows, and how many there may be by its rule, after a prune."""
    from django.contrib.auth import get_user_model
    from django.contrib.sessions.models import Session

    from pwexpire import models

    now = time.monotonic()
    model, visitors = operator.model, operator.visitors
    open_ones = sum(model.may_hold(one, now, now) for one in visitors)
    users = get_user_model().objects.count()
    most = {
        models.EnforcementState: 1,
        models.ExpiryBatch: operator.started,
        models.Demand: open_ones,
        models.ExpiryChunk: 0,
        models.Exclusion: 0,
        models.Cancellation: operator.cancellations,
        models.PasswordRecord: users,
        models.OldPassword: 0,
        models.Notice: 0,
        models.SessionEntry: Session.objects.count(),
    }
    return [(one.__name__, one.objects.count(), rows) for one, rows in most.items()]


def differing(operator: Any) -> int:
    """Users of whom ``password_status`` does not say what the model does."""
    from django.contrib.auth import get_user_model

    from pwexpire import services

    model, now, wrong = operator.model, time.monotonic(), 0
    users = get_user_model().objects.in_bulk([one.pk for one in operator.visitors])
    for one in operator.visitors:
        held = services.password_status(users[one.pk]).must_change
        if (held and not model.may_hold(one, now, now)) or (
            not held and model.must_hold(one, now, now, 0)
        ):
            wrong += 1
    return wrong


def growth(samples: list[tuple[float, int, float]], begin: float, end: float) -> tuple[float, ...]:
    """Of the worker that grew most: its memory in the last tenth over the first; and both.

    Workers that were there in both are compared: their mean of each tenth.
    """
    tenth = (end - begin) / 10
    first: dict[int, list[float]] = {}
    last: dict[int, list[float]] = {}
    for moment, pid, mib in samples:
        if begin <= moment < begin + tenth:
            first.setdefault(pid, []).append(mib)
        elif end - tenth <= moment < end:
            last.setdefault(pid, []).append(mib)
    pairs = [
        (statistics.mean(last[pid]), statistics.mean(first[pid])) for pid in first if pid in last
    ]
    return max(((after / before, before, after) for after, before in pairs), default=(0, 0, 0))


def play(name: str, options: argparse.Namespace, cluster: PostgresCluster, log: Path) -> list[Any]:
    from django.db import connection

    from pwexpire.conf import conf
    from tests.bench.soak.model import Model
    from tests.bench.soak.operator import MEMORY_FROM, MEMORY_TO, Operator, Sampler
    from tests.bench.soak.servers import serving
    from tests.bench.soak.visitors import Browser, Load, Stopwatch

    connection.close()
    cluster.sql(f"DROP DATABASE IF EXISTS {NAME} WITH (FORCE)")
    cluster.sql(f"CREATE DATABASE {NAME}")
    everybody = prepare(options.users)
    visitors, bystanders = everybody[BYSTANDERS:], everybody[:BYSTANDERS]
    model = Model(conf.poll_seconds)
    with ExitStack() as stack:
        enter = stack.enter_context
        warm = bystanders[0].sessions[0]
        without = enter(serving(name, 1, log, ours=False, warm=""))
        form = {"username": bystanders[0].name, "password": "first"}
        Browser(without.url).ask(warm, "/login/", form)
        site = enter(serving(name, 2, log, ours=True, warm=warm.key))
        beside = enter(serving(name, 1, log, ours=True, warm=""))
        pause = options.threads / options.rate
        shares = [visitors[n :: options.threads] for n in range(options.threads)]
        loads = [Load(site.url, model, share, pause) for share in shares]
        urls = {"with": beside.url, "without": without.url}
        stopwatch = Stopwatch(urls, site.url, model, bystanders)
        sampler = Sampler({"with": site, "without": without})
        operator = Operator(model, loads, site, cluster)
        threads = [*loads, stopwatch, sampler]
        for thread in threads:
            thread.start()
        seconds = options.minutes * 60
        say(f"{name}: {options.users:,} users, {options.minutes:g} minutes")
        began = time.monotonic()
        try:
            operator.play(seconds)
        finally:
            for thread in threads:
                thread.ended.set()
            for thread in threads:
                thread.join(60)
        if stopwatch.fault:
            raise stopwatch.fault
        operator.resume()
        operator.prune()
        window = (began + MEMORY_FROM * seconds, began + MEMORY_TO * seconds)
        memory = {side: growth(found, *window) for side, found in sampler.samples.items()}
        figures = list(collect(name, operator, stopwatch.seconds, memory))
    for example in model.examples:
        print(f"{name}: {example}")
    return [as_row(one, "postgresql") for one in figures]


def collect(name: str, operator: Any, seconds: dict[str, Any], memory: dict[str, Any]) -> Any:
    model, counts = operator.model, operator.model.counts

    def figure(key: str, what: str, value: Any, limit: float | None = None, **more: Any) -> Figure:
        return Figure(f"{name}: {what}", value, limit, key=key, of=name, **more)

    for what in (
        "passed though expired",
        "held though free",
        "logged out though nothing was done",
        "errors, redeploy",
        "errors, else",
        "changes that were refused",
        "logins that failed",
    ):
        yield figure(f"soak {what}", what, counts[what], 0)
    for what in (
        "errors, outage",
        "passed in an outage",
        "held in an outage though free",
    ):
        yield figure(f"soak {what}", what, counts[what])
    what = "users of whom `password_status` says something else than the model"
    yield figure("soak status", what, differing(operator), 0)
    what = "the last request that still passed, after the expiry"
    yield figure("soak late", what, model.late, model.poll, unit="s")
    for what in sorted(counts):
        if what.startswith(("answers", "did")) or what in ("logins", "logouts", "changes"):
            yield figure(f"soak {what}", what, counts[what])
    grown, first, last = memory["with"]
    other = ("the server without, for its own requests", memory["without"][0])
    what = "memory of a worker, the last tenth / the first"
    yield figure("soak memory", what, grown or None, 1.05, unit="times", beside=other)
    yield figure("soak first", "memory of that worker, the first tenth", first, unit="MiB")
    yield figure("soak last", "memory of that worker, the last tenth", last, unit="MiB")
    for part, what in ((49, "p50"), (98, "p99")):
        found = {
            side: statistics.quantiles(values, n=100)[part] * 1000 if len(values) > 100 else None
            for side, values in seconds.items()
        }
        other = ("without the middleware, in ms", found["without"]) if found["without"] else None
        said = f"latency, {what} of {len(seconds['with']):,} requests"
        yield figure(f"soak {what}", said, found["with"], unit="ms", beside=other)
    for table, rows, most in tables(operator):
        yield figure(f"soak rows {table}", f"rows in `{table}`", rows, most)


def main() -> None:
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("The run was ended."))
    names = ("server", "minutes", "users", "rate", "threads")
    made = record.header({name: getattr(options, name) for name in names})
    with tempfile.TemporaryDirectory() as folder, PostgresCluster() as cluster:
        cluster.configure(max_connections="100")
        cluster.restart()
        os.environ |= {
            "DJANGO_SETTINGS_MODULE": SETTINGS,
            "PWEXPIRE_BENCH_ON": "postgresql",
            "PWEXPIRE_BENCH_NAME": NAME,
            "PWEXPIRE_TEST_HOST": HOST,
            "PWEXPIRE_TEST_PORT": str(cluster.port),
            "PWEXPIRE_TEST_USER": "postgres",
        }
        import django

        django.setup()
        for name in options.server:
            log = Path(folder) / f"{name}.log"
            try:
                made["figures"] += play(name, options, cluster, log)
            finally:
                lines = log.read_text().splitlines() if log.exists() else []
                print("\n".join(lines[-40:]), file=sys.stderr)
        from django.db import connection

        connection.ensure_connection()
        version = connection.pg_version
        made["versions"]["PostgreSQL"] = f"{version // 10_000}.{version % 10_000}"
        connection.close()
    day = made["date"].replace(":", "").partition("+")[0]
    path = options.json or Path("build") / f"soak-{day}.json"
    record.write(made, path)
    print(record.measured_wanted_met(made["figures"]))
    print(f"\nWritten to {path}.")
    if any(row["met"] not in (None, "yes") for row in made["figures"]):
        sys.exit("Not everything is as it should be: see above.")


if __name__ == "__main__":
    main()

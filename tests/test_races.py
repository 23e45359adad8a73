"""Eight processes at one database; the logs and what is left are judged afterwards."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.races import verdicts

ROOT = Path(__file__).resolve().parent.parent
SECONDS = float(os.environ.get("PWEXPIRE_TEST_SECONDS", "5"))
STARTUP_SECONDS = 240
DRIVERS = {"postgresql": "psycopg", "mariadb": "pymysql", "redis": "redis"}
# Decisive cases for each second that there have to be; a busy machine has a fifth of the usual.
# Where there are fewer, as on sites whose transactions give way to each other, comes another round.
ROUNDS_MAX = 8
LAWS = {
    "held": 2,
    "cart": 4,
    "cart at the end": 1,
    "flagged": 0.2,
    "in force": 1,
    "expiry date": 1,
    "ended row": 0.2,
    "released": 0.2,
    "logged out": 0.2,
}
SITES = {
    "autocommit": {},
    "atomic": {"PWEXPIRE_RACES_ATOMIC": "1"},
    "read committed": {"PWEXPIRE_RACES_ISOLATION": "read committed"},
    "repeatable read": {"PWEXPIRE_RACES_ISOLATION": "repeatable read"},
    "serializable": {"PWEXPIRE_RACES_ISOLATION": "serializable"},
    "atomic serializable": {
        "PWEXPIRE_RACES_ATOMIC": "1",
        "PWEXPIRE_RACES_ISOLATION": "serializable",
    },
}


def run(place, *, on, engine="db", **more):
    for name in on.split("+"):
        pytest.importorskip(DRIVERS[name])
    place.mkdir()
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.races.settings",
        "PWEXPIRE_TEST_ON": on,
        "PWEXPIRE_TEST_ENGINE": f"django.contrib.sessions.backends.{engine}",
        "PWEXPIRE_TEST_SESSIONS": str(place),
        "PWEXPIRE_TEST_NAME": f"pwexpire_races_{os.getpid()}",
        "PWEXPIRE_TEST_PREFIX": f"pwexpire-races-{os.getpid()}",
        "PYTHONPATH": str(ROOT),
        **more,
    }
    call = [sys.executable, "-m", "tests.races", str(place)]
    keywords = {"env": environment, "cwd": ROOT, "capture_output": True, "text": True}
    seed = str(random.randrange(2**20))
    try:
        done = subprocess.run(
            [*call, str(SECONDS), seed], timeout=SECONDS + STARTUP_SECONDS, **keywords
        )
    except subprocess.TimeoutExpired:
        subprocess.run([*call, "0", "0"], timeout=60, **keywords)
        raise
    crashes = [file.read_text() for file in sorted(place.glob("crash-*.txt"))]
    assert not crashes, "\n".join(crashes)
    assert done.returncode == 0, done.stderr
    return verdicts.judge(*verdicts.read(place))


def missing(decisive):
    return {law: decisive[law] for law, rate in LAWS.items() if decisive[law] < rate * SECONDS}


def check(place, **site):
    """Each round has to keep every law; together they have to be decisive."""
    decisive = Counter()
    for number in range(ROUNDS_MAX):
        verdict = run(place / str(number), **site)
        keeps(verdict)
        decisive.update(verdict.decisive)
        if not missing(decisive):
            return
    raise AssertionError(f"too few decisive cases: {missing(decisive)}")


def keeps(verdict):
    for name, count in sorted(verdict.outcomes.items()):
        sys.stdout.write(f"{count:7} {name}\n")
    sys.stdout.write(f"decisive: {dict(verdict.decisive)}\n")
    said = [
        f"{law}: {len(found)} of {verdict.decisive[law]}, first {found[0]}"
        for law, found in verdict.violations.items()
    ]
    assert not said, "\n\n".join(said)
    assert verdict.outcomes["finished ok"] == 8


@pytest.mark.needs("postgresql")
@pytest.mark.parametrize("site", [name for name in SITES if name != "read committed"])
def test_postgresql(tmp_path, site):
    check(tmp_path, on="postgresql", **SITES[site])


@pytest.mark.needs("mariadb")
@pytest.mark.parametrize("site", list(SITES))
def test_mariadb(tmp_path, site):
    check(tmp_path, on="mariadb", **SITES[site])


@pytest.mark.needs("redis")
@pytest.mark.parametrize(
    "database",
    [
        pytest.param("postgresql", marks=pytest.mark.needs("postgresql")),
        pytest.param("mariadb", marks=pytest.mark.needs("mariadb")),
    ],
)
def test_cached_sessions(tmp_path, database):
    check(tmp_path, on=f"{database}+redis", engine="cached_db")

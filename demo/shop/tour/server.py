"""The server that the tour talks to: a process of its own on a free port, and always stopped."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from django.conf import settings
from django.core.management import call_command
from django.db import connection

from shop.seed import seed
from shop.tour.browser import TourError

WAIT = 60.0
ATTEMPTS = 3


def make_database(path: Path) -> None:
    """From here on this process, too, uses the database at ``path``."""
    connection.close()
    settings.DATABASES["default"]["NAME"] = str(path)
    connection.settings_dict["NAME"] = str(path)
    call_command("migrate", verbosity=0, interactive=False)
    seed()
    connection.close()


def mails_of(database: Path) -> Path:
    """The folder that the server on this database writes its mails to."""
    return database.with_suffix(".mails")


def copy_database(path: Path, to: Path) -> None:
    connection.close()
    shutil.copyfile(path, to)


@contextmanager
def serve(database: Path, *, expire_on_lockout: bool = True) -> Iterator[str]:
    """The URL of a server on that database."""
    log = database.with_suffix(".log")
    child, url = _start(database, log, expire_on_lockout)
    try:
        yield url
    finally:
        _stop(child)


def _start(
    database: Path, log: Path, expire_on_lockout: bool
) -> tuple[subprocess.Popen[bytes], str]:
    environment = {
        **os.environ,
        "DEMO_DATABASE": str(database),
        "DEMO_EXPIRE_ON_LOCKOUT": "1" if expire_on_lockout else "0",
        "DEMO_MAILS": str(mails_of(database)),
        "PYTHONUNBUFFERED": "1",
    }
    for _ in range(ATTEMPTS):
        address = f"127.0.0.1:{_free_port()}"
        command = [sys.executable, str(settings.BASE_DIR / "manage.py")]
        with log.open("wb") as out:
            child = subprocess.Popen(
                [*command, "runserver", "--noreload", address],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        try:
            if _answers(child, f"http://{address}/"):
                return child, f"http://{address}"
        except BaseException:
            _stop(child)
            raise
        _stop(child)
    tail = log.read_text(errors="replace")[-2000:]
    raise TourError(f"The server does not start:\n{tail}")


def _answers(child: subprocess.Popen[bytes], url: str) -> bool:
    until = time.monotonic() + WAIT
    while time.monotonic() < until and child.poll() is None:
        try:
            httpx.get(url, trust_env=False, timeout=5)
        except httpx.HTTPError:
            time.sleep(0.1)
        else:
            return child.poll() is None
    return False


def _stop(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.terminate()
    try:
        child.wait(timeout=10)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

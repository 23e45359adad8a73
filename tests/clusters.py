"""Servers that the tests may break: each in a directory and on a port of its own."""

from __future__ import annotations

import errno
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, Self

import pytest

HOST = "127.0.0.1"
SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "shared_buffers": "16MB",
    "max_connections": "30",
}


def missing(said: str) -> NoReturn:
    (pytest.fail if os.environ.get("PWEXPIRE_TEST_REQUIRE") == "1" else pytest.skip)(said)


def free_port() -> int:
    with socket.socket() as free:
        free.bind((HOST, 0))
        return int(free.getsockname()[1])


def until(holds: Callable[[], object], seconds: float = 10, pause: float = 0.02) -> Any:
    """Wait for something to come true, and return what it said."""
    end = time.monotonic() + seconds
    while not (said := holds()):
        if time.monotonic() > end:
            pytest.fail(f"not so within {seconds} s")
        time.sleep(pause)
    return said


class PostgresCluster:
    """PostgreSQL that may be crashed, made read-only and followed by a standby."""

    def __init__(self) -> None:
        try:
            import psycopg
        except ImportError:
            missing("The Python package psycopg is not there.")
        self.psycopg = psycopg
        places = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_version, reverse=True)]
        places += [Path(found).resolve().parent for found in [shutil.which("initdb")] if found]
        self.bin = next((place for place in places if (place / "initdb").exists()), None)
        if self.bin is None:
            missing("The binaries of PostgreSQL are not there (initdb, pg_ctl).")
        self.runs_as: dict[str, Any] = {}
        if os.geteuid() == 0:  # as which neither initdb nor the server runs
            try:
                account = pwd.getpwnam("postgres")
            except KeyError:
                missing("PostgreSQL does not run as root, and there is no user postgres.")
            own = {"user": account.pw_uid, "group": account.pw_gid}
            self.runs_as = {**own, "extra_groups": []}
        self.port = free_port()
        self.standbys: list[PostgresCluster] = []
        self.home = Path(tempfile.mkdtemp(prefix="pwexpire-postgres-", dir=_open_to_all()))
        self.data = self.home / "data"
        if self.runs_as:
            shutil.chown(self.home, **own)

    def __enter__(self) -> Self:
        try:
            self.run("initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "-N")
            self.configure(**SETTINGS, port=str(self.port))
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *args: object) -> None:
        self.remove()

    def remove(self) -> None:
        for standby in self.standbys:
            standby.remove()
        with suppress(subprocess.CalledProcessError):
            self.stop()
        shutil.rmtree(self.home)

    def run(self, binary: str, *args: object) -> None:
        with open(self.home / "log", "a") as log:
            subprocess.run(
                [str(self.bin / binary), *map(str, args)],
                cwd=self.home,
                stdout=log,
                stderr=log,
                check=True,
                **self.runs_as,
            )

    def configure(self, **settings: str) -> None:
        with open(self.data / "postgresql.auto.conf", "a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())

    def start(self) -> None:
        self.run("pg_ctl", "-D", self.data, "-l", self.data / "server.log", "-w", "start")

    def stop(self) -> None:
        """As a crash would: nothing is written, every connection is cut."""
        self.run("pg_ctl", "-D", self.data, "-m", "immediate", "-w", "stop")

    def restart(self) -> None:
        self.stop()
        self.start()

    def connect(self, name: str = "postgres", **options: str) -> Any:
        said = " ".join(f"-c {option}={value}" for option, value in options.items())
        return self.psycopg.connect(
            host=HOST, port=self.port, user="postgres", dbname=name, autocommit=True, options=said
        )

    def sql(self, statement: str, name: str = "postgres") -> list[tuple[Any, ...]]:
        with self.connect(name, default_transaction_read_only="off") as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def read_only(self, on: bool) -> None:
        self.sql(f"ALTER SYSTEM SET default_transaction_read_only = {'on' if on else 'off'}")
        self.sql("SELECT pg_reload_conf()")

        until(lambda: self.is_read_only() is on)

    def is_read_only(self) -> bool:
        with self.connect() as connection:
            said = connection.execute("SHOW default_transaction_read_only").fetchone()
        return bool(said == ("on",))

    def standby(self, delay: str = "10s") -> PostgresCluster:
        """A hot standby that hears of every commit so much later."""
        other = PostgresCluster()
        self.standbys.append(other)
        source = ("-h", HOST, "-p", self.port, "-U", "postgres")
        other.run("pg_basebackup", *source, "-D", other.data, "-R", "-X", "stream", "-c", "fast")
        other.configure(port=str(other.port), hot_standby="on", recovery_min_apply_delay=delay)
        other.start()
        return other

    def entry(self, name: str) -> dict[str, Any]:
        """An entry of ``DATABASES``."""
        return {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": name,
            "HOST": HOST,
            "PORT": self.port,
            "USER": "postgres",
        }


class RedisServer:
    """Redis that may be killed; what was written is there again after a start."""

    def __init__(self) -> None:
        self.binary = shutil.which("redis-server")
        if self.binary is None:
            missing("redis-server is not there.")
        try:
            import redis
        except ImportError:
            missing("The Python package redis is not there.")
        self.port = free_port()
        self.client = redis.Redis(host=HOST, port=self.port)
        self.home = tempfile.mkdtemp(prefix="pwexpire-redis-")
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *args: object) -> None:
        self.stop()
        self.client.close()
        shutil.rmtree(self.home)

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}/0"

    def start(self) -> None:
        given = {"port": self.port, "bind": HOST, "dir": self.home, "save": "", "appendonly": "yes"}
        words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen([self.binary, *words], stdout=quiet, stderr=quiet)
        until(self._answers)

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except Exception:
            self.client.close()
            return False

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def flush(self) -> None:
        self.client.flushall()


class SmallDisk:
    """A disk of 64 KiB."""

    def __init__(self, place: Path) -> None:
        self.place = place

    @contextmanager
    def mounted(self) -> Iterator[Self]:
        self.place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(self.place)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            missing("A small disk cannot be mounted here: it takes root on Linux.")
        try:
            yield self
        finally:
            subprocess.run(["umount", "-l", str(self.place)], check=True)

    def fill(self, *, leave: int = 0) -> None:
        """To the last byte, but for ``leave`` of them."""
        with open(self.place / "filler", "wb", buffering=0) as filler:
            try:
                while True:
                    filler.write(b"x" * 512)
            except OSError as error:
                assert error.errno == errno.ENOSPC
            filler.truncate(filler.tell() - leave)

    def free(self) -> None:
        (self.place / "filler").unlink()


def _version(place: Path) -> float:
    try:
        return float(place.parent.name)
    except ValueError:
        return 0.0


def _open_to_all() -> str:
    """A directory for temporary files that another user can get at as well."""
    places = [Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp")]
    for place in places:
        steps = [place, *place.parents]
        if place.is_dir() and all(step.stat().st_mode & 0o001 for step in steps):
            return str(place)
    return str(places[0])

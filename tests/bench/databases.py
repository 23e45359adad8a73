"""The databases that are measured on: made, kept, brought back and dropped."""

from __future__ import annotations

import os
import shutil
from functools import cache
from pathlib import Path

from django.core.management import call_command
from django.db import connection

from pwexpire.feed import feed

WORK = "work"


class Databases:
    """Several databases side by side; one of them is connected to at a time."""

    def __init__(self) -> None:
        self.base = str(connection.settings_dict["NAME"])
        self.made: set[str] = set()
        self.now = ""

    def place(self, name: str) -> str:
        """What the database server, or the file system, knows it by."""
        raise NotImplementedError

    def version(self) -> str:
        raise NotImplementedError

    def create(self, name: str) -> None:
        raise NotImplementedError

    def copy(self, source: str, target: str) -> None:
        raise NotImplementedError

    def remove(self, name: str) -> None:
        raise NotImplementedError

    def settle(self) -> None:
        """Finish what the database puts off, so that it is not done in a measured moment."""

    def make(self) -> None:
        """Connect to a new one with empty tables."""
        self.disconnect()
        self.drop(WORK)
        self.create(WORK)
        self.made.add(WORK)
        self.use(WORK)
        call_command("migrate", verbosity=0)

    def keep(self, name: str) -> str:
        """Keep the data as they are now under another name."""
        self.settle()
        self.disconnect()
        self.drop(name)
        self.copy(self.now, name)
        self.made.add(name)
        self.use(self.now)
        return name

    def restore(self, kept: str) -> None:
        """Bring the same bytes back, so that each measured run meets the same data."""
        self.disconnect()
        self.drop(WORK)
        self.copy(kept, WORK)
        self.made.add(WORK)
        self.use(WORK)

    def use(self, name: str) -> None:
        """Connect to it, as a process that has just begun; what is done there stays."""
        self.disconnect()
        connection.settings_dict["NAME"] = self.place(name)
        self.now = name
        feed.reset()
        connection.introspection.table_names()  # connecting is not measured

    def disconnect(self) -> None:
        connection.close()

    def drop(self, name: str) -> None:
        if name in self.made:
            self.remove(name)
            self.made.discard(name)

    def drop_all(self) -> None:
        self.disconnect()
        for name in sorted(self.made):
            self.drop(name)


class Sqlite(Databases):
    def place(self, name: str) -> str:
        return str(Path(self.base).with_name(f"{name}.sqlite3"))

    def version(self) -> str:
        return f"SQLite {'.'.join(map(str, connection.Database.sqlite_version_info))}"

    def create(self, name: str) -> None:
        """Connecting does."""

    def copy(self, source: str, target: str) -> None:
        shutil.copyfile(self.place(source), self.place(target))
        # Else the first commit that is measured waits for the whole file.
        with open(self.place(target), "rb+") as file:
            os.fsync(file.fileno())

    def remove(self, name: str) -> None:
        Path(self.place(name)).unlink(missing_ok=True)


class Postgresql(Databases):
    def place(self, name: str) -> str:
        return f"{self.base}_{name}"

    def version(self) -> str:
        number = connection.pg_version
        return f"PostgreSQL {number // 10_000}.{number % 10_000}"

    def create(self, name: str) -> None:
        self._run(f"CREATE DATABASE {self._quoted(name)}")

    def copy(self, source: str, target: str) -> None:
        how = ""
        with connection._nodb_cursor() as cursor:
            if cursor.connection.info.server_version >= 150_000:
                how = " STRATEGY FILE_COPY"
        named = self._quoted(target)
        self._run(f"CREATE DATABASE {named} TEMPLATE {self._quoted(source)}{how}")

    def remove(self, name: str) -> None:
        self._run(f"DROP DATABASE IF EXISTS {self._quoted(name)} WITH (FORCE)")

    def settle(self) -> None:
        with connection.cursor() as cursor:
            cursor.execute("VACUUM (FREEZE, ANALYZE)")

    def use(self, name: str) -> None:
        super().use(name)
        if name == WORK:
            with connection.cursor() as cursor:
                cursor.execute("CHECKPOINT")

    def make(self) -> None:
        super().make()
        # A vacuum that begins by itself would meet one side and not the other.
        with connection.cursor() as cursor:
            for table in connection.introspection.table_names(cursor):
                named = connection.ops.quote_name(table)
                cursor.execute(f"ALTER TABLE {named} SET (autovacuum_enabled = false)")

    def _quoted(self, name: str) -> str:
        return str(connection.ops.quote_name(self.place(name)))

    def _run(self, sql: str) -> None:
        with connection._nodb_cursor() as cursor:
            cursor.execute(sql)


@cache
def databases() -> Databases:
    return Postgresql() if connection.vendor == "postgresql" else Sqlite()

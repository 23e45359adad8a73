"""Engines without rows: cache, file, signed cookies."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

from django.core.exceptions import SuspiciousOperation
from django.utils import timezone

from pwexpire.sessionstore.base import Outcome, SessionAdapter, StoredSession


class CacheAdapter(SessionAdapter):
    """Django's cache API reads no remaining life, so nothing is written into these sessions."""

    def alive(self, keys: Collection[str]) -> set[str]:
        store: Any = self.store_class()
        prefix = store.cache_key_prefix
        found = store._cache.get_many([prefix + key for key in keys])
        return {key for key in keys if prefix + key in found}


class FileAdapter(SessionAdapter):
    """A file's age is its last change, so nothing is written into these sessions."""

    supports_enumerate = True

    def sessions(
        self, *, after: str = "", last: str = "", chunk: int = 1000
    ) -> Iterator[StoredSession]:
        for key in self._list_keys(after):
            if last and key > last:
                return
            if (row := self._read_file(key)) is not None and _is_live(row):
                yield row

    def last_key(self, after: str, count: int) -> str | None:
        keys = self._list_keys(after)
        return keys[count - 1] if len(keys) >= count else None

    def _list_keys(self, after: str) -> list[str]:
        store: Any = self.store_class()
        prefix = store.file_prefix
        names = (entry.name for entry in os.scandir(store.storage_path))
        keys = (name.removeprefix(prefix) for name in names if name.startswith(prefix))
        return sorted(key for key in keys if key > after)

    def alive(self, keys: Collection[str]) -> set[str]:
        return {key for key in keys if (row := self._read_file(key)) is not None and _is_live(row)}

    def _end_one(self, key: str, user_id: str) -> Outcome:
        row = self._read_file(key)
        if row is None:
            return Outcome.FAILED if self.store_class().exists(key) else Outcome.GONE
        if row.user_id != user_id:
            return Outcome.GONE
        # Only after the owner was compared: a key can be another user's by now.
        self.store_class().delete(key)
        return Outcome.ENDED

    def _read_file(self, key: str) -> StoredSession | None:
        """Read a file, but not through ``load()``, which deletes and creates."""
        store: Any = self.store_class(key)
        try:
            with open(store._key_to_file(), encoding="ascii") as stream:
                data = store.decode(stream.read())
            return StoredSession.of(key, data, _find_expiry(store, data))
        except (OSError, SuspiciousOperation, TypeError, ValueError):
            return None


def _find_expiry(store: Any, data: dict[str, Any]) -> datetime | None:
    """Return the expiry that ``load()`` computes; ``None`` if it serves it for ever, or raises."""
    try:
        expiry = store._expiry_date(data)
        if isinstance(expiry, str):
            expiry = datetime.fromisoformat(expiry)
        age = store.get_expiry_age(expiry=expiry)
        if isinstance(expiry, datetime):
            return expiry
        # A number of seconds counts from each look, so only what is not positive ends.
        return None if age > 0 else store._last_modification() + timedelta(seconds=age)
    except (OverflowError, TypeError, ValueError):
        return None


def _is_live(row: StoredSession) -> bool:
    return row.expires is None or row.expires > timezone.now()


class CookieAdapter(SessionAdapter):
    """Signed cookies: the session is at the client, nothing of it can be reached."""

    supports_end = False
    supports_index = False

    def end(self, wanted: Mapping[str, str], *, trace: bool = False) -> Counter[Outcome]:
        return Counter({Outcome.UNSUPPORTED: len(wanted)})

    def alive(self, keys: Collection[str]) -> set[str]:
        return set(keys)

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
        self, *, after: str = "", chunk: int = 1000, live_only: bool = True
    ) -> Iterator[StoredSession]:
        store: Any = self.store_class()
        prefix = store.file_prefix
        names = sorted(
            entry.name.removeprefix(prefix)
            for entry in os.scandir(store.storage_path)
            if entry.name.startswith(prefix)
        )
        for key in names:
            if key > after and (row := self._read(key)) is not None:
                if not live_only or row.expires is None or row.expires > timezone.now():
                    yield row

    def _read(self, key: str) -> StoredSession | None:
        """Not through ``load()``, which deletes and creates."""
        store: Any = self.store_class(key)
        try:
            with open(store._key_to_file(), encoding="ascii") as stream:
                data = store.decode(stream.read())
            modified = store._last_modification()
        except (OSError, ValueError, SuspiciousOperation):
            return None
        expiry = data.get("_session_expiry", store.get_session_cookie_age())
        if isinstance(expiry, str):
            return StoredSession.of(key, data, datetime.fromisoformat(expiry))
        return StoredSession.of(key, data, _aware(modified) + timedelta(seconds=expiry))


def _aware(value: datetime) -> datetime:
    return timezone.make_aware(value) if timezone.is_naive(value) else value


class CookieAdapter(SessionAdapter):
    """Signed cookies: the session is at the client, nothing of it can be reached."""

    supports_end = False
    supports_index = False

    def end(self, wanted: Mapping[str, str]) -> Counter[Outcome]:
        return Counter({Outcome.UNSUPPORTED: len(wanted)})

    def alive(self, keys: Collection[str]) -> set[str]:
        return set(keys)

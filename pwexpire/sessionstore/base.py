"""What a session engine can do from outside a request; a plain engine can do little."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from django.contrib.auth import SESSION_KEY
from django.contrib.sessions.backends.base import CreateError, SessionBase
from django.utils.crypto import salted_hmac

from pwexpire.constants import SESSION_DEMAND, SESSION_ENDED, SESSION_FLAG

logger = logging.getLogger("pwexpire")


class Outcome(StrEnum):
    FLAGGED = "flagged"
    ALREADY = "already"
    GONE = "gone"
    CONFLICT = "conflict"
    UNSUPPORTED = "unsupported"
    FAILED = "failed"
    ENDED = "ended"
    CLEARED = "cleared"


# Session key -> whose it has to be, and the demand (None: a flag as set by hand).
Wanted = Mapping[str, tuple[str, int | None]]


@dataclass(frozen=True, kw_only=True)
class StoredSession:
    key: str
    user_id: str | None
    flagged: bool
    demand: int | None
    expires: datetime | None

    @classmethod
    def of(cls, key: str, data: Mapping[str, Any], expires: datetime | None) -> StoredSession:
        return cls(
            key=key,
            user_id=data.get(SESSION_KEY),
            flagged=bool(data.get(SESSION_FLAG)),
            demand=data.get(SESSION_DEMAND),
            expires=expires,
        )


def peek(session: SessionBase) -> dict[str, Any]:
    """The data of a session, neither accessed nor modified by this; ``{}`` if it is not loaded."""
    data: dict[str, Any] = getattr(session, "_session_cache", {})
    return data


def set_in_memory(session: SessionBase, key: str, value: Any) -> None:
    """For this request only: a save by somebody else takes it along, none is caused."""
    peek(session)[key] = value


def drop_in_memory(session: SessionBase, key: str) -> None:
    peek(session).pop(key, None)


def shorten(key: str) -> str:
    """A key is a credential; this much of it may be shown."""
    return f"{key[:6]}…"


def is_forbidden_query(error: Exception) -> bool:
    """Raised by a test suite, not by an outage: by Django's own, or by pytest-django."""
    return isinstance(error, AssertionError) or type(error) is RuntimeError


# How long a browser can be told that its session was ended because the password was withdrawn.
TRACE_KEPT = timedelta(days=7)


def derive_trace_key(key: str) -> str:
    """The key of the session that stands for one that was ended; nobody can make it from outside.

    Under the old key a running request could save its copy over it, and be logged in again.
    """
    return salted_hmac("pwexpire.ended", key, algorithm="sha256").hexdigest()[:32]


class SessionAdapter:
    """An engine with keys on the server and no more: sessions can be ended one by one."""

    supports_enumerate = False
    supports_flag = False
    supports_end = True
    supports_user_lookup = False
    supports_index = True
    # Whether its session keys are in the database anyway, so that an index gives nobody more.
    keeps_rows = False

    def __init__(self, store_class: type[SessionBase]) -> None:
        self.store_class = store_class
        self.name = store_class.__module__.removeprefix("django.contrib.sessions.backends.")

    def sessions(
        self, *, after: str = "", last: str = "", chunk: int = 1000
    ) -> Iterator[StoredSession]:
        """The live sessions after this key and up to that one, in the order of their keys."""
        return iter(())

    def last_key(self, after: str, count: int) -> str | None:
        """The last of the next ``count`` keys; ``None`` if there are fewer."""
        return None

    def keys_of(self, user_ids: Sequence[Any]) -> Iterator[list[tuple[str, str]]]:
        """Pages of (session key, user id) of live sessions, by the model's user column."""
        return iter(())

    def flag(self, wanted: Wanted) -> Counter[Outcome]:
        """Set the flag, touching nothing else and keeping the lifetime."""
        return Counter({Outcome.UNSUPPORTED: len(wanted)})

    def clear(self, wanted: Wanted) -> Counter[Outcome]:
        """Take away a flag that stands for the given demand or an older one."""
        return Counter({Outcome.UNSUPPORTED: len(wanted)})

    def end(self, wanted: Mapping[str, str], *, trace: bool = False) -> Counter[Outcome]:
        """Delete sessions, session key -> whose it has to be. ``trace``: leave one of each."""
        outcomes: Counter[Outcome] = Counter()
        for key, user_id in wanted.items():
            try:
                outcome = self._end_one(key, user_id)
                if trace and outcome is Outcome.ENDED:
                    self._leave_trace(key, user_id)
                outcomes[outcome] += 1
            except Exception as error:  # whatever the engine's backend raises
                if is_forbidden_query(error):
                    raise
                # Its text may hold the key: a file's name, a cache's "key too long".
                name = type(error).__name__
                logger.error("Session %s could not be ended: %s", shorten(key), name)
                outcomes[Outcome.FAILED] += 1
        return outcomes

    def _end_one(self, key: str, user_id: str) -> Outcome:
        if not self.store_class().exists(key):
            return Outcome.GONE
        store = self.store_class(key)
        if store.get(SESSION_KEY) != user_id:
            return Outcome.GONE
        store.delete(key)
        return Outcome.ENDED

    def _leave_trace(self, key: str, user_id: str) -> None:
        store: Any = self.store_class(derive_trace_key(key))
        store._session_cache = {SESSION_ENDED: user_id}
        store.set_expiry(TRACE_KEPT)
        with suppress(CreateError):  # left by a run that was killed after it
            store.save(must_create=True)

    def take_trace(self, key: str) -> str | None:
        """Whose the session was that had this key and was ended with a trace; asked once."""
        if not self.supports_end:
            return None
        store = self.store_class(derive_trace_key(key))
        user_id: str | None = store.get(SESSION_ENDED)
        if user_id is not None:
            store.delete()
        return user_id

    def alive(self, keys: Collection[str]) -> set[str]:
        """Those of ``keys`` that still exist."""
        store = self.store_class()
        return {key for key in keys if store.exists(key)}

"""Flagging many sessions, and expiring everybody, beside the obvious ways of doing it."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.sessions.backends.db import SessionStore
from django.contrib.sessions.models import Session
from django.db import connection, transaction
from django.utils import timezone

from pwexpire import services
from pwexpire.models import EnforcementState, SessionEntry
from tests.bench.measure import (
    CART,
    Spread,
    Timer,
    add_users,
    counted_queries,
    payload,
    restore,
    snapshot,
    timed,
)

User = get_user_model()
CHUNK = 500


def add_sessions() -> None:
    """One for each user; expiring at a moment that flagging has to leave alone."""
    store, until = SessionStore(), timezone.now() + timedelta(hours=1)
    users = User.objects.order_by("pk").iterator()
    while chunk := list(islice(users, CHUNK)):
        Session.objects.bulk_create(
            Session(
                session_key=f"{user.pk:032d}",
                session_data=store.encode(payload(user)),
                expire_date=until,
            )
            for user in chunk
        )


def index_sessions() -> None:
    """As logins leave the index behind."""
    now = timezone.now()
    users = User.objects.order_by("pk").values_list("pk", flat=True).iterator()
    while chunk := list(islice(users, CHUNK)):
        SessionEntry.objects.bulk_create(
            SessionEntry(session_key=f"{pk:032d}", user_id=pk, created_at=now) for pk in chunk
        )
    EnforcementState.objects.update_or_create(
        pk=1, defaults={"created_at": now, "index_complete": True}
    )


def flag() -> None:
    services.flag_sessions(User.objects.all())


def expire() -> None:
    services.expire_passwords(User.objects.all())


def loop() -> None:
    """What one writes without a library."""
    for key in list(Session.objects.values_list("session_key", flat=True)):
        store = SessionStore(key)
        store["password_expired"] = True
        store.save()


def loop_in_transaction() -> None:
    """The same, with the disk waited for once instead of once a session."""
    with transaction.atomic():
        loop()


def floor() -> None:
    """The least work there is: read, decode, encode, one batched write."""
    store, written = SessionStore(), []
    for key, data in Session.objects.values_list("session_key", "session_data").iterator():
        decoded = store.decode(data)
        decoded["password_expired"] = True
        written.append((store.encode(decoded), key, data))
    swap = "UPDATE django_session SET session_data=%s WHERE session_key=%s AND session_data=%s"
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.executemany(swap, written)


def codec() -> None:
    """The part of the floor that is Django's signing and compression."""
    store = SessionStore()
    for data in Session.objects.values_list("session_data", flat=True).iterator():
        store.encode(store.decode(data))


def check(kept: Path, *, keeps_expiry: bool) -> None:
    """A fast way that does the wrong thing is no measurement."""
    connection.close()
    rows = Session.objects.values_list("session_data", "expire_date")
    soon = timezone.now() + timedelta(hours=2)
    for data, until in rows.iterator():
        decoded = SessionStore().decode(data)
        if decoded.get("password_expired") is not True or decoded.get("cart") != CART:
            raise RuntimeError(f"{kept.name}: a session was not flagged, or lost its cart")
        if keeps_expiry and until > soon:
            raise RuntimeError(f"{kept.name}: the life of a session was changed")


def measure_flagging(count: int, rounds: int, start: Path) -> dict[str, Any]:
    restore(start)
    add_users(count)
    add_sessions()
    unknown = snapshot("sessions.sqlite3")
    index_sessions()
    indexed = snapshot("indexed.sqlite3")
    ways: dict[str, tuple[Callable[[], None], Path]] = {
        "flag": (flag, indexed),
        "first": (flag, unknown),
        "expire": (expire, indexed),
        "floor": (floor, indexed),
        "codec": (codec, indexed),
        "loop": (loop, indexed),
        "transaction": (loop_in_transaction, indexed),
    }
    taken: dict[str, list[Timer]] = {name: [] for name in ways}
    for turn in range(rounds):
        for name in reversed(ways) if turn % 2 else ways:
            work, kept = ways[name]
            restore(kept)
            taken[name].append(timed(work))
            if turn == 0 and name != "codec":
                check(kept, keeps_expiry=name in ("flag", "first", "expire", "floor"))

    def ratio(slow: str, fast: str) -> Spread:
        pairs = zip(taken[slow], taken[fast], strict=True)
        return Spread.of([one.wall / two.wall for one, two in pairs])

    restore(indexed)
    with counted_queries() as queries:
        flag()
    return {
        "sessions": count,
        "flag_faster_than_loop": ratio("loop", "flag"),
        "flag_faster_than_loop_in_transaction": ratio("transaction", "flag"),
        "first_flag_faster_than_loop": ratio("loop", "first"),
        "expire_faster_than_loop": ratio("loop", "expire"),
        "floor_faster_than_loop": ratio("loop", "floor"),
        "flag_over_floor": ratio("flag", "floor"),
        "expire_over_floor": ratio("expire", "floor"),
        "codec_share_of_floor": ratio("codec", "floor"),
        "flag_statements_per_1000": len(queries.seen) * 1000 / count,
    }


def measure_memory(few: int, many: int, start: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"few": few, "many": many}
    for name, work in (("flag", flag), ("expire", expire)):
        peaks = []
        for count in (few, many):
            restore(start)
            add_users(count)
            add_sessions()
            index_sessions()
            kept = snapshot("memory.sqlite3")
            work()  # imports and caches are not what grows
            restore(kept)
            tracemalloc.start()
            try:
                work()
                peaks.append(tracemalloc.get_traced_memory()[1] / 2**20)
            finally:
                tracemalloc.stop()
        found[f"{name}_mib"] = peaks
        found[f"{name}_ratio"] = peaks[1] / peaks[0]
    return found


def measure_everyone(few: int, many: int, rounds: int, start: Path) -> dict[str, Any]:
    kept, statements = {}, {}
    for count in (few, many):
        restore(start)
        add_users(count)
        kept[count] = snapshot(f"users-{count}.sqlite3")
        with counted_queries() as queries:
            services.expire_everyone()
        statements[count] = len(queries.seen)
    ratios = []
    for turn in range(rounds):
        taken = {}
        for count in (many, few) if turn % 2 else (few, many):
            restore(kept[count])
            taken[count] = timed(services.expire_everyone).wall
        ratios.append(taken[many] / taken[few])
    return {
        "few": few,
        "many": many,
        "ratio": Spread.of(ratios),
        "statements": [statements[few], statements[many]],
    }

"""Users, sessions and the index of a site that has been running for a while."""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY, get_user_model
from django.contrib.auth.hashers import make_password
from django.contrib.sessions.backends.db import SessionStore
from django.contrib.sessions.models import Session
from django.db import connection, transaction
from django.utils import timezone

from pwexpire.models import EnforcementState, SessionEntry
from tests.bench.databases import databases

PASSWORD = make_password("old-Password-1")
CART = [{"sku": f"item-{n}", "quantity": n, "price": "12.50"} for n in range(5)]
# Flagging has to leave alone when a session ends.
LIFETIME = timedelta(hours=1)
PAGE = 5_000

SERIES = (
    "WITH RECURSIVE series (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM series WHERE i < %s) SELECT"
)
USERS = (
    "INSERT INTO auth_user (id, password, is_superuser, username, first_name, last_name, email, "
    f"is_staff, is_active, date_joined) {SERIES} i, %s, false, 'user' || i, '', '', "
    "'user' || i || '@example.com', false, true, %s FROM series"
)
SESSIONS = (
    "INSERT INTO django_session (session_key, session_data, expire_date) "
    "SELECT MD5(CAST(id AS TEXT)), %s, %s FROM auth_user WHERE id %% %s = 0 AND id %% %s <> 0"
)
ENTRIES = (
    f"INSERT INTO {SessionEntry._meta.db_table} (session_key, user_id, created_at) "
    "SELECT MD5(CAST(id AS TEXT)), id, %s FROM auth_user WHERE id %% %s = 0"
)


def key_of(pk: int) -> str:
    """Without order, as session keys are."""
    return hashlib.md5(str(pk).encode()).hexdigest()


@cache
def auth_hash() -> str:
    """The same for all users, who have the same stored password."""
    return str(get_user_model()(password=PASSWORD).get_session_auth_hash())


def payload(pk: int) -> dict[str, Any]:
    """What a session of a small shop holds."""
    return {
        SESSION_KEY: str(pk),
        BACKEND_SESSION_KEY: "django.contrib.auth.backends.ModelBackend",
        HASH_SESSION_KEY: auth_hash(),
        "cart": CART,
        "language": "en",
    }


def execute(sql: str, params: list[Any]) -> None:
    adapt = connection.ops.adapt_datetimefield_value
    with connection.cursor() as cursor:
        cursor.execute(sql, [adapt(one) if isinstance(one, datetime) else one for one in params])


def add_users(count: int) -> None:
    """With the primary keys 1 to ``count``."""
    execute(USERS, [count, PASSWORD, timezone.now()])
    if connection.vendor == "postgresql":
        execute("SELECT setval(pg_get_serial_sequence('auth_user', 'id'), %s)", [count])


def add_own_sessions(pks: range) -> None:
    store, until = SessionStore(), timezone.now() + LIFETIME
    for start in range(0, len(pks), PAGE):
        Session.objects.bulk_create(
            Session(
                session_key=key_of(pk), session_data=store.encode(payload(pk)), expire_date=until
            )
            for pk in pks[start : start + PAGE]
        )


def index_sessions(step: int) -> None:
    """As logins leave the index behind."""
    execute(ENTRIES, [timezone.now(), step])
    EnforcementState.objects.update_or_create(
        pk=1, defaults={"created_at": timezone.now(), "index_complete": True}
    )


def owners(users: int, own: int) -> range:
    """Primary keys of ``own`` users, evenly among all."""
    step = users // own
    return range(step, users + 1, step)


@cache
def site(users: int, sessions: int, own: int, *, indexed: bool = True) -> str:
    """A kept database with so many users and stored sessions, at most one for each user.

    ``own`` sessions are whole ones of ``owners(users, own)``; the others are only in the way, and
    share one text. Each number divides the one before.
    """
    databases().make()
    add_users(users)
    with transaction.atomic():
        add_own_sessions(owners(users, own))
        if own < sessions:
            nobody = SessionStore().encode(payload(0))
            step = users // sessions
            execute(SESSIONS, [nobody, timezone.now() + LIFETIME, step, users // own])
        if indexed:
            index_sessions(users // sessions)
    return databases().keep(f"site_{users}_{sessions}_{own}" + ("" if indexed else "_unknown"))

"""The ways of flagging that are set beside each other."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from django.contrib.auth import get_user_model
from django.contrib.sessions.backends.db import SessionStore
from django.contrib.sessions.models import Session
from django.db import connection, transaction
from django.utils import timezone

from pwexpire import services
from tests.bench.data import CART, LIFETIME

SWAP = "UPDATE django_session SET session_data = %s WHERE session_key = %s AND session_data = %s"
SWAP_FROM = (
    "UPDATE django_session SET session_data = given.new FROM ({given}) AS given (new, key, old) "
    "WHERE session_key = given.key AND session_data = given.old"
)
VALUES_PAGE = 1_000

Swap = tuple[str, str, str]


def flag() -> None:
    services.flag_sessions(get_user_model().objects.all())


def expire() -> None:
    services.expire_passwords(get_user_model().objects.all())


def loop(part: int | None = None) -> None:
    """What one writes without a library; of ``part`` sessions, or of all."""
    for key in list(Session.objects.values_list("session_key", flat=True)[:part]):
        store = SessionStore(key)
        store["password_expired"] = True
        store.save()


def loop_in_transaction() -> None:
    """The same, with the disk waited for once instead of once a session."""
    with transaction.atomic():
        loop()


def codec() -> None:
    """The part of the floor that is Django's signing and compression."""
    store = SessionStore()
    for data in Session.objects.values_list("session_data", flat=True).iterator():
        store.encode(store.decode(data))


def swaps() -> Iterator[Swap]:
    store = SessionStore()
    for key, data in Session.objects.values_list("session_key", "session_data").iterator():
        decoded = store.decode(data)
        decoded["password_expired"] = True
        yield store.encode(decoded), key, data


def floor_one_by_one() -> None:
    """The least work there is: read, decode, encode, one batched write."""
    with transaction.atomic():
        written = list(swaps())
        with connection.cursor() as cursor:
            cursor.executemany(SWAP, written)


def floor_values() -> None:
    """The same with a statement for a thousand rows."""
    with transaction.atomic():
        found = swaps()
        with connection.cursor() as cursor:
            while page := list(islice(found, VALUES_PAGE)):
                given = "VALUES " + ", ".join(["(%s, %s, %s)"] * len(page))
                flat = [value for swap in page for value in swap]
                cursor.execute(SWAP_FROM.format(given=given), flat)


def floor_arrays() -> None:
    """The same with three arrays instead of a row of parameters for each session."""
    given = "SELECT * FROM unnest(%s::text[], %s::text[], %s::text[])"
    with transaction.atomic():
        found = swaps()
        with connection.cursor() as cursor:
            while page := list(islice(found, VALUES_PAGE)):
                columns = [list(column) for column in zip(*page, strict=True)]
                cursor.execute(SWAP_FROM.format(given=given), columns)


FLOORS = {
    "sqlite": {"executemany": floor_one_by_one},
    "postgresql": {
        "executemany": floor_one_by_one,
        "UPDATE FROM VALUES": floor_values,
        "UPDATE FROM unnest": floor_arrays,
    },
}


def check(way: str, *, keeps_expiry: bool) -> None:
    """A fast way that does the wrong thing is no measurement."""
    connection.close()
    rows = Session.objects.values_list("session_data", "expire_date")
    until = timezone.now() + 2 * LIFETIME
    for data, expires in rows.iterator():
        decoded = SessionStore().decode(data)
        if decoded.get("password_expired") is not True or decoded.get("cart") != CART:
            raise RuntimeError(f"{way}: a session was not flagged, or lost its cart")
        if keeps_expiry and expires > until:
            raise RuntimeError(f"{way}: the life of a session was changed")

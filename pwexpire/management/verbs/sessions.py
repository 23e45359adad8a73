"""The stored sessions, of any engine; read as a stream."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from pwexpire.feed import feed
from pwexpire.management.console import AddVerb, Console, check_number
from pwexpire.management.formats import Rows
from pwexpire.management.selectors import find_user
from pwexpire.models import SessionEntry
from pwexpire.services.index import uses_index
from pwexpire.services.selection import CHUNK
from pwexpire.sessionstore.base import SessionAdapter, StoredSession, shorten
from pwexpire.sessionstore.registry import get_adapter

COLUMNS = ("session", "user", "flagged", "expires")


def add(verb: AddVerb) -> None:
    parser = verb("sessions", "The stored sessions: of whom, flagged or not, until when.")
    parser.add_argument("--user", metavar="NAME")
    parser.add_argument("--flagged", action="store_true")
    parser.add_argument("--limit", type=int, metavar="N")


def run(options: dict[str, Any], console: Console) -> Any:
    check_number("limit", options["limit"], least=0)
    adapter, user = get_adapter(), find_user(options["user"])
    if adapter.supports_enumerate:
        stored = adapter.sessions()
    elif uses_index(adapter):
        stored = _read_index(adapter)
    else:
        console.notice(_explain_unlisted(adapter))
        stored = iter(())
    owner = None if user is None else user._meta.pk.value_to_string(user)
    listed = (
        (shorten(row.key), row.user_id, row.flagged, row.expires)
        for row in stored
        if owner in (None, row.user_id) and (row.flagged or not options["flagged"])
    )
    return Rows(COLUMNS, islice(listed, options["limit"]))


def _explain_unlisted(adapter: SessionAdapter) -> str:
    if not adapter.supports_end:
        return f"The session engine {adapter.name} stores nothing on the server."
    return f"The session engine {adapter.name} is listed by PWEXPIRE_SESSION_INDEX only: it is off."


def _read_index(adapter: SessionAdapter) -> Iterator[StoredSession]:
    entries = SessionEntry.objects.using(feed.using).order_by("pk")
    after = ""
    while chunk := list(entries.filter(pk__gt=after).values_list("pk", flat=True)[:CHUNK]):
        for key in sorted(adapter.alive(chunk)):
            yield StoredSession.of(key, dict(adapter.store_class(key).items()), None)
        after = chunk[-1]

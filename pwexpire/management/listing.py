"""What is stored of sessions, by whatever engine; read as a stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pwexpire.feed import feed
from pwexpire.models import SessionEntry
from pwexpire.services.index import uses_index
from pwexpire.services.selection import CHUNK
from pwexpire.sessionstore.base import StoredSession, shorten
from pwexpire.sessionstore.registry import get_adapter


def why_unlisted() -> str | None:
    adapter = get_adapter()
    if adapter.supports_enumerate or uses_index(adapter):
        return None
    if not adapter.supports_end:
        return f"The session engine {adapter.name} stores nothing on the server."
    return f"The session engine {adapter.name} is listed by PWEXPIRE_SESSION_INDEX only: it is off."


def list_sessions(user: Any, *, flagged: bool) -> Iterator[dict[str, Any]]:
    """Of ``user``, or of everybody if that is ``None``; ``flagged``: no others."""
    wanted = None if user is None else user._meta.pk.value_to_string(user)
    for row in _stored():
        if (wanted is None or row.user_id == wanted) and (row.flagged or not flagged):
            yield {
                "session": shorten(row.key),
                "user": row.user_id,
                "flagged": row.flagged,
                "expires": row.expires,
            }


def _stored() -> Iterator[StoredSession]:
    """By listing them, else by the index."""
    adapter = get_adapter()
    if adapter.supports_enumerate:
        yield from adapter.sessions()
        return
    entries = SessionEntry.objects.using(feed.using).order_by("pk")
    after = ""
    while chunk := list(entries.filter(pk__gt=after).values_list("pk", flat=True)[:CHUNK]):
        for key in sorted(adapter.alive(chunk)):
            yield StoredSession.of(key, dict(adapter.store_class(key).items()), None)
        after = chunk[-1]

"""The stored sessions of users: found, flagged, ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from django.db import transaction

from pwexpire.feed import feed
from pwexpire.keys import key_text
from pwexpire.models import EnforcementState, SessionEntry
from pwexpire.services.demands import highest_open
from pwexpire.services.index import build_index, uses_index
from pwexpire.services.selection import CHUNK, Selection
from pwexpire.services.staging import Progress
from pwexpire.sessionstore.base import Outcome, SessionAdapter, StoredSession
from pwexpire.sessionstore.registry import get_adapter
from pwexpire.sessionstore.rows import pages

# Session key -> primary key of its user.
Owners = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class FlagReport:
    """Outcome -> how many stored sessions had it; ``pending`` while a transaction is open."""

    outcomes: Counter[Outcome] = field(default_factory=Counter)
    pending: bool = False

    def __getattr__(self, name: str) -> int:
        try:
            return self.outcomes[Outcome(name)]
        except ValueError:
            raise AttributeError(name) from None


def can_find_sessions() -> bool:
    """Whether the engine keeps anything on the server by which a user's sessions are found."""
    adapter = get_adapter()
    return finds_by_user(adapter) or adapter.supports_enumerate


def finds_by_user(adapter: SessionAdapter) -> bool:
    """Return whether a user column or the index is asked, and no session of others is read."""
    return adapter.supports_user_lookup or uses_index(adapter)


def lacks_index(adapter: SessionAdapter) -> bool:
    """Whether the sessions that were there before pwexpire are not in the index yet."""
    if adapter.supports_user_lookup or not uses_index(adapter):
        return False
    built = EnforcementState.objects.using(feed.using).filter(index_complete=True)
    return adapter.supports_enumerate and not built.exists()


def complete_index(adapter: SessionAdapter) -> None:
    if lacks_index(adapter):
        build_index(adapter)


def sessions_of(pks: list[Any]) -> Iterator[Owners]:
    """The sessions of these users by the user column of their model, a page at a time."""
    owners = {key_text(pk): pk for pk in pks}
    for page in get_adapter().keys_of(pks):
        yield {key: owners[owner] for key, owner in page if owner in owners}


def find_sessions(
    selection: Selection, *, after: str = "", last: str = "", read_only: bool = False
) -> Iterator[Owners]:
    """The stored sessions of the selected users, a page at a time.

    Where all sessions have to be read: those whose key is after ``after``, up to ``last``.
    ``read_only``: read all of them rather than build the index that is missing.
    """
    adapter = get_adapter()
    if finds_by_user(adapter) and not (read_only and lacks_index(adapter)):
        # Sessions from before pwexpire are not in the index, and would not be found.
        complete_index(adapter)
        find = _find_by_column if adapter.supports_user_lookup else _find_indexed
        yield from find(selection)
    elif adapter.supports_enumerate:
        yield from _scan_sessions(selection, adapter.sessions(after=after, chunk=CHUNK, last=last))


def _scan_sessions(selection: Selection, stored: Iterator[StoredSession]) -> Iterator[Owners]:
    while page := list(islice(stored, CHUNK)):
        owners = {key_text(pk): pk for pk in selection.among(row.user_id or "" for row in page)}
        yield {row.key: owners[row.user_id] for row in page if row.user_id in owners}


def _find_by_column(selection: Selection) -> Iterator[Owners]:
    for pks in selection.chunks():
        yield from sessions_of(pks)


def _find_indexed(selection: Selection) -> Iterator[Owners]:
    after = ""
    while part := selection.part(after):
        users, after = part
        entries = SessionEntry.objects.using(feed.using).filter(user_id__in=users.values("pk"))
        # Pages by key: behind a pool of connections no cursor lives until the next statement.
        yield from (dict(page) for page in pages(entries, "user_id") if page)


def delete_sessions(owners: Mapping[str, Any], *, trace: bool) -> Counter[Outcome]:
    """``trace``: their browsers will be answered with the reason, once."""
    adapter = get_adapter()
    outcomes = adapter.end({key: key_text(pk) for key, pk in owners.items()}, trace=trace)
    if uses_index(adapter) and not outcomes[Outcome.FAILED]:  # else they are needed once more
        # A login that has made its row and not written it yet keeps its entry, for the next time.
        dead = set(owners) - adapter.alive(list(owners))
        SessionEntry.objects.using(feed.using).filter(pk__in=dead).delete()
    return outcomes


def flag_sessions(users: Any, *, progress: Progress | None = None) -> FlagReport:
    """Set ``password_expired`` in the stored sessions of ``users``, touching nothing else in them.

    The flag stands for the user's open demand. Where there is none it counts as set by hand: the
    session is held until the password is changed there, or the flag is set to ``False``.
    ``progress(done, total)`` is called after each chunk, ``total`` is ``None`` where unknown.
    Inside a transaction the work is done after the commit, and the report says ``pending``.
    Raises ``InvalidRequest`` for anything but users.
    """
    selection = Selection(users)
    report = FlagReport(pending=transaction.get_connection(feed.using).in_atomic_block)

    def work() -> None:
        done = 0
        adapter = get_adapter()
        for owners in find_sessions(selection):
            numbers = highest_open(list(set(owners.values())))
            wanted = {key: (key_text(pk), numbers.get(pk)) for key, pk in owners.items()}
            report.outcomes.update(adapter.flag(wanted))
            done += len(owners)
            if progress is not None:
                progress(done, None)

    # A rollback must leave no session flagged.
    transaction.on_commit(work, using=feed.using)
    return report

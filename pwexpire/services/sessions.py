"""The projection: what the records say, written into the sessions that can be written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from types import SimpleNamespace
from typing import Any

from django.contrib.auth import get_user_model
from django.db import transaction
from django.utils import timezone

from pwexpire.conf import conf
from pwexpire.feed import feed
from pwexpire.models import BatchState, EnforcementState, ExpiryBatch, Reason, SessionEntry
from pwexpire.services.selection import Selection
from pwexpire.services.status import open_demands, read_state
from pwexpire.sessionstore.base import Outcome, SessionAdapter
from pwexpire.sessionstore.registry import get_adapter

SCAN = 1_000
Progress = Callable[[int, int | None], None]


@dataclass(frozen=True, kw_only=True)
class FlagReport:
    """How many stored sessions met with which outcome; ``pending`` while a transaction is open."""

    outcomes: Counter[Outcome] = field(default_factory=Counter)
    pending: bool = False

    def __getattr__(self, name: str) -> int:
        try:
            return self.outcomes[Outcome(name)]
        except ValueError:
            raise AttributeError(name) from None


def uses_index(adapter: SessionAdapter) -> bool:
    return conf.session_index and adapter.supports_index


def can_find_sessions() -> bool:
    """Whether the engine keeps anything on the server by which a user's sessions are found."""
    adapter = get_adapter()
    return adapter.supports_user_lookup or adapter.supports_enumerate or uses_index(adapter)


def index_session(session_key: str | None, user: Any, *, replaces: str | None = None) -> None:
    """Note whose session this is, and drop the dead ones of the same user."""
    adapter = get_adapter()
    if not uses_index(adapter):
        return
    entries = SessionEntry.objects.using(feed.using)
    if replaces and replaces != session_key:
        entries.filter(pk=replaces).delete()
    if not session_key or len(session_key) > 64:
        return
    entries.update_or_create(
        pk=session_key, defaults={"user_id": user.pk, "created_at": timezone.now()}
    )
    old = list(
        entries.filter(user_id=user.pk)
        .exclude(pk=session_key)
        .order_by("created_at")
        .values_list("pk", flat=True)[:100]
    )
    if old:
        dead = set(old) - adapter.alive(old)
        entries.filter(pk__in=dead).delete()


def forget_session(session_key: str | None) -> None:
    if session_key and uses_index(get_adapter()):
        SessionEntry.objects.using(feed.using).filter(pk=session_key).delete()


def build_index(adapter: SessionAdapter) -> int:
    """Index the sessions that were there before pwexpire; one pass over all of them, once."""
    added = 0
    stored = adapter.sessions()
    while chunk := list(islice(stored, SCAN)):
        owners = {row.key: row.user_id for row in chunk if row.user_id and len(row.key) <= 64}
        known = _existing(set(owners.values()))
        entries = [
            SessionEntry(session_key=key, user_id=known[owner], created_at=timezone.now())
            for key, owner in owners.items()
            if owner in known
        ]
        SessionEntry.objects.using(feed.using).bulk_create(entries, ignore_conflicts=True)
        added += len(entries)
    read_state()
    EnforcementState.objects.using(feed.using).update(index_complete=True)
    return added


def _existing(ids: set[str]) -> dict[str, Any]:
    users = Selection(get_user_model()._base_manager.all())
    return {_as_stored(pk): pk for pk in users.among(ids)}


def _as_stored(pk: Any) -> str:
    """A primary key as ``login()`` writes it into a session."""
    field = get_user_model()._meta.pk
    return str(field.value_to_string(SimpleNamespace(**{field.attname: pk})))  # type: ignore[arg-type]


def find_sessions(selection: Selection, after: str = "") -> Iterator[tuple[Any, dict[str, Any]]]:
    """Per chunk of users: the last primary key of the chunk, and session key -> primary key."""
    adapter = get_adapter()
    if adapter.supports_user_lookup:
        for rows in selection.chunks(after):
            owners = {_as_stored(pk): pk for pk, _ in rows}
            keys = adapter.keys_of([pk for pk, _ in rows])
            yield _last(rows), {key: owners[owner] for key, owner in keys if owner in owners}
    elif uses_index(adapter):
        if adapter.supports_enumerate and not read_state().index_complete:
            build_index(adapter)
        entries = SessionEntry.objects.using(feed.using)
        for rows in selection.chunks(after):
            pks = [pk for pk, _ in rows]
            found = entries.filter(user_id__in=pks).values_list("pk", "user_id")
            yield _last(rows), dict(found)
    elif adapter.supports_enumerate:
        stored = adapter.sessions()
        while chunk := list(islice(stored, SCAN)):
            owners = {_as_stored(pk): pk for pk in selection.among(r.user_id or "" for r in chunk)}
            yield None, {r.key: owners[r.user_id] for r in chunk if r.user_id in owners}


def _last(rows: list[tuple[Any, bool]]) -> Any:
    return rows[-1][0] if rows else None


def write_flags(owners: Mapping[str, Any], *, by_hand: bool) -> Counter[Outcome]:
    """Flag these sessions with the demand that is open now; ``by_hand``: also where none is."""
    numbers = open_demands(list(set(owners.values())))
    wanted = {
        key: (_as_stored(pk), numbers.get(pk))
        for key, pk in owners.items()
        if by_hand or pk in numbers
    }
    return get_adapter().flag(wanted) if wanted else Counter()


def delete_sessions(owners: Mapping[str, Any]) -> Counter[Outcome]:
    adapter = get_adapter()
    outcomes = adapter.end({key: _as_stored(pk) for key, pk in owners.items()})
    if uses_index(adapter) and not outcomes[Outcome.FAILED]:  # else they are needed once more
        SessionEntry.objects.using(feed.using).filter(pk__in=list(owners)).delete()
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
        for _, owners in find_sessions(selection):
            report.outcomes.update(write_flags(owners, by_hand=True))
            done += len(owners)
            if progress is not None:
                progress(done, None)

    transaction.on_commit(work, using=feed.using)
    return report


def project(
    batch: ExpiryBatch, selection: Selection, progress: Progress | None
) -> Counter[Outcome]:
    """Carry an active batch into the sessions, from its cursor on."""
    outcomes: Counter[Outcome] = Counter()
    rows = ExpiryBatch.objects.using(feed.using).filter(pk=batch.pk)
    done = 0
    for last, owners in find_sessions(selection, batch.cursor):
        if batch.sessions == "end":
            found = delete_sessions(owners)
        else:
            found = write_flags(owners, by_hand=False)
        outcomes.update(found)
        batch.sessions_flagged = (batch.sessions_flagged or 0) + found[Outcome.FLAGGED]
        batch.sessions_ended = (batch.sessions_ended or 0) + found[Outcome.ENDED]
        if last is not None:
            batch.cursor = _as_stored(last)
        rows.update(
            cursor=batch.cursor,
            sessions_flagged=batch.sessions_flagged,
            sessions_ended=batch.sessions_ended,
        )
        done += len(owners)
        if progress is not None:
            progress(done, None)
    return outcomes


def prune_index(chunk: int = SCAN) -> int:
    """Remove index entries of sessions that are dead, ``chunk`` at a time; how many went."""
    adapter = get_adapter()
    entries = SessionEntry.objects.using(feed.using).order_by("pk")
    removed, after = 0, ""
    while keys := list(entries.filter(pk__gt=after).values_list("pk", flat=True)[:chunk]):
        dead = set(keys) - adapter.alive(keys)
        removed += SessionEntry.objects.using(feed.using).filter(pk__in=dead).delete()[0]
        after = keys[-1]
    return removed


def prune_batches() -> int:
    """Remove the batches of passwords that aged out and have been changed; how many went."""
    met = ExpiryBatch.objects.using(feed.using).filter(
        reason=Reason.AGE, state=BatchState.DONE, demands=None
    )
    pks = list(met.values_list("pk", flat=True)[:10_000])
    ExpiryBatch.objects.using(feed.using).filter(pk__in=pks).delete()
    return len(pks)

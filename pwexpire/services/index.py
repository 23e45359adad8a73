"""The index of session keys: kept at logins and logouts, built once for the sessions before."""

from __future__ import annotations

from functools import partial
from itertools import islice
from typing import Any

from django.contrib.auth import get_user_model
from django.db import IntegrityError
from django.utils import timezone

from pwexpire.conf import conf
from pwexpire.feed import feed
from pwexpire.keys import key_text
from pwexpire.models import EnforcementState, SessionEntry
from pwexpire.retries import in_transaction, retried, savepoint
from pwexpire.services.demands import all_users
from pwexpire.services.selection import CHUNK, Selection
from pwexpire.services.staging import Progress
from pwexpire.services.status import read_state
from pwexpire.sessionstore.base import SessionAdapter
from pwexpire.sessionstore.registry import get_adapter

# As long as the column; longer keys are found by a scan only.
KEY_MAX = 64


def uses_index(adapter: SessionAdapter) -> bool:
    """Whether session keys are kept: by default of engines only that keep them in rows as well."""
    wanted = conf.session_index
    return adapter.supports_index and (adapter.keeps_rows if wanted is None else wanted)


def index_session(session_key: str | None, user_id: Any, *, replaces: str | None = None) -> None:
    """Note whose session this is, and drop the dead ones of the same user.

    ``user_id``: a primary key, or what the session says of it.
    """
    adapter = get_adapter()
    if not uses_index(adapter):
        note_gap(adapter)
        return

    owner = get_user_model()._meta.pk.to_python(user_id)
    # A rotation that failed leaves the old session alive.
    rotated = bool(replaces) and replaces != session_key and not adapter.alive([replaces or ""])
    if session_key and len(session_key) <= KEY_MAX:
        entry = SessionEntry(session_key=session_key, user_id=owner, created_at=timezone.now())
        if rotated and retried(partial(_move_entry, replaces, entry), using=feed.using):
            return
        retried(partial(_add_entry, entry), using=feed.using)
        _drop_dead(adapter, entry)
    if rotated:
        forget_session(replaces)


def _move_entry(replaces: str | None, entry: SessionEntry) -> bool:
    """Give the entry of a rotated session its new key; false if it has to be added."""
    values = {"session_key": entry.pk, "user_id": entry.user_id, "created_at": entry.created_at}
    try:
        with savepoint(using=feed.using):
            rows = SessionEntry.objects.using(feed.using).filter(pk=replaces)
            return bool(rows.update(**values))
    except IntegrityError:  # the login of this request added the new one already
        return False


def _add_entry(entry: SessionEntry) -> None:
    """One statement and no transaction: nothing is lost if the process ends after it."""
    try:
        with savepoint(using=feed.using):
            entry.save(using=feed.using, force_insert=True)
    except IntegrityError:
        rows = SessionEntry.objects.using(feed.using).filter(pk=entry.pk)
        rows.update(user_id=entry.user_id, created_at=entry.created_at)


def _drop_dead(adapter: SessionAdapter, entry: SessionEntry) -> None:
    """Remove the entries of the same user whose sessions are gone."""
    others = SessionEntry.objects.using(feed.using).filter(user_id=entry.user_id)
    oldest = others.exclude(pk=entry.pk).order_by("created_at").values_list("pk", flat=True)
    known = list(oldest[:100])
    dead = set(known) - adapter.alive(known) if known else set()
    if dead:
        in_transaction(others.filter(pk__in=dead).delete, using=feed.using)


def note_gap(adapter: SessionAdapter) -> None:
    """A session begins without the index: switched on again, it has to be built once more.

    At each login, not once a process: another one may have built it in between.
    """
    if adapter.supports_index and adapter.supports_enumerate:
        complete = EnforcementState.objects.using(feed.using).filter(index_complete=True)
        retried(partial(complete.update, index_complete=False), using=feed.using)


def forget_session(session_key: str | None, *, if_dead: bool = False) -> None:
    """``if_dead``: only if that can be seen in the store; a logout may have been rolled back."""
    adapter = get_adapter()
    if not session_key or not uses_index(adapter):
        return
    if if_dead and adapter.alive([session_key]):
        return
    # Of one instance, which takes one statement; of a QuerySet it is a transaction.
    entry = SessionEntry(pk=session_key)
    retried(partial(entry.delete, using=feed.using), using=feed.using)


def build_index(adapter: SessionAdapter, progress: Progress | None = None) -> int:
    """Index the sessions that were there before pwexpire; one pass over all of them.

    Returns how many were added. ``progress(done, total)``: the sessions that were looked at.
    """
    added = done = 0
    stored = adapter.sessions(chunk=CHUNK)
    while chunk := list(islice(stored, CHUNK)):
        owners = {row.key: row.user_id for row in chunk if row.user_id and len(row.key) <= KEY_MAX}
        added += _add_entries(owners)
        done += len(chunk)
        if progress is not None:
            progress(done, None)
    # At the very end: a run that is killed before it leaves the index incomplete, and is repeated.
    read_state()
    state = EnforcementState.objects.using(feed.using)
    retried(lambda: state.update(index_complete=True), using=feed.using)
    return added


def _add_entries(owners: dict[str, str]) -> int:
    entries = SessionEntry.objects.using(feed.using)
    there = set(entries.filter(pk__in=owners).values_list("pk", flat=True))
    new_owners = {owner for key, owner in owners.items() if key not in there}
    known = {key_text(pk): pk for pk in Selection(all_users()).among(new_owners)}
    now = timezone.now()
    new = [
        SessionEntry(session_key=key, user_id=known[owner], created_at=now)
        for key, owner in owners.items()
        if key not in there and owner in known
    ]
    in_transaction(lambda: entries.bulk_create(new, ignore_conflicts=True), using=feed.using)
    return len(new)


def prune_index(chunk: int = CHUNK) -> int:
    """Remove index entries of sessions that are dead, ``chunk`` at a time; how many went.

    Where the site keeps no index, or none any more, they are all removed.
    """
    adapter = get_adapter()
    kept = uses_index(adapter)
    if not kept:
        note_gap(adapter)
    entries = SessionEntry.objects.using(feed.using)
    ordered = entries.order_by("pk").values_list("pk", flat=True)
    removed, after = 0, ""
    while keys := list(ordered.filter(pk__gt=after)[:chunk]):
        dead = entries.filter(pk__in=set(keys) - adapter.alive(keys) if kept else keys)
        removed += in_transaction(dead.delete, using=feed.using)[0]
        after = keys[-1]
    return removed

"""What the admin's own log keeps of the actions: an entry for each user, and for the batch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.auth import get_user_model
from django.contrib.contenttypes.models import ContentType
from django.http import HttpRequest
from django.utils.translation import gettext

from pwexpire.models import ExpiryBatch, TraceKind
from pwexpire.services.report import usernames
from pwexpire.services.selection import Selection
from pwexpire.services.trace import write_trace

# An action on more users leaves one entry: a request must not end in a time-out over its log, and
# the batch and the cancellations name every user as well.
LOGGED_MAX = 1_000
NAMES_MAX = 10


def list_logged(selection: Selection) -> list[Any]:
    """Return the keys that ``log_action`` takes.

    To be read before the action: after it a list that is filtered by the expired has other users.
    """
    return next(selection.chunks(LOGGED_MAX + 1), [])


def log_action(
    request: HttpRequest,
    pks: list[Any],
    summary: str,
    note: str,
    batch: ExpiryBatch | None = None,
) -> None:
    """Log what was done to these users, and to their ``batch`` if there is one."""
    message = f"{summary} {note}".strip()
    entries = [] if len(pks) > LOGGED_MAX else _entries_of(request, pks, message)
    if batch is not None or not entries:
        entries.append(_make_entry(request, ExpiryBatch, batch and batch.pk, message))
    LogEntry.objects.bulk_create(entries)


def log_refusal(request: HttpRequest, pks: list[Any], kind: TraceKind, note: str) -> None:
    """Log for each user that the administrator was refused; the trace keeps all of them."""
    write_trace([(None, pk) for pk in pks], actor=request.user, note=note, kind=kind)
    LogEntry.objects.bulk_create(
        _entries_of(request, pks[:LOGGED_MAX], f"{kind.label} {note}".strip())
    )


def name_users(pks: list[Any]) -> str:
    """Return the names of at most ten users in words, and how many more there are."""
    names = ", ".join(str(name) for name in usernames(pks[:NAMES_MAX]).values())
    more = len(pks) - NAMES_MAX
    if more <= 0:
        return names
    return gettext("%(names)s and %(more)d more") % {"names": names, "more": more}


def _entries_of(request: HttpRequest, pks: Iterable[Any], message: str) -> list[LogEntry]:
    return [_make_entry(request, get_user_model(), pk, message) for pk in pks]


def _make_entry(request: HttpRequest, model: Any, pk: Any, message: str) -> LogEntry:
    return LogEntry(
        user_id=request.user.pk or 0,
        content_type=ContentType.objects.get_for_model(model),
        object_id=None if pk is None else str(pk),
        # The key and not the name, which would outlive a user who is erased.
        object_repr="" if pk is None else f"{model._meta.verbose_name} {pk}",
        action_flag=CHANGE,
        change_message=message,
    )

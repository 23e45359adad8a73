"""What the administrator is told of an action, and what the admin's own log keeps of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.auth import get_user_model
from django.contrib.contenttypes.models import ContentType
from django.http import HttpRequest
from django.utils.translation import gettext, ngettext

from pwexpire.models import BatchState, ExpiryBatch, Require, TraceKind
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


def describe_staging(batch: ExpiryBatch) -> str:
    """Return what the administrator is told of a batch that did not come into force."""
    if batch.state == BatchState.CANCELLED:
        words = gettext("Nobody was expired: batch %(batch)d was cancelled meanwhile.")
        return words % {"batch": batch.pk}
    if batch.state == BatchState.STOPPED:
        return gettext(
            "Nobody was expired: batch %(batch)d was stopped meanwhile. manage.py pwexpire resume "
            "%(batch)d goes on, with options that name the same users."
        ) % {"batch": batch.pk}
    return gettext(
        "Nobody was expired: these are more users than a request can select. Expire fewer at a "
        "time, or let manage.py pwexpire resume %(batch)d go on, with options that name the same "
        "users. Batch %(batch)d is not in force before."
    ) % {"batch": batch.pk}


def describe_batch(batch: ExpiryBatch, *, deferred: bool) -> str:
    """Return what was done, in words. ``deferred``: the stored sessions are left to others."""
    warning = batch.require == Require.WARN
    if batch.users_expired is None:
        if warning:
            return gettext("The users are warned when this request is finished.")
        return gettext("The passwords expire when this request is finished.")
    if warning:
        summary = ngettext(
            "%(count)d user was warned.", "%(count)d users were warned.", batch.users_expired
        )
    else:
        summary = ngettext(
            "%(count)d password was expired.",
            "%(count)d passwords were expired.",
            batch.users_expired,
        )
    summary %= {"count": batch.users_expired}
    if deferred:
        return summary
    details = gettext(
        "Already expired: %(already)d, not applicable: %(not_applicable)d, "
        "sessions flagged: %(flagged)d, sessions ended: %(ended)d."
    ) % {
        "already": batch.users_already_expired or 0,
        "not_applicable": batch.users_not_applicable or 0,
        "flagged": batch.sessions_flagged or 0,
        "ended": batch.sessions_ended or 0,
    }
    if batch.is_unfinished:  # held all the same: the record decides at the next request
        left = gettext(
            "Other sessions are held at their next request; manage.py pwexpire resume %(batch)d "
            "goes on with the stored ones."
        )
        details = f"{details} {left % {'batch': batch.pk}}"
    return f"{summary} {details}"


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

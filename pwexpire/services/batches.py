"""Expire, resume, cancel. Stage first, number last: the number puts the whole batch in force."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

from django.db import OperationalError, transaction
from django.utils import timezone

from pwexpire.conf import conf
from pwexpire.constants import SIGNAL_IDS_MAX
from pwexpire.exceptions import BatchNotResumable, InvalidRequest
from pwexpire.feed import feed
from pwexpire.models import (
    BatchState,
    Demand,
    EnforcementState,
    Exclusion,
    ExpiryBatch,
    Reason,
    Require,
    SessionAction,
)
from pwexpire.services.selection import Selection, members
from pwexpire.services.sessions import (
    FlagReport,
    Progress,
    can_find_sessions,
    find_sessions,
    project,
)
from pwexpire.services.status import (
    check_saved,
    open_demands,
    read_state,
)
from pwexpire.signals import passwords_expired

RETRIES = 5


@dataclass(frozen=True, kw_only=True)
class ExpiryPreview:
    """``sessions`` is ``None`` where the session engine keeps nothing that could be counted."""

    users: int
    already_expired: int
    not_applicable: int
    sessions: int | None


def _batch(**given: Any) -> ExpiryBatch:
    reason, require, sessions = given["reason"], given["require"], given["sessions"]
    reasons = {*Reason.values, *conf.reasons}
    if reason not in reasons:
        raise InvalidRequest(f"Unknown reason {reason!r}: use one of {', '.join(sorted(reasons))}.")
    if require == Require.RESET:
        raise InvalidRequest(
            "Require.RESET is not available in this release: use Require.CHANGE, "
            "with sessions=SessionAction.END to log the users out."
        )
    if require not in Require.values:
        raise InvalidRequest(f"Unknown require {require!r}: use Require.CHANGE.")
    if sessions not in SessionAction.values:
        raise InvalidRequest(f"Unknown sessions {sessions!r}: use SessionAction.FLAG or .END.")
    if not isinstance(given["note"], str):
        raise InvalidRequest("note must be a string.")
    if given["actor"] is not None:
        check_saved(given["actor"])
    return ExpiryBatch(**given, created_at=timezone.now())


def expire_passwords(
    users: Any,
    *,
    reason: str = Reason.ADMIN,
    require: str = Require.CHANGE,
    sessions: str = SessionAction.FLAG,
    actor: Any = None,
    note: str = "",
    exclude: Any = None,
    progress: Progress | None = None,
) -> ExpiryBatch:
    """Demand a new password of ``users``, and hold or end their sessions.

    ``users``: a user, an iterable of users, or a ``QuerySet`` (read in chunks). ``reason``: a
    ``Reason`` or a slug of ``PWEXPIRE_REASONS``. ``actor``: the user who asks for it. ``note``:
    free text for the record. ``exclude``: users who stay out. ``progress(done, total)`` is called
    after each chunk. Users who have no usable password are counted as not applicable; a demand
    that is open already stays as it is.

    Returns the ``ExpiryBatch`` with its counts. Inside ``transaction.atomic`` it is pending, and
    its counts are ``None``, until the commit; a rollback leaves nothing.
    Raises ``InvalidRequest`` before anything is written.
    """
    selection = Selection(users, exclude=exclude)
    batch = _batch(reason=reason, require=require, sessions=sessions, actor=actor, note=note)
    return _run(batch, selection, progress)


def expire_everyone(
    *,
    reason: str = Reason.ADMIN,
    require: str = Require.CHANGE,
    sessions: str = SessionAction.FLAG,
    actor: Any = None,
    note: str = "",
    exclude: Any = None,
    progress: Progress | None = None,
) -> ExpiryBatch:
    """Demand a new password of every user there is now, with one row whatever their number.

    Arguments, returns and raises as ``expire_passwords``, but ``users_expired`` stays ``None`` and
    no stored session is written: each is held at its next request.
    """
    batch = _batch(
        reason=reason, require=require, sessions=sessions, actor=actor, note=note, everyone=True
    )
    out = Selection(exclude) if exclude is not None else None
    return _run(batch, out, progress)


def _run(batch: ExpiryBatch, selection: Selection | None, progress: Progress | None) -> ExpiryBatch:
    pending = transaction.get_connection(feed.using).in_atomic_block
    batch.save(using=feed.using)
    counts = _stage(batch, selection, progress)
    _set(batch, state=BatchState.STAGED)
    feed.drop()
    transaction.on_commit(
        partial(_finish, batch, counts, progress), using=feed.using, robust=pending
    )
    if pending:
        batch.users_expired = batch.users_already_expired = batch.users_not_applicable = None
    return batch


def _set(batch: ExpiryBatch, **values: Any) -> None:
    ExpiryBatch.objects.using(feed.using).filter(pk=batch.pk).update(**values)
    for name, value in values.items():
        setattr(batch, name, value)


def _stage(
    batch: ExpiryBatch, selection: Selection | None, progress: Progress | None
) -> dict[str, int]:
    """Write who is meant, a chunk a transaction. Nobody is held by it yet."""
    expired = already = not_applicable = done = 0
    for rows in selection.chunks() if selection is not None else ():
        with transaction.atomic(using=feed.using):
            if batch.everyone:
                Exclusion.objects.using(feed.using).bulk_create(
                    [Exclusion(batch=batch, user_id=pk) for pk, _ in rows], ignore_conflicts=True
                )
                continue
            usable = [pk for pk, can in rows if can or not batch.holds]
            held = open_demands(usable) if batch.holds else {}
            again = batch.sessions == SessionAction.END
            Demand.objects.using(feed.using).bulk_create(
                [Demand(batch=batch, user_id=pk) for pk in usable if again or pk not in held],
                ignore_conflicts=True,
            )
        expired += len(usable) - len(held)
        already += len(held)
        not_applicable += len(rows) - len(usable)
        done += len(rows)
        if progress is not None:
            progress(done, None)
    if batch.everyone:
        return {}
    counts = {
        "users_expired": expired,
        "users_already_expired": already,
        "users_not_applicable": not_applicable,
    }
    _set(batch, **counts)
    return counts


def _finish(batch: ExpiryBatch, counts: dict[str, int], progress: Progress | None) -> None:
    for name, value in counts.items():
        setattr(batch, name, value)
    if not batch.everyone and not Demand.objects.using(feed.using).filter(batch=batch).exists():
        _set(batch, state=BatchState.DONE, sessions_flagged=0, sessions_ended=0)
        return
    for attempt in range(RETRIES):  # pragma: no branch
        try:
            activated = _activate(batch)
            break
        except OperationalError:  # a deadlock, or a lock that was not had in time
            if attempt == RETRIES - 1:
                raise
            time.sleep(0.05 * 2**attempt)
    feed.drop()
    if activated and batch.holds:
        ids = None if batch.everyone else _few_ids(members(batch))
        passwords_expired.send_robust(sender=ExpiryBatch, batch=batch, user_ids=ids)
    if not batch.everyone:
        _set(batch, sessions_flagged=0, sessions_ended=0)
        project(batch, Selection(members(batch)), progress)
    _done(batch)


def _done(batch: ExpiryBatch) -> None:
    """Unless it was cancelled meanwhile."""
    rows = ExpiryBatch.objects.using(feed.using).filter(pk=batch.pk, state=BatchState.ACTIVE)
    rows.update(state=BatchState.DONE)
    batch.refresh_from_db(using=feed.using, fields=["state"])


def _activate(batch: ExpiryBatch) -> bool:
    """Give the batch its number. The counter's row lock makes commit order the order of numbers."""
    with transaction.atomic(using=feed.using):
        read_state()
        state = EnforcementState.objects.using(feed.using).select_for_update().get(pk=1)
        row = ExpiryBatch.objects.using(feed.using).get(pk=batch.pk)
        if row.state != BatchState.STAGED:
            batch.number, batch.activated_at = row.number, row.activated_at
            return False
        now = timezone.now()
        state.counter = max(state.counter + 1, int(now.timestamp() * 1000))
        state.save(using=feed.using, update_fields=["counter"])
        _set(batch, number=state.counter, activated_at=now, state=BatchState.ACTIVE)
        return True


def _few_ids(users: Any) -> list[Any] | None:
    ids = list(users.values_list("pk", flat=True)[: SIGNAL_IDS_MAX + 1])
    return ids if len(ids) <= SIGNAL_IDS_MAX else None


def resume_expiry(
    batch: ExpiryBatch, users: Any = None, *, exclude: Any = None, progress: Progress | None = None
) -> ExpiryBatch:
    """Go on with a batch that was interrupted; one that is done is returned as it is.

    A batch that was killed while its users were being selected is not in force; give its
    selection again as ``users`` (and ``exclude``). Raises ``BatchNotResumable`` if it is missing,
    and for a cancelled batch.
    """
    batch.refresh_from_db(using=feed.using)
    if batch.state == BatchState.CANCELLED:
        raise BatchNotResumable(f"Batch {batch.pk} was cancelled: expire the users again.")
    if batch.state == BatchState.STAGING:
        if users is None and not batch.everyone:
            raise BatchNotResumable(
                f"Batch {batch.pk} was interrupted before it was in force: give its users again."
            )
        selection = (
            Selection(exclude)
            if batch.everyone and exclude is not None
            else None
            if batch.everyone
            else Selection(users, exclude=exclude)
        )
        Demand.objects.using(feed.using).filter(batch=batch).delete()
        return _run(batch, selection, progress)
    if batch.state in (BatchState.STAGED, BatchState.ACTIVE):
        transaction.on_commit(partial(_finish_again, batch, progress), using=feed.using)
    return batch


def _finish_again(batch: ExpiryBatch, progress: Progress | None) -> None:
    if batch.state == BatchState.STAGED:
        _finish(batch, {}, progress)
        return
    if not batch.everyone:
        project(batch, Selection(members(batch)), progress)
    _done(batch)


def preview_expiry(users: Any, *, exclude: Any = None) -> ExpiryPreview:
    """Count what ``expire_passwords`` would meet with; write nothing. Raises ``InvalidRequest``."""
    selection = Selection(users, exclude=exclude)
    total = already = not_applicable = 0
    for rows in selection.chunks():
        usable = [pk for pk, can in rows if can]
        total += len(rows)
        not_applicable += len(rows) - len(usable)
        already += len(open_demands(usable))
    found = sum(len(owners) for _, owners in find_sessions(selection))
    return ExpiryPreview(
        users=total,
        already_expired=already,
        not_applicable=not_applicable,
        sessions=found if can_find_sessions() else None,
    )


def end_sessions(users: Any, *, progress: Progress | None = None) -> FlagReport:
    """Log ``users`` out everywhere, without demanding a change.

    Stored sessions are deleted; sessions that cannot be reached (signed cookies, a copy that a
    running request saves back) are flushed at their next request. Inside a transaction the work
    is done after the commit, and the report says ``pending``. Raises ``InvalidRequest``.
    """
    selection = Selection(users)
    batch = ExpiryBatch(
        holds=False, reason=Reason.ADMIN, sessions=SessionAction.END, created_at=timezone.now()
    )
    pending = transaction.get_connection(feed.using).in_atomic_block
    report = FlagReport(pending=pending)
    _run(batch, selection, progress)

    def count() -> None:
        report.outcomes["ended"] += batch.sessions_ended or 0  # type: ignore[index]

    transaction.on_commit(count, using=feed.using)
    return report


def demand_aged(user: Any) -> int | None:
    """Make a demand of a password that aged out, so that no clock is asked again. Its number."""
    batch = expire_passwords(user, reason=Reason.AGE)
    return batch.number

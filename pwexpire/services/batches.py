"""Expire, resume, cancel. Stage first, number last: the number puts the whole batch in force."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from django.db import transaction
from django.utils import timezone

from pwexpire.constants import SIGNAL_IDS_MAX
from pwexpire.exceptions import BatchNotResumable
from pwexpire.feed import feed
from pwexpire.models import (
    GIVEN_OUT,
    BatchState,
    Demand,
    EnforcementState,
    ExpiryBatch,
    Reason,
    Require,
    SessionAction,
)
from pwexpire.retries import in_transaction, retried
from pwexpire.services.demand_filters import write_filter
from pwexpire.services.demands import members
from pwexpire.services.drafts import draft_batch
from pwexpire.services.projection import project
from pwexpire.services.selection import Selection, for_the_record
from pwexpire.services.sessions import FlagReport
from pwexpire.services.staging import COUNTS, Progress, analyze_large, stage
from pwexpire.services.status import read_state
from pwexpire.signals import passwords_expired


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
    defer: bool = False,
    selection: str | None = None,
    seconds: float | None = None,
) -> ExpiryBatch:
    """Demand a new password of ``users``, and hold or end their sessions.

    ``users``: a user, an iterable of users, or a ``QuerySet`` (it stays in the database, whatever
    its size; on MariaDB its keys are read, a chunk at a time). ``reason``: a ``Reason`` or a slug
    of ``PWEXPIRE_REASONS``. ``actor``: the user who asks for it. ``note``: free text for the
    record. ``exclude``: users who stay out. ``progress(done, total)`` is called after each chunk,
    ``total`` is ``None`` where unknown. ``require``: ``WARN`` tells the users and holds nobody,
    ``CHANGE`` wants the old password and a new one; with ``RESET`` the old one is withdrawn and
    only an e-mailed reset link or an administrator helps, with ``DENY`` only the administrator;
    both end the sessions and need ``pwexpire.backends.PasswordExpiryBackend``.
    ``defer``: leave the stored sessions to those who call
    ``resume_expiry(batch)``, in as many processes as you like, or to ``enqueue_expiry(batch)`` of
    ``pwexpire.tasks``; the users are held at once all the same. ``selection``: for the record, in
    words, whom this is about; else it is made from ``users``. E-mail addresses are left out of it.
    ``seconds``: work for so long and no longer. A batch whose users were not all selected by then
    has the state ``STAGING`` and is not in force; one that is in force may have stored sessions
    left to flag. ``resume_expiry`` goes on with either.
    Users who have no usable password are counted as not applicable; a demand that is open already
    stays as it is.

    Returns the ``ExpiryBatch`` with its counts. Inside ``transaction.atomic`` it is pending, and
    its counts are ``None``, until the commit; a rollback leaves nothing.
    Raises ``InvalidRequest`` before anything is written.
    """
    chosen = Selection(users, exclude=exclude)
    batch = draft_batch(
        reason=reason,
        require=require,
        sessions=sessions,
        actor=actor,
        note=note,
        selection=for_the_record(chosen.in_words() if selection is None else selection),
    )
    return _run(batch, chosen, progress, defer=defer, seconds=seconds)


def expire_everyone(
    *,
    reason: str = Reason.ADMIN,
    require: str = Require.CHANGE,
    sessions: str = SessionAction.FLAG,
    actor: Any = None,
    note: str = "",
    exclude: Any = None,
    progress: Progress | None = None,
    selection: str | None = None,
) -> ExpiryBatch:
    """Demand a new password of every user there is now, with one row whatever their number.

    Arguments, returns and raises as ``expire_passwords``, but ``users_expired`` stays ``None`` and
    no stored session is written: each is held at its next request.
    """
    out = Selection(exclude) if exclude is not None else None
    said = "everyone" if out is None else f"everyone without {out.in_words()}"
    batch = draft_batch(
        reason=reason,
        require=require,
        sessions=sessions,
        actor=actor,
        note=note,
        everyone=True,
        selection=for_the_record(said if selection is None else selection),
    )
    return _run(batch, out, progress)


def _run(
    batch: ExpiryBatch,
    selection: Selection | None,
    progress: Progress | None,
    *,
    defer: bool = False,
    seconds: float | None = None,
) -> ExpiryBatch:
    until = None if seconds is None else time.monotonic() + seconds
    pending = transaction.get_connection(feed.using).in_atomic_block
    if batch.pk is None:
        retried(partial(batch.save, using=feed.using), using=feed.using)
    stage(batch, selection, progress, until)
    if batch.state != BatchState.STAGED:
        return batch
    feed.drop()
    counts = {name: getattr(batch, name) for name in COUNTS}
    transaction.on_commit(
        partial(_finish, batch, counts, progress, defer, until), using=feed.using, robust=pending
    )
    if pending:
        batch.users_expired = batch.users_already_expired = batch.users_not_applicable = None
    return batch


def _finish(
    batch: ExpiryBatch,
    counts: dict[str, int],
    progress: Progress | None,
    defer: bool,
    until: float | None = None,
) -> None:
    for name, value in counts.items():
        setattr(batch, name, value)
    if not batch.everyone and not Demand.objects.using(feed.using).filter(batch=batch).exists():
        _set(batch, state=BatchState.DONE, sessions_flagged=0, sessions_ended=0)
        return
    write_filter(batch)
    activated = in_transaction(partial(_activate, batch), using=feed.using)
    feed.drop()
    analyze_large(batch)
    if activated and batch.holds:
        _send_expired(batch)
    if not batch.holds and batch.sessions == SessionAction.FLAG:  # a warning: nothing to reach
        _set(batch, state=BatchState.DONE, cursor=GIVEN_OUT)
    elif not defer or batch.everyone:
        project(batch, progress, None if until is None else until - time.monotonic())


def _send_expired(batch: ExpiryBatch) -> None:
    ids = None
    if not batch.everyone:
        few = list(members(batch).values_list("pk", flat=True)[: SIGNAL_IDS_MAX + 1])
        ids = few if len(few) <= SIGNAL_IDS_MAX else None
    passwords_expired.send_robust(sender=ExpiryBatch, batch=batch, user_ids=ids)


def _set(batch: ExpiryBatch, **values: Any) -> None:
    """Unless it was stopped or cancelled meanwhile."""
    rows = ExpiryBatch.objects.using(feed.using).filter(pk=batch.pk, state=batch.state)
    retried(partial(rows.update, **values), using=feed.using)
    batch.refresh_from_db(using=feed.using, fields=[*values, "state"])


def _activate(batch: ExpiryBatch) -> bool:
    """Give the batch its number. The counter's row lock makes commit order the order of numbers."""
    read_state()
    state = EnforcementState.objects.using(feed.using).select_for_update().get(pk=1)
    rows = ExpiryBatch.objects.using(feed.using).filter(pk=batch.pk, state=BatchState.STAGED)
    now = timezone.now()
    number = max(state.counter + 1, int(now.timestamp() * 1000))
    zero = {} if batch.everyone else {"sessions_flagged": 0, "sessions_ended": 0}
    activated = rows.update(number=number, activated_at=now, state=BatchState.ACTIVE, **zero)
    if activated:
        state.counter = number
        state.save(using=feed.using, update_fields=["counter"])
    fields = ["number", "activated_at", "state", "sessions_flagged", "sessions_ended"]
    batch.refresh_from_db(using=feed.using, fields=fields)
    return bool(activated)


def resume_expiry(
    batch: ExpiryBatch,
    users: Any = None,
    *,
    exclude: Any = None,
    progress: Progress | None = None,
    defer: bool = False,
    seconds: float | None = None,
) -> ExpiryBatch:
    """Go on with a batch that was interrupted, stopped or deferred, from where it got to.

    Any number of processes may do so at the same time: they share the work. One that is done is
    returned as it is. A batch that was interrupted while its users were being selected is not in
    force; give the same selection again as ``users`` (and ``exclude``). ``defer``: put it in force,
    and leave the stored sessions to others. ``seconds``: work for so long and no longer.
    Raises ``BatchNotResumable`` if it is missing, and for a cancelled batch.
    """
    batch.refresh_from_db(using=feed.using)
    if batch.state == BatchState.CANCELLED:
        raise BatchNotResumable(f"Batch {batch.pk} was cancelled: expire the users again.")
    if batch.number is None and batch.state in (BatchState.STAGING, BatchState.STOPPED):
        selection = _select_again(batch, users, exclude)
        _set(batch, state=BatchState.STAGING)
        return _run(batch, selection, progress, defer=defer, seconds=seconds)
    if batch.state == BatchState.STOPPED:
        _set(batch, state=BatchState.ACTIVE)
    if batch.state == BatchState.STAGED:
        until = None if seconds is None else time.monotonic() + seconds
        work = partial(_finish, batch, {}, progress, defer, until)
        transaction.on_commit(work, using=feed.using)
    elif batch.state == BatchState.ACTIVE and not defer:
        transaction.on_commit(partial(project, batch, progress, seconds), using=feed.using)
    return batch


def _select_again(batch: ExpiryBatch, users: Any, exclude: Any) -> Selection | None:
    if batch.everyone:
        return None if exclude is None else Selection(exclude)
    if users is None:
        raise BatchNotResumable(
            f"Batch {batch.pk} was interrupted before it was in force: give its users again."
        )
    return Selection(users, exclude=exclude)


def stop_expiry(batch: ExpiryBatch) -> bool:
    """Stop the processes that work at a batch, at the end of the chunk that each is at.

    One that is in force stays in force, and its sessions are held at their next request; one that
    is still being selected is not in force. ``resume_expiry`` goes on with it.
    Returns whether there was anything to stop.
    """
    working = (BatchState.STAGING, BatchState.STAGED, BatchState.ACTIVE)
    rows = ExpiryBatch.objects.using(feed.using).filter(pk=batch.pk, state__in=working)

    def work() -> bool:
        return bool(rows.update(state=BatchState.STOPPED))

    stopped = in_transaction(work, using=feed.using)
    batch.refresh_from_db(using=feed.using, fields=["state"])
    return stopped


def end_sessions(users: Any, *, progress: Progress | None = None) -> FlagReport:
    """Log ``users`` out everywhere, without demanding a change.

    Stored sessions are deleted; sessions that cannot be reached (signed cookies, a copy that a
    running request saves back) are flushed at their next request. Inside a transaction the work
    is done after the commit, and the report says ``pending``. Raises ``InvalidRequest``.
    """
    selection = Selection(users)
    batch = ExpiryBatch(
        holds=False,
        reason=Reason.ADMIN,
        sessions=SessionAction.END,
        selection=for_the_record(selection.in_words()),
        created_at=timezone.now(),
    )
    pending = transaction.get_connection(feed.using).in_atomic_block
    report = FlagReport(pending=pending)
    _run(batch, selection, progress)

    def count() -> None:
        report.outcomes["ended"] += batch.sessions_ended or 0  # type: ignore[index]

    transaction.on_commit(count, using=feed.using)
    return report

"""Expire, resume, cancel. Stage first, number last: the number puts the whole batch in force."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from django.db import transaction
from django.utils import timezone

from pwexpire.conf import conf
from pwexpire.constants import SIGNAL_IDS_MAX
from pwexpire.exceptions import BatchNotResumable, InvalidRequest
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
from pwexpire.services.projection import project
from pwexpire.services.selection import Selection, for_the_record, members
from pwexpire.services.sessions import FlagReport, can_find_sessions, find_sessions
from pwexpire.services.staging import COUNTS, Progress, stage
from pwexpire.services.status import check_saved, open_demand, read_state, usable_password
from pwexpire.signals import passwords_expired


@dataclass(frozen=True, kw_only=True)
class ExpiryPreview:
    """``sessions`` is ``None`` where the session engine keeps nothing that could be counted."""

    users: int
    already_expired: int
    not_applicable: int
    sessions: int | None


def draft_batch(**given: Any) -> ExpiryBatch:
    """Return an unsaved batch of what is ``given``. Raises ``InvalidRequest``; writes nothing."""
    reason, require, sessions = given["reason"], given["require"], given["sessions"]
    reasons = {*Reason.values, *conf.reasons}
    if reason not in reasons:
        raise InvalidRequest(f"Unknown reason {reason!r}: use one of {', '.join(sorted(reasons))}.")
    if require not in Require.values:
        known = ", ".join(f"Require.{name}" for name in Require.names)
        raise InvalidRequest(f"Unknown require {require!r}: use one of {known}.")
    if require in (Require.RESET, Require.DENY):
        if not conf.refuses_logins:
            lax = ", ".join(conf.lax_backends)
            raise InvalidRequest(
                f"Require.{require.upper()} needs a backend that refuses the login"
                f"{f', and {lax} would not' if lax else ''}: put "
                "pwexpire.backends.PasswordExpiryBackend in place of Django's ModelBackend in "
                "AUTHENTICATION_BACKENDS, and PasswordExpiryMixin before any other."
            )
        given["sessions"] = SessionAction.END
    if require == Require.WARN:
        if sessions == SessionAction.END:
            raise InvalidRequest("Require.WARN ends no sessions: use SessionAction.FLAG.")
        given["holds"] = False
    if sessions not in SessionAction.values:
        raise InvalidRequest(f"Unknown sessions {sessions!r}: use SessionAction.FLAG or .END.")
    if not isinstance(given["note"], str):
        raise InvalidRequest("note must be a string.")
    actor = given.pop("actor")
    if actor is not None:
        check_saved(actor)
        # By its key: the object may be from a replica, and routers refuse what that relates to.
        given["actor_id"] = actor.pk
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
    defer: bool = False,
    selection: str | None = None,
) -> ExpiryBatch:
    """Demand a new password of ``users``, and hold or end their sessions.

    ``users``: a user, an iterable of users, or a ``QuerySet`` (it stays in the database, whatever
    its size; on MariaDB its keys are read, a chunk at a time). ``reason``: a ``Reason`` or a slug
    of ``PWEXPIRE_REASONS``. ``actor``: the user who asks for it. ``note``: free text for the
    record. ``exclude``: users who stay out. ``progress(done, total)`` is called after each chunk,
    ``total`` is ``None`` where unknown. ``require``: ``WARN`` tells the users and holds nobody,
    ``CHANGE`` wants the old password and a new one; with ``RESET`` the old one is worth nothing and
    only an e-mailed reset link or an administrator helps, with ``DENY`` only the administrator;
    both end the sessions and need ``pwexpire.backends.PasswordExpiryBackend``.
    ``defer``: leave the stored sessions to whoever calls
    ``resume_expiry(batch)``, in as many processes as you like, or to ``enqueue_expiry(batch)`` of
    ``pwexpire.tasks``; the users are held at once all the same. ``selection``: for the record, in
    words, whom this is about; else it is made from ``users``. E-mail addresses are left out of it.
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
    return _run(batch, chosen, progress, defer=defer)


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
) -> ExpiryBatch:
    pending = transaction.get_connection(feed.using).in_atomic_block
    if batch.pk is None:
        retried(partial(batch.save, using=feed.using), using=feed.using)
    stage(batch, selection, progress)
    if batch.state != BatchState.STAGED:
        return batch
    feed.drop()
    counts = {name: getattr(batch, name) for name in COUNTS}
    transaction.on_commit(
        partial(_finish, batch, counts, progress, defer), using=feed.using, robust=pending
    )
    if pending:
        batch.users_expired = batch.users_already_expired = batch.users_not_applicable = None
    return batch


def _finish(
    batch: ExpiryBatch, counts: dict[str, int], progress: Progress | None, defer: bool
) -> None:
    for name, value in counts.items():
        setattr(batch, name, value)
    if not batch.everyone and not Demand.objects.using(feed.using).filter(batch=batch).exists():
        _set(batch, state=BatchState.DONE, sessions_flagged=0, sessions_ended=0)
        return
    activated = in_transaction(partial(_activate, batch), using=feed.using)
    feed.drop()
    if activated and batch.holds:
        ids = None if batch.everyone else _few_ids(members(batch))
        passwords_expired.send_robust(sender=ExpiryBatch, batch=batch, user_ids=ids)
    if not batch.holds and batch.sessions == SessionAction.FLAG:  # a warning: nothing to reach
        _set(batch, state=BatchState.DONE, cursor=GIVEN_OUT)
    elif not defer or batch.everyone:
        project(batch, progress)


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


def _few_ids(users: Any) -> list[Any] | None:
    ids = list(users.values_list("pk", flat=True)[: SIGNAL_IDS_MAX + 1])
    return ids if len(ids) <= SIGNAL_IDS_MAX else None


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
    and leave the stored sessions to others. ``seconds``: work at them for so long and no longer.
    Raises ``BatchNotResumable`` if it is missing, and for a cancelled batch.
    """
    batch.refresh_from_db(using=feed.using)
    if batch.state == BatchState.CANCELLED:
        raise BatchNotResumable(f"Batch {batch.pk} was cancelled: expire the users again.")
    if batch.number is None and batch.state in (BatchState.STAGING, BatchState.STOPPED):
        if users is None and not batch.everyone:
            raise BatchNotResumable(
                f"Batch {batch.pk} was interrupted before it was in force: give its users again."
            )
        selection = None
        if not batch.everyone:
            selection = Selection(users, exclude=exclude)
        elif exclude is not None:
            selection = Selection(exclude)
        _set(batch, state=BatchState.STAGING)
        return _run(batch, selection, progress, defer=defer)
    if batch.state == BatchState.STOPPED:
        _set(batch, state=BatchState.ACTIVE)
    if batch.state == BatchState.STAGED:
        work = partial(_finish, batch, {}, progress, defer)
        transaction.on_commit(work, using=feed.using)
    elif batch.state == BatchState.ACTIVE and not defer:
        transaction.on_commit(partial(project, batch, progress, seconds), using=feed.using)
    return batch


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


def preview_expiry(users: Any, *, exclude: Any = None) -> ExpiryPreview:
    """Count what ``expire_passwords`` would meet with; write nothing. Raises ``InvalidRequest``."""
    selection = Selection(users, exclude=exclude)
    total = already = not_applicable = 0
    after = ""
    while part := selection.part(after):
        users_here, after = part
        seen, usable = users_here.count(), users_here.filter(usable_password())
        total += seen
        not_applicable += seen - usable.count()
        already += usable.filter(open_demand()).count()
    found = sum(len(owners) for owners in find_sessions(selection, read_only=True))
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

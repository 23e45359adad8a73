"""What counts as a real change, and what it does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import ContextVar
from enum import Enum
from functools import partial
from typing import Any

from django.contrib.auth import get_permission_codename, get_user_model
from django.db import transaction
from django.db.models.functions import Greatest
from django.http import HttpRequest
from django.utils import timezone

from pwexpire.conf import conf
from pwexpire.feed import feed
from pwexpire.keys import key_text
from pwexpire.models import PasswordRecord, Require
from pwexpire.retries import in_transaction, retried
from pwexpire.services.cancellations import close_demands
from pwexpire.services.demands import lowest_open
from pwexpire.services.history import keep_present
from pwexpire.services.password_state import find_password_state
from pwexpire.services.status import check_saved, read_counter, read_rules
from pwexpire.session_state import RequestState
from pwexpire.signals import password_changed

# What was seen of the request that is served here.
change_context: ContextVar[RequestState | None] = ContextVar("pwexpire_request", default=None)


def note_change(user: Any, *, real: bool) -> None:
    current = change_context.get()
    if current is not None:
        current.real_changes = {**current.real_changes, key_text(user.pk): real}


_serves_requests = False


def note_server() -> None:
    """Note that this process serves requests, so that its threads are taken for theirs."""
    global _serves_requests
    _serves_requests = True


def _is_in_thread_of_server() -> bool:
    # A request has a context, which a new thread does not copy. A command is the main thread.
    return _serves_requests and threading.current_thread() is not threading.main_thread()


class ChangedBy(Enum):
    """By whom a password is chosen, and which demands such a change satisfies."""

    ADMINISTRATOR = (Require.CHANGE, Require.RESET, Require.DENY)
    RESET_LINK = (Require.CHANGE, Require.RESET)
    OWN_SESSION = (Require.CHANGE,)

    def satisfies(self, require: str) -> bool:
        """Whether a change made this way is what ``require`` asks for."""
        return require in self.value


def find_changed_by(user: Any) -> ChangedBy:
    """How the password of ``user`` is being changed in this request.

    ``ADMINISTRATOR``: by an administrator, or by a command. ``OWN_SESSION``: in a session of the
    user, where the old password was enough. ``RESET_LINK``: a person with a reset link, or who
    signs up, is taken for the user, whatever account the browser is logged in to. A thread that a
    view started knows of no request, so nobody knows who is at it: that counts as
    ``OWN_SESSION``, which satisfies the least.
    """
    current = change_context.get()
    if current is None:
        return ChangedBy.OWN_SESSION if _is_in_thread_of_server() else ChangedBy.ADMINISTRATOR
    request = current.request
    actor = getattr(request, "user", None)
    if request is None or actor is None or not actor.is_authenticated:
        return ChangedBy.RESET_LINK
    if _is_reset_by_link(request):
        return ChangedBy.RESET_LINK
    if actor.pk == user.pk:
        return ChangedBy.OWN_SESSION
    return ChangedBy.ADMINISTRATOR if _may_change_users(actor) else ChangedBy.RESET_LINK


def _is_reset_by_link(request: HttpRequest) -> bool:
    from django.contrib.auth.views import PasswordResetConfirmView  # needs the user model

    view = getattr(getattr(request.resolver_match, "func", None), "view_class", None)
    return isinstance(view, type) and issubclass(view, PasswordResetConfirmView)


def _may_change_users(actor: Any) -> bool:
    if getattr(actor, "is_staff", False):
        return True
    meta = get_user_model()._meta
    may = getattr(actor, "has_perm", None)
    code = f"{meta.app_label}.{get_permission_codename('change', meta)}"
    return may is not None and bool(may(code))


# What is known of the lockouts of a user without any; a real change leads back to it.
NO_LOCKOUTS: dict[str, Any] = {
    "lockouts": 0,
    "lockouts_since": None,
    "lockout_at": None,
    "lockout_address": None,
}


def set_by_other(user: Any) -> bool:
    """Whether somebody else is choosing the password of ``user``."""
    return find_changed_by(user) is ChangedBy.ADMINISTRATOR


def record_password_change(user: Any) -> None:
    """Say that ``user`` has a new password, where Django cannot see it (``QuerySet.update``, LDAP).

    It satisfies every demand up to now but ``Require.DENY``, which an administrator satisfies, or
    ``cancel_expiry`` lifts. Inside a transaction it counts from the commit.
    Raises ``InvalidRequest`` for an unsaved user.
    """
    check_saved(user)
    note_change(user, real=True)
    number = read_counter()
    meet_demands(
        user, number=number, changed_by=ChangedBy.RESET_LINK, keep=partial(keep_present, user)
    )


def _is_still_aged(user: Any, changed_by: ChangedBy) -> bool:
    """Whether the password aged out, and a change made this way does not satisfy the policy."""
    if conf.policy is None or changed_by is ChangedBy.ADMINISTRATOR or not conf.refuses_logins:
        return False
    record = PasswordRecord.objects.using(feed.using).filter(pk=user.pk).first()
    password_state = find_password_state(
        read_rules(),
        user,
        record or PasswordRecord(user_id=user.pk),
        demand=0,
        find_open=lambda policy: None,
    )
    return password_state.aged and not changed_by.satisfies(password_state.chosen.policy.require)


def meet_demands(
    user: Any,
    *,
    number: int,
    created: bool = False,
    first: bool = False,
    changed_by: ChangedBy = ChangedBy.ADMINISTRATOR,
    nothing_open: bool = False,
    keep: Callable[[], None] | None = None,
) -> None:
    """``number``: the counter as it was before the new password was written.

    A password that somebody else chose is one that the policy may want changed at once.
    ``first``: there was none before, so it is given to a new user. ``nothing_open``: no demand up
    to ``number`` was. ``keep``: what is written with the record.
    """
    given = changed_by is ChangedBy.ADMINISTRATOR and user.has_usable_password()
    by = actor_of_request(user) if given else None

    def write() -> None:
        now = timezone.now()
        upto = number if created or nothing_open else _satisfied_by(user, number, changed_by)
        values: dict[str, Any] = {
            "given_at": now if given else None,
            "given_by_id": by,
            "given_new": created or first,
        }
        # Else the age goes on from the date that it was counted from.
        if created or not _is_still_aged(user, changed_by):
            values |= {"changed_at": now, "assumed": False, "grace_used": 0}
        if not created:
            values |= {"renewed_at": now, "failed_changes": 0, **NO_LOCKOUTS}
        _write_record(user, upto, values, is_new=created)
        # The record's row is locked now: of two changes at once, one keeps its password first.
        if keep is not None:
            keep()
        if not (created or nothing_open):
            close_demands([user.pk], upto=upto)

    def work() -> None:
        # One statement needs no transaction.
        run = retried if nothing_open and keep is None else in_transaction
        run(write, using=feed.using)
        if not created:
            password_changed.send_robust(sender=type(user), user=user)

    # What fails after the caller's commit must not look like a failure of theirs.
    robust = transaction.get_connection(feed.using).in_atomic_block
    transaction.on_commit(work, using=feed.using, robust=robust)


def _satisfied_by(user: Any, number: int, changed_by: ChangedBy) -> int:
    """Return up to which number a change satisfies the demands: short of one that it cannot."""
    if changed_by is ChangedBy.ADMINISTRATOR:  # satisfies all, so nothing is read
        return number
    unmet = lowest_open(user, changed_by.satisfies)
    return number if unmet is None else min(number, unmet - 1)


def _write_record(user: Any, satisfied: int, values: dict[str, Any], *, is_new: bool) -> None:
    records = PasswordRecord.objects.using(feed.using)
    mine = records.filter(pk=user.pk)
    if is_new:
        first = {**values, "satisfied": satisfied}
        if records.get_or_create(user_id=user.pk, defaults=first)[1]:
            return
    more = partial(mine.update, satisfied=Greatest("satisfied", satisfied), **values)
    if not more():
        records.get_or_create(user_id=user.pk)
        more()


def actor_of_request(user: Any) -> Any:
    """Return the primary key of who changes the password of ``user``, if it is somebody else."""
    current = change_context.get()
    actor = getattr(current.request, "user", None) if current is not None else None
    return actor.pk if actor is not None and actor.pk != user.pk else None

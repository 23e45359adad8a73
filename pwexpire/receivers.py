from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from django.apps import apps as global_apps
from django.contrib.auth import BACKEND_SESSION_KEY
from django.contrib.sessions.backends.base import SessionBase
from django.db import Error as DatabaseFault
from django.db import connections, transaction
from django.http import HttpRequest
from django.utils import timezone

from pwexpire.conf import conf
from pwexpire.exceptions import EnforcementUnavailable
from pwexpire.feed import feed
from pwexpire.models import EnforcementState
from pwexpire.retries import first_line, retried, savepoint
from pwexpire.services.attempts import renew_attempts
from pwexpire.services.index import forget_session, index_session, uses_index
from pwexpire.services.lockouts import after_login
from pwexpire.services.password_changes import change_context, find_changed_by, meet_demands
from pwexpire.services.password_state import PasswordState
from pwexpire.services.saves import (
    ATTRIBUTE,
    PasswordChange,
    follow_up_save,
    given_password,
    is_noted,
    may_be_change,
    prepare_change,
    read_change,
    writes_password,
)
from pwexpire.services.stamps import (
    clear_numbered_flag,
    set_flag,
    stamp_session,
    stamp_unjudged,
)
from pwexpire.services.status import read_counter, read_counter_and_state, take_grace
from pwexpire.services.trace import erase_user
from pwexpire.session_state import names_user, request_state_of
from pwexpire.sessionstore.registry import get_adapter
from pwexpire.users import is_recorded

logger = logging.getLogger("pwexpire")


def on_login(sender: Any, request: HttpRequest | None, user: Any, **kwargs: Any) -> None:
    """Stamp the session with what it satisfies; flag it at once if the password is expired.

    A session that does not name ``user`` is left alone: a login by token sends the signal too.
    """
    if user is None or user.pk is None:
        return
    session = getattr(request, "session", None)
    if not names_user(session, user):
        session = None
    if not _is_taken_over(request) and not _is_exempt(session):
        after_login(request, user)
    if session is None:
        return
    request_state_of(request).logged_in = True
    _stamp_login(request, session, user)
    if session.session_key is None and uses_index(get_adapter()):
        session.create()
    _at_commit(
        partial(index_session, session.session_key, user.pk), "A session could not be indexed"
    )


def _stamp_login(request: HttpRequest | None, session: SessionBase, user: Any) -> None:
    try:
        with savepoint(using=feed.using):
            counter, password_state = retried(
                partial(read_counter_and_state, user), using=feed.using
            )
    except DatabaseFault as error:
        logger.warning("A login could not be judged, its next request will be: %s", error)
        stamp_unjudged(session, feed.last_counter())
        return
    if password_state.failed_changes:
        renew_attempts(user)
    grace = _takes_grace(request, session, user, password_state)
    stamp_session(session, counter, password_state, grace=grace)
    if password_state.held and not grace and not _is_exempt(session) and conf.enforce:
        set_flag(session, password_state.demand or counter)
    else:
        clear_numbered_flag(session)


def _at_commit(work: Callable[[], Any], failure: str) -> None:
    """Run ``work`` on the index at the commit; a fault of it fails no login and no logout."""

    def run() -> None:
        try:
            work()
        except DatabaseFault as error:
            logger.error("%s: %s", failure, error)

    transaction.on_commit(run, using=feed.using, robust=True)


def _is_exempt(session: SessionBase | None) -> bool:
    return session is not None and session.get(BACKEND_SESSION_KEY) in conf.exempt_backends


def _is_taken_over(request: HttpRequest | None) -> bool:
    """Whether somebody else logs in as the user, by django-hijack or django-loginas."""
    view = getattr(getattr(request, "resolver_match", None), "func", None)
    return getattr(view, "__module__", None) in ("hijack.views", "loginas.views")


def _takes_grace(
    request: HttpRequest | None, session: SessionBase, user: Any, password_state: PasswordState
) -> bool:
    if _is_taken_over(request):
        return False
    if not (password_state.held_by_age_alone and password_state.grace and conf.enforce):
        return False
    if _is_exempt(session):
        return False
    try:
        with savepoint(using=feed.using):
            take = partial(take_grace, user, password_state.chosen.policy.grace_logins)
            return retried(take, using=feed.using)
    except DatabaseFault as error:
        logger.error("A grace login could not be counted, so it is none: %s", error)
        return False


def on_logout(sender: Any, request: HttpRequest | None, user: Any, **kwargs: Any) -> None:
    session = getattr(request, "session", None)
    if session is None or not names_user(session, user):
        return  # a logout by token ends no session
    _at_commit(partial(_forget, session.session_key), "A session could not leave the index")


def _forget(session_key: str | None) -> None:
    forget_session(session_key)
    current = change_context.get()
    if current is not None:
        current.forgotten = session_key  # so that the middleware need not ask whether it is gone


def before_user_saved(
    sender: Any,
    instance: Any,
    using: str,
    raw: bool = False,
    update_fields: Any = None,
    **kwargs: Any,
) -> None:
    """Read the password that is there before another one is written, and the counter.

    Before, so that a concurrent expiry wins. Costs nothing where no password is written. A save to
    another database changes nothing here, but Django forgets the new password with it.
    """
    if raw or not is_recorded(instance):
        return
    here = using == feed.using
    if not here and given_password(instance) is None:
        return
    noted = instance.__dict__.pop(ATTRIBUTE, None)
    if instance.pk is None or not may_be_change(instance, noted, update_fields):
        if is_noted(instance, noted):
            instance.__dict__[ATTRIBUTE] = noted
        return
    try:
        with savepoint(using=feed.using):
            change = retried(partial(read_change, instance, noted), using=feed.using)
            if change is not None:
                instance.__dict__[ATTRIBUTE] = change
                written = here and writes_password(update_fields)
                prepare_change(instance, change, written=written)
    except (DatabaseFault, EnforcementUnavailable) as error:
        logger.error("A password change could not be prepared: %s", first_line(error))


def _is_real_save(instance: Any, using: str, raw: bool) -> bool:
    """Whether a user is written to the users' own database, and not loaded from a fixture."""
    return not raw and is_recorded(instance) and using == feed.using


def after_user_saved(
    sender: Any,
    instance: Any,
    created: bool,
    using: str,
    raw: bool = False,
    update_fields: Any = None,
    **kwargs: Any,
) -> None:
    """Record what was written."""
    if not _is_real_save(instance, using, raw):
        return
    change: PasswordChange | None = None
    if writes_password(update_fields):
        change = instance.__dict__.get(ATTRIBUTE)
        # Kept after a real one: its transaction may be rolled back, and the same user saved again.
        if change is not None and not change.real:
            del instance.__dict__[ATTRIBUTE]
    if not created and change is None:
        return
    try:
        with savepoint(using=feed.using):
            if created or change is None:
                number, changed_by = read_counter(), find_changed_by(instance)
                meet_demands(instance, number=number, created=True, changed_by=changed_by)
            else:
                follow_up_save(instance, change)
    except DatabaseFault as error:
        logger.error("A password change could not be recorded: %s", first_line(error))


def after_user_deleted(sender: Any, instance: Any, using: str, **kwargs: Any) -> None:
    if using == feed.using:
        erase_user(instance.pk)


def after_migrate(sender: Any, using: str, apps: Any = global_apps, **kwargs: Any) -> None:
    """Make the one row of the state; its time is the day on which pwexpire came.

    ``migrate`` of another app sends this too, before our tables are there or after they went. The
    models of ``apps`` have the columns that the tables have.
    """
    table = EnforcementState._meta.db_table
    if using != feed.using or table not in connections[using].introspection.table_names():
        return
    states = apps.get_model("pwexpire", "EnforcementState").objects.using(using)
    states.get_or_create(pk=1, defaults={"created_at": timezone.now()})


def on_setting_changed(sender: Any, setting: str, **kwargs: Any) -> None:
    """Sent in tests only; the view keeps what it read of the settings at its poll."""
    if setting == "PWEXPIRE_ENFORCE":
        feed.reset()  # what it remembers holds for the old value
    elif setting.startswith("PWEXPIRE_"):
        feed.outdate()

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from django.apps import apps as global_apps
from django.contrib.auth import BACKEND_SESSION_KEY, get_user_model
from django.contrib.auth.hashers import (
    check_password,
    get_hasher,
    identify_hasher,
    is_password_usable,
)
from django.contrib.sessions.backends.base import SessionBase
from django.core.exceptions import ImproperlyConfigured
from django.db import Error as DatabaseFault
from django.db import connections, transaction
from django.http import HttpRequest
from django.utils import timezone

from pwexpire.cases import names_user
from pwexpire.conf import conf
from pwexpire.exceptions import EnforcementUnavailable
from pwexpire.feed import feed
from pwexpire.models import EnforcementState
from pwexpire.retries import retried, savepoint
from pwexpire.services.attempts import after_login, renew_attempts
from pwexpire.services.changes import Way, meet_demands, testify, way_of, witness
from pwexpire.services.history import keep_old, length_kept, locked_hash, stored_hash
from pwexpire.services.index import forget_session, index_session, uses_index
from pwexpire.services.judging import Judgement
from pwexpire.services.stamps import (
    clear_numbered_flag,
    set_flag,
    stamp_session,
    stamp_unjudged,
)
from pwexpire.services.status import judge, judge_now, read_counter, take_grace
from pwexpire.sessionstore.registry import get_adapter

logger = logging.getLogger("pwexpire")
_PENDING = "_pwexpire_pending"
_SAVE = "_save_table"


@dataclass(frozen=True)
class Pending:
    """A new password that is about to be written: the counter before, by whom, and is it new."""

    counter: int
    real: bool
    way: Way


def on_login(sender: Any, request: HttpRequest | None, user: Any, **kwargs: Any) -> None:
    """Stamp the session with what it satisfies; flag it at once if the password is expired.

    A session that does not name ``user`` is left alone: a login by token sends the signal too.
    """
    if user is None or user.pk is None:
        return
    session = getattr(request, "session", None)
    if not names_user(session, user):
        session = None
    backend = session.get(BACKEND_SESSION_KEY) if session is not None else None
    if not _is_taken_over(request) and backend not in conf.exempt_backends:
        after_login(request, user)
    if session is None:
        return
    request._pwexpire_login = True  # type: ignore[union-attr]
    try:
        with savepoint(using=feed.using):
            counter, judged = retried(partial(judge_now, user), using=feed.using)
    except DatabaseFault as error:
        logger.warning("A login could not be judged, its next request will be: %s", error)
        stamp_unjudged(session, feed.last_counter())
    else:
        renew_attempts(user)
        grace = _takes_grace(request, session, user, judged)
        stamp_session(session, counter, judged, grace=grace)
        exempt = backend in conf.exempt_backends
        if judged.held and not grace and not exempt and conf.enforce:
            set_flag(session, judged.demand or counter)
        else:
            clear_numbered_flag(session)
    if session.session_key is None and uses_index(get_adapter()):
        session.create()
    key = session.session_key

    def work() -> None:
        try:
            index_session(key, user.pk)
        except DatabaseFault as error:
            logger.error("A session could not be indexed: %s", error)

    transaction.on_commit(work, using=feed.using, robust=True)


def _is_taken_over(request: HttpRequest | None) -> bool:
    """Whether somebody else logs in as the user, by django-hijack."""
    match = getattr(request, "resolver_match", None)
    return match is not None and "hijack" in match.app_names


def _takes_grace(
    request: HttpRequest | None, session: SessionBase, user: Any, judged: Judgement
) -> bool:
    if _is_taken_over(request):
        return False
    if not (judged.held_by_age_alone and judged.grace and conf.enforce):
        return False
    if session.get(BACKEND_SESSION_KEY) in conf.exempt_backends:
        return False
    try:
        with savepoint(using=feed.using):
            take = partial(take_grace, user, judged.chosen.policy.grace_logins)
            return retried(take, using=feed.using)
    except DatabaseFault as error:
        logger.error("A grace login could not be counted, so it is none: %s", error)
        return False


def on_logout(sender: Any, request: HttpRequest | None, user: Any, **kwargs: Any) -> None:
    session = getattr(request, "session", None)
    if session is None or not names_user(session, user):
        return  # a logout by token ends no session
    key = session.session_key

    def work() -> None:
        try:
            forget_session(key)
        except DatabaseFault as error:
            logger.error("A session could not leave the index: %s", error)

    transaction.on_commit(work, using=feed.using, robust=True)


def before_user_saved(
    sender: Any,
    instance: Any,
    using: str,
    raw: bool = False,
    update_fields: Any = None,
    **kwargs: Any,
) -> None:
    """Read the counter before a new password is written, so that a concurrent expiry wins."""
    if not _is_real_save(instance, using, raw) or instance._state.adding:
        return
    for name in (_PENDING, _SAVE):  # left by a save that failed
        instance.__dict__.pop(name, None)
    if update_fields is not None and "password" not in update_fields:
        return
    try:
        with savepoint(using=feed.using):
            if getattr(instance, "_password", None) is not None:
                look = partial(_look_at_change, instance)
                instance.__dict__[_PENDING] = retried(look, using=feed.using)
            elif not is_password_usable(getattr(instance, "password", None)):
                retried(partial(_look_at_end, instance), using=feed.using)
            else:
                retried(partial(_look_at_hash, instance), using=feed.using)
    except (DatabaseFault, EnforcementUnavailable) as error:
        logger.error("A password change could not be prepared: %s", error)


def _is_real_save(instance: Any, using: str, raw: bool) -> bool:
    """Whether a user is written to the users' own database, and not loaded from a fixture."""
    return not raw and using == feed.using and _is_of_users(instance)


def _is_of_users(instance: Any) -> bool:
    try:
        return isinstance(instance, get_user_model())
    except ImproperlyConfigured:  # a test case with ``available_apps`` that leave the users out
        return False


def _look_at_change(user: Any) -> Pending:
    counter, way = read_counter(), way_of(user)
    keeps = length_kept(user) > 0
    old = stored_hash(user)
    if keeps:
        user.__dict__[_SAVE] = partial(_save_and_keep, user, old)
    return Pending(counter, not check_password(user._password, old), way)


def _look_at_end(user: Any) -> None:
    """A password that goes without another in its place may be wanted back as well."""
    if length_kept(user) and is_password_usable(stored_hash(user)):
        user.__dict__[_SAVE] = partial(_save_and_keep, user, "")


def _save_and_keep(user: Any, seen: str, *args: Any, **kwargs: Any) -> Any:
    """Stands in for one call of ``Model._save_table``, which writes the row.

    No signal is sent inside the transaction of that statement, and only there it is certain which
    hash it replaces: of two changes at the same time each keeps what it took away. ``seen``: the
    hash with which the new password was compared before the row was locked.
    """
    del user.__dict__[_SAVE]
    with transaction.atomic(using=feed.using):
        old = locked_hash(user)
        pending: Pending | None = user.__dict__.get(_PENDING)
        if pending is not None and old != seen:
            pending = replace(pending, real=not check_password(user._password, old))
            user.__dict__[_PENDING] = pending
        saved = user._save_table(*args, **kwargs)
        if pending is None or pending.real:
            try:
                with transaction.atomic(using=feed.using):
                    keep_old(user, old)
            except DatabaseFault as error:  # its details may have the hash
                said = str(error).partition("\n")[0]
                logger.error("An old password could not be kept: %s", said)
        return saved


def _look_at_hash(user: Any) -> None:
    """A hash that came without its password: an upgrade of the hasher, or a change in disguise."""
    if not _held_here() and not feed.view(feed.scope()).demand(str(user.pk)):
        return
    old = stored_hash(user)
    if old == user.password or not is_password_usable(user.password):
        return
    preferred, hasher = get_hasher(), _find_hasher(old)
    if hasher and (hasher.algorithm != preferred.algorithm or hasher.must_update(old)):
        testify(user, real=False)
        return
    if not judge(user).demand:
        return
    logger.warning(
        "The password hash of user %s was replaced without set_password() while a change is "
        "demanded: call pwexpire.services.record_password_change(user).",
        user.pk,
    )


def _find_hasher(encoded: str) -> Any:
    """The hasher that made ``encoded``; ``None`` if it is none of the site's any more."""
    try:
        return identify_hasher(encoded) if is_password_usable(encoded) else None
    except ValueError:
        return None


def _held_here() -> bool:
    current = witness.get()
    return current is not None and current.held


def after_user_saved(
    sender: Any, instance: Any, created: bool, using: str, raw: bool = False, **kwargs: Any
) -> None:
    if not _is_real_save(instance, using, raw):
        return
    pending: Pending | None = instance.__dict__.pop(_PENDING, None)
    try:
        with savepoint(using=feed.using):
            if created:
                number, way = read_counter(), way_of(instance)
                meet_demands(instance, number=number, created=True, way=way)
            elif pending is not None:
                testify(instance, real=pending.real)
                if pending.real:
                    meet_demands(instance, number=pending.counter, way=pending.way)
    except DatabaseFault as error:
        logger.error("A password change could not be recorded: %s", error)


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
        feed.reset()  # its verdicts are of another world
    elif setting.startswith("PWEXPIRE_"):
        feed.outdate()

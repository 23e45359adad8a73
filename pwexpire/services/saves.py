"""One notion of a change: what a save of a user writes in place of which password, and by whom."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from django.contrib.auth.hashers import (
    check_password,
    get_hasher,
    identify_hasher,
    is_password_usable,
)
from django.db import Error as DatabaseFault
from django.db import transaction
from django.db.models import Exists, OuterRef, Subquery
from django.db.models.functions import Coalesce
from django.views.decorators.debug import sensitive_variables

from pwexpire.feed import feed
from pwexpire.keys import key_text
from pwexpire.models import EnforcementState, OldPassword
from pwexpire.retries import first_line, is_conflict
from pwexpire.services.demands import all_users, batches_in_force, demands_in_force
from pwexpire.services.history import forget_old, keep_new, length_kept, rename_kept, seed_history
from pwexpire.services.password_changes import (
    ChangedBy,
    actor_of_request,
    change_context,
    find_changed_by,
    meet_demands,
    note_change,
)
from pwexpire.services.password_state import NO_PASSWORD
from pwexpire.services.status import read_password_state

logger = logging.getLogger("pwexpire")

# Where a change is kept between the two signals of its save: with the user who is saved.
ATTRIBUTE = "_pwexpire_change"


@dataclass(frozen=True, slots=True, kw_only=True)
class PasswordChange:
    """A hash that a save writes, or will write, in place of another.

    ``before`` and ``after``: the hashes. ``user_id``: whose they are, ``using``: in which database.
    ``changed_by`` and ``actor``: by whom. ``real``: whether it is another password; ``None`` where
    nobody knows, which counts as no change. ``counter``: the highest number of a demand at the
    moment at which ``before`` was stored. ``nothing_open``: no demand was open then.
    ``newest_kept``: the newest hash in the history, ``None`` if it is empty.
    """

    user_id: Any
    using: str
    before: str = field(repr=False)
    after: str = field(repr=False)
    changed_by: ChangedBy
    actor: Any
    real: bool | None
    counter: int
    nothing_open: bool
    newest_kept: str | None = field(repr=False)

    @property
    def keeps_password(self) -> bool:
        """Whether the hash becomes another one, and the password does not."""
        return self.before != self.after and (self.real is False or self.is_upgrade)

    @property
    def is_upgrade(self) -> bool:
        """Whether a hash of an older hasher, or of fewer rounds, is replaced without a password."""
        if self.real is not None or not is_password_usable(self.after):
            return False
        preferred, hasher = get_hasher(), find_hasher(self.before)
        return hasher is not None and (
            hasher.algorithm != preferred.algorithm or hasher.must_update(self.before)
        )


def given_password(user: Any) -> str | None:
    """Return the password that ``set_password`` was called with, until the user is saved.

    Django keeps it there for the validators' ``password_changed``. A hash alone cannot say whether
    it is of the same password; everything else is decided without it.
    """
    given: str | None = getattr(user, "_password", None)
    return given if given is not None and is_password_usable(user.password) else None


@sensitive_variables()
def read_change(user: Any, noted: PasswordChange | None = None) -> PasswordChange | None:
    """Compare the password of ``user`` with the stored one; one query.

    ``noted``: what was found at an earlier save, which did not write the password. Returns ``None``
    for a user who is not stored. To be called before the user is saved: an expiry that comes
    later has a number above ``counter``, so this change does not satisfy it.
    """
    counter = EnforcementState.objects.using(feed.using).values("counter")
    kept = OldPassword.objects.using(feed.using).filter(user=OuterRef("pk")).order_by("-pk")
    satisfied = Coalesce(OuterRef("pwexpire_record__satisfied"), 0)
    everyone = batches_in_force().filter(everyone=True, number__gt=satisfied)
    row = (
        all_users()
        .filter(pk=user.pk)
        .values_list(
            "password",
            Subquery(counter[:1]),
            Exists(demands_in_force(user=OuterRef("pk"))),
            Exists(everyone),
            Subquery(kept.values("encoded")[:1]),
        )
        .first()
    )
    if row is None:
        return None
    before, number, is_demanded, is_demanded_of_all, newest = row
    return PasswordChange(
        user_id=user.pk,
        using=feed.using,
        before=before,
        after=user.password,
        changed_by=find_changed_by(user),
        actor=actor_of_request(user),
        real=_is_real(user, before, noted, newest),
        counter=number or 0,
        nothing_open=not (is_demanded or is_demanded_of_all),
        newest_kept=newest,
    )


@sensitive_variables()
def _is_real(
    user: Any, before: str, noted: PasswordChange | None, newest: str | None
) -> bool | None:
    given = given_password(user)
    if before == user.password:
        return False
    if given is not None:
        # Where there was none, the last one that is kept says whether this one is new.
        return not check_password(given, newest or before if _is_none(before) else before)
    if is_noted(user, noted) and noted is not None and noted.before == before:
        return noted.real
    return None


def _is_none(encoded: str) -> bool:
    return encoded in NO_PASSWORD or not is_password_usable(encoded)


def is_noted(user: Any, noted: PasswordChange | None) -> bool:
    """Whether ``noted`` is of the hash that ``user`` has; a copy of a user carries a copy of it."""
    return noted is not None and (noted.user_id, noted.after) == (user.pk, user.password)


def find_hasher(encoded: str) -> Any:
    """Return the hasher that made ``encoded``; ``None`` if it is none of the site's any more."""
    try:
        return identify_hasher(encoded) if is_password_usable(encoded) else None
    except ValueError:
        return None


def writes_password(update_fields: Any) -> bool:
    """Whether a save with these ``update_fields`` writes the password."""
    return update_fields is None or "password" in update_fields


def may_be_change(user: Any, noted: PasswordChange | None, update_fields: Any) -> bool:
    """Whether the stored password has to be looked at; asks the database nothing.

    A hash that came without its password is looked at where that makes a difference: Django saves
    that of an upgraded hasher alone, and a demand makes a warning due.
    """
    if given_password(user) is not None:
        return True
    if not writes_password(update_fields):
        return False
    return is_noted(user, noted) or (
        not user._state.adding and _may_replace_hash(user, update_fields)
    )


def _may_replace_hash(user: Any, update_fields: Any) -> bool:
    if not is_password_usable(user.password):
        return length_kept(user) > 0
    if update_fields is not None and length_kept(user):
        return True
    current = change_context.get()
    if current is not None and current.was_held:
        return True
    # What was known last is enough for a warning, and asks nothing at every save.
    view = feed.last_view(feed.scope())
    return view is not None and view.is_demanded_after(0, key_text(user.pk))


def prepare_change(user: Any, change: PasswordChange, *, written: bool) -> None:
    """Keep what will be replaced, or say that nobody can know whether it was a change."""
    if change.before == change.after or not written:
        return
    if change.real or not is_password_usable(change.after):
        if length_kept(user):
            seed_history(user, present=change.before, newest=change.newest_kept)
    elif change.real is None and not change.is_upgrade and read_password_state(user).demand:
        logger.warning(
            "The password hash of user %s was replaced without set_password() while a change is "
            "demanded: call pwexpire.services.record_password_change(user).",
            user.pk,
        )


def follow_up_save(user: Any, change: PasswordChange) -> None:
    """Record a real change; a password that only has another hash keeps its place."""
    if change.real:
        _record(user, change)
    elif change.keeps_password and change.newest_kept is not None:
        kept = change.newest_kept if _is_none(change.before) else change.before
        rename_kept(user, before=kept, after=change.after)


def _record(user: Any, change: PasswordChange) -> None:
    note_change(user, real=True)
    keep = None
    if length_kept(user):
        keep = partial(_keep_password, user, change, given_password(user))
    elif change.newest_kept is not None:
        keep = partial(forget_old, user)
    if keep is not None and transaction.get_connection(feed.using).in_atomic_block:
        keep()  # in the transaction of the save, which may be rolled back
        keep = None
    meet_demands(
        user,
        number=change.counter,
        first=_is_none(change.before),
        changed_by=change.changed_by,
        nothing_open=change.nothing_open,
        keep=keep,
    )


@sensitive_variables()
def _keep_password(user: Any, change: PasswordChange, given: str | None) -> None:
    try:
        with transaction.atomic(using=feed.using):
            keep_new(user, before=change.before, after=change.after, given=given)
    except DatabaseFault as error:
        if is_conflict(error):
            raise
        logger.error("An old password could not be kept: %s", first_line(error))

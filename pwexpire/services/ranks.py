"""Who may expire or cancel whom, and whom an expiry would lock out."""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from django.contrib.auth import get_user_model

from pwexpire.constants import LOCKING, PERMISSION
from pwexpire.keys import key_text
from pwexpire.models import Require
from pwexpire.services.demands import all_users, open_demand
from pwexpire.services.password_state import has_password
from pwexpire.services.selection import Selection
from pwexpire.services.status import password_status


@dataclass(frozen=True, kw_only=True)
class Lockout:
    """Whom a RESET or DENY of a selection would leave without a way in of their own."""

    actor: bool
    last_superuser: bool


def may_expire(actor: Any) -> bool:
    """Return whether ``actor`` is active and has the permission that the admin asks for."""
    # A user model without permissions has none to ask for.
    has_perm = getattr(actor, "has_perm", lambda name: True)
    return bool(actor.is_active and has_perm(PERMISSION))


def find_outranked(actor: Any, selection: Selection) -> set[Any]:
    """Return the keys of the selected users whose rank is above that of ``actor``."""
    if getattr(actor, "is_superuser", False):
        return set()
    return _select_among(selection, [user.pk for user in _superusers()])


def may_cancel_own(actor: Any, selection: Selection) -> bool:
    """Return whether ``actor`` is not selected, or has no open demand that could be cancelled."""
    if not _select_among(selection, [actor.pk]):
        return True
    return not all_users().filter(open_demand(Require.WARN), pk=actor.pk).exists()


def find_lockout(selection: Selection, actor: Any) -> Lockout:
    """Return who of ``actor`` and the last active superuser is in the selection."""
    itself = actor is not None and bool(_select_among(selection, [actor.pk]))
    return Lockout(actor=itself, last_superuser=_includes_last_superuser(selection))


def _includes_last_superuser(selection: Selection) -> bool:
    active = list(filter(attrgetter("is_active"), _superusers()))
    selected = _select_among(selection, [user.pk for user in active])
    # Only who has a password loses it; who keeps another way in remains.
    lost = {user.pk for user in active if user.pk in selected and has_password(user)}
    others = [user for user in active if user.pk not in lost]
    return bool(lost) and all(password_status(user).require in LOCKING for user in others)


def _superusers() -> list[Any]:
    if "is_superuser" not in {field.name for field in get_user_model()._meta.concrete_fields}:
        return []
    return list(all_users().filter(is_superuser=True))


def _select_among(selection: Selection, pks: list[Any]) -> set[Any]:
    return selection.among(key_text(pk) for pk in pks)

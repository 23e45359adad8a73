"""What an expiry would meet with, before it is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.db.models import Count

from pwexpire.services.expired import is_applicable, is_expired
from pwexpire.services.selection import Selection
from pwexpire.services.sessions import can_find_sessions, find_sessions


@dataclass(frozen=True, kw_only=True)
class ExpiryPreview:
    """``sessions`` is ``None`` where the session engine keeps nothing that could be counted."""

    users: int
    already_expired: int
    not_applicable: int
    sessions: int | None


def preview_expiry(users: Any, *, exclude: Any = None) -> ExpiryPreview:
    """Count what ``expire_passwords`` would meet with; write nothing. Raises ``InvalidRequest``."""
    selection = Selection(users, exclude=exclude)
    total = asked = already = 0
    after = ""
    while part := selection.part(after):
        users_here, after = part
        applicable, expired = is_applicable(users_here), is_expired(users_here)
        found = users_here.aggregate(
            total=Count("pk"),
            asked=Count("pk", filter=applicable),
            already=Count("pk", filter=applicable & expired),
        )
        total += found["total"]
        asked += found["asked"]
        already += found["already"]
    sessions = sum(len(owners) for owners in find_sessions(selection, read_only=True))
    return ExpiryPreview(
        users=total,
        already_expired=already,
        not_applicable=total - asked,
        sessions=sessions if can_find_sessions() else None,
    )

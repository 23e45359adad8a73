"""What an expiry would meet with, before it is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pwexpire.services.expired import count_expired
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
        users_here, last = part
        counts = count_expired(users_here, (after, last))
        total, asked, already = (
            one + other for one, other in zip((total, asked, already), counts, strict=True)
        )
        after = last
    sessions = sum(len(owners) for owners in find_sessions(selection, read_only=True))
    return ExpiryPreview(
        users=total,
        already_expired=already,
        not_applicable=total - asked,
        sessions=sessions if can_find_sessions() else None,
    )

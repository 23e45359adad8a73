"""Whom a verb is about that concerns everybody unless somebody is named."""

from __future__ import annotations

from typing import Any

from pwexpire.management.selectors import SELECTORS, excluded, select
from pwexpire.services.selection import Selection


def choose_users(options: dict[str, Any]) -> Selection:
    named = any(options[name] for name in SELECTORS)
    users = select(options if named else {**options, "everyone": True})
    return Selection(users, exclude=excluded(options))

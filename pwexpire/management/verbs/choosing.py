"""The users of a verb that concerns everybody unless somebody is named."""

from __future__ import annotations

from typing import Any

from django.db.models import QuerySet

from pwexpire.management.console import Console
from pwexpire.management.selectors import SELECTORS, excluded, select
from pwexpire.services.selection import Selection


def choose_users(options: dict[str, Any], console: Console) -> Selection:
    users, exclude = chosen_users(options, console)
    return Selection(users, exclude=exclude)


def chosen_users(options: dict[str, Any], console: Console) -> tuple[QuerySet[Any], Any]:
    """Return the users, and those who are left out of them."""
    named = any(options[name] for name in SELECTORS)
    users = select(options if named else {**options, "everyone": True}, console.notice)
    return users, excluded(options)

"""Whom a verb is about that concerns everybody unless somebody is named."""

from __future__ import annotations

from typing import Any

from django.db.models import QuerySet

from pwexpire.management.selectors import SELECTORS, excluded, select
from pwexpire.services.selection import Selection


def choose_users(options: dict[str, Any]) -> Selection:
    users, exclude = chosen_users(options)
    return Selection(users, exclude=exclude)


def chosen_users(options: dict[str, Any]) -> tuple[QuerySet[Any], Any]:
    """The users, and those of them who stay out."""
    named = any(options[name] for name in SELECTORS)
    users = select(options if named else {**options, "everyone": True})
    return users, excluded(options)

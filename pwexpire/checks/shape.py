"""The system checks are generators; this makes of them what Django calls."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from difflib import get_close_matches
from typing import Any

from django.core.checks import CheckMessage
from django.urls import get_resolver

from pwexpire.conf import SETTINGS

Messages = Iterator[CheckMessage]
Check = Callable[..., list[CheckMessage]]
ALL: list[Check] = []


def check(find: Callable[[], Messages]) -> Check:
    """Register the check that lists what ``find`` yields, and return it."""

    def run(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
        return list(find())

    ALL.append(run)
    return run


def check_urls(find: Callable[[], Messages]) -> Check:
    """As ``check``, of a URLconf; one that cannot be loaded is reported by Django's own checks."""

    def run(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
        try:
            loaded = bool(get_resolver().url_patterns)
        except Exception:
            loaded = False
        return list(find()) if loaded else []

    ALL.append(run)
    return run


def is_right(name: str) -> bool:
    """Whether the value of a setting is valid; ``check_settings`` reports it if it is not."""
    return SETTINGS[name].is_valid(SETTINGS[name].read(name))


def suggest(name: str, known: Collection[str], otherwise: str) -> str:
    """Return a hint: the known name that is most like ``name``, or ``otherwise``."""
    near = get_close_matches(name, known, n=1)
    return f"Did you mean {near[0]}?" if near else otherwise

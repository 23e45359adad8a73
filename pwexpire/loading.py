"""Policies and callables that settings name. A wrong one fails no page, and frees nobody.

What cannot be loaded, or raises, is read strictly: it applies to everybody, nobody has a second
factor, and there is no policy, while demands go on to hold. It is logged once in each process.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from django.db import Error as DatabaseFault
from django.utils.module_loading import import_string

from pwexpire.policy import PRESETS, Policy

logger = logging.getLogger("pwexpire")
Predicate = Callable[[Any], bool]
# So that a page that is asked a thousand times logs its mistake once.
_logged: set[tuple[str, str]] = set()


def log_once(setting: str, why: str) -> None:
    if (setting, why) not in _logged:
        _logged.add((setting, why))
        logger.error("PWEXPIRE_%s %s; manage.py check says more.", setting, why)


def load_path(path: str) -> Any:
    """Return what a dotted path leads to, or ``None``: a module may raise anything at import."""
    try:
        return import_string(path)
    except Exception:
        return None


def load_predicate(setting: str, value: Any, *, strict: bool) -> Predicate | None:
    """A callable that takes a user; ``strict`` is its answer where it raises.

    ``None`` where there is none, which is the strict reading of both settings.
    """
    found = load_path(value) if isinstance(value, str) else value
    if not callable(found):
        if value is not None:
            log_once(setting, "is no callable")
        return None

    def ask(user: Any) -> bool:
        try:
            return bool(found(user))
        except DatabaseFault:  # a fault of the database is answered as such
            raise
        except Exception as error:
            log_once(setting, f"raised {type(error).__name__}")
            return strict

    return ask


def find_policy(value: Any) -> Any:
    """Return a policy or a callable, by its path or the name of a preset as well; else ``None``."""
    if isinstance(value, str):
        value = PRESETS[value].policy if value in PRESETS else load_path(value)
    return value if isinstance(value, Policy) or callable(value) else None


def load_policy(value: Any) -> Any:
    """As ``find_policy``; what leads to none is logged."""
    found = find_policy(value)
    if found is None and value is not None:
        log_once("POLICY", "leads to no policy")
    return found


def ask_policy(policy_for: Callable[[Any], Any], user: Any) -> Policy:
    """The policy of ``user``; an empty one where ``policy_for`` names none."""
    try:
        found = load_policy(policy_for(user))
    except DatabaseFault:
        raise
    except Exception as error:
        log_once("POLICY", f"raised {type(error).__name__}")
        found = None
    return found if isinstance(found, Policy) else Policy()

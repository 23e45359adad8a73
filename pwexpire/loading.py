"""Policies and callables that settings name. A wrong one fails no page, and frees nobody.

What cannot be loaded, or raises, is read strictly: it applies to everybody, nobody has a second
factor, and the policy is one that cannot be read. It is logged once a minute and process.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from django.contrib.auth import get_user_model
from django.core.exceptions import ObjectDoesNotExist
from django.db import Error as DatabaseFault
from django.db import router
from django.utils.module_loading import import_string

from pwexpire.faults import fault_log
from pwexpire.policy import PRESETS, UNREADABLE, Policy
from pwexpire.retries import is_conflict, savepoint

Predicate = Callable[[Any], bool]


def log_wrong(setting: str, why: str) -> None:
    fault_log.error(f"PWEXPIRE_{setting} {why}", "manage.py pwexpire check says more")


def _asked_of_site() -> AbstractContextManager[None]:
    """So that a fault in a table of the site's own undoes no change of a password."""
    return savepoint(using=router.db_for_write(get_user_model()))


def _log_raised(setting: str, error: Exception) -> None:
    """What another transaction did is over at the next try; all else is as wrong as any error."""
    if is_conflict(error):
        raise error
    log_wrong(setting, f"raised {type(error).__name__}")


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
            log_wrong(setting, "is no callable")
        return None

    def ask(user: Any) -> bool:
        try:
            with _asked_of_site():
                return bool(found(user))
        except Exception as error:
            _log_raised(setting, error)
            return strict

    return ask


def find_policy(value: Any) -> Any:
    """Return a policy or a callable, by its path or the name of a preset as well; else ``None``."""
    if isinstance(value, str):
        value = PRESETS[value].policy if value in PRESETS else load_path(value)
    return value if isinstance(value, Policy) or callable(value) else None


def load_policy(value: Any) -> Any:
    """As ``find_policy``; what leads to none is logged, and ``UNREADABLE``."""
    found = find_policy(value)
    if found is None and value is not None:
        log_wrong("POLICY", "leads to no policy")
        return UNREADABLE
    return found


def ask_policy(policy_for: Callable[[Any], Any], user: Any) -> Policy:
    """The policy of ``user``: an empty one for ``None``, ``UNREADABLE`` for what is no policy."""
    try:
        with _asked_of_site():
            found = load_policy(policy_for(user))
    except Exception as error:
        _log_raised("POLICY", error)
        return UNREADABLE
    if found is None:
        return Policy()
    return found if isinstance(found, Policy) else UNREADABLE


def explain_answer(setting: str, value: Any, user: Any) -> str | None:
    """Return what is wrong with the answer of a callable of the site about ``user``, or ``None``.

    A user who is not saved has no related rows, and before ``migrate`` there are no tables.
    """
    if setting == "POLICY":
        asked = find_policy(value)
    else:
        asked = load_path(value) if isinstance(value, str) else value
    if not callable(asked):
        return None
    try:
        answer = asked(user)
    except Exception as error:
        if user._state.adding and isinstance(error, (ObjectDoesNotExist, DatabaseFault)):
            return None
        return f"raised {type(error).__name__}"
    if setting != "POLICY" or answer is None or isinstance(find_policy(answer), Policy):
        return None
    return f"answered {answer!r}, which is no policy,"

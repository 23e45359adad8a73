from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Generic, TypeVar

from django.apps import apps
from django.conf import settings

from pwexpire.loading import ask_policy, find_policy, load_path, load_policy, load_predicate
from pwexpire.logins import is_lax, refuses_logins
from pwexpire.policy import GROUP, PRESETS, UNREADABLE, Chosen, Policy, choose_for

T = TypeVar("T")
PolicyFor = Callable[[Any], Chosen]
ROLES = ("staff", "superuser", "default")
# What may be a callable that is asked about a user.
ASKED = ("POLICY", "SECOND_FACTOR", "APPLIES_TO")
SLUG_MAX = 40  # as many characters as the column has
# What a callable or a mapping says of a user may change while they are logged in.
RECONSIDER = timedelta(hours=1)


def _is_positive(value: Any) -> bool:
    return bool(value >= 1)


def _is_predicate(value: Any) -> bool:
    return value is None or callable(load_path(value) if isinstance(value, str) else value)


def _is_policy(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(rule, str) and _is_rule(rule, one) for rule, one in value.items())
    return value is None or find_policy(value) is not None


def _is_rule(rule: str, value: Any) -> bool:
    named = rule in ROLES or (rule.startswith(GROUP) and rule != GROUP)
    return named and isinstance(find_policy(value), Policy)


def _are_names(value: Any) -> bool:
    return all(isinstance(one, str) for one in value)


def _are_slugs(value: Any) -> bool:
    return _are_names(value) and all(0 < len(slug) <= SLUG_MAX for slug in value)


def _is_bool_or(word: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, bool) or value == word


@dataclass(frozen=True)
class Setting:
    """``wants``: in words, what is valid; ``means``: whether a value of a right type is that."""

    default: Any
    types: tuple[Any, ...]
    wants: str
    means: Callable[[Any], object] = lambda value: True

    def read(self, name: str) -> Any:
        return getattr(settings, f"PWEXPIRE_{name}", self.default)

    def accepts(self, value: object) -> bool:
        """Whether the type is right, and a number or an interval is not negative."""
        if isinstance(value, bool):
            return bool in self.types
        if isinstance(value, (int, float)) and value < 0:
            return False
        if isinstance(value, timedelta) and value < timedelta(0):
            return False
        return isinstance(value, self.types)

    def is_valid(self, value: Any) -> bool:
        return self.accepts(value) and bool(self.means(value))


NoneType = type(None)
PREDICATE: tuple[Any, ...] = (NoneType, str, Callable)
A_PREDICATE = "a callable that takes a user, or the path to one"
LIST = (list, tuple, set, frozenset)
DAY = timedelta(hours=24)
SETTINGS: dict[str, Setting] = {
    "POLICY": Setting(
        None,
        # A value of another type is no policy either, and must not be read as none.
        (object, bool),
        "a Policy, the name of a preset, a dict of those, or a callable (or the path to one)",
        _is_policy,
    ),
    "SECOND_FACTOR": Setting(None, PREDICATE, A_PREDICATE, _is_predicate),
    "APPLIES_TO": Setting(None, PREDICATE, A_PREDICATE, _is_predicate),
    "EXEMPT_BACKENDS": Setting((), LIST, "a list of backends' paths"),
    "CHANGE_URL": Setting("pwexpire:password_change", (str,), "a URL name or an absolute path"),
    "RESET_URL": Setting("password_reset", (str,), "a URL name or an absolute path"),
    "LOGOUT_URL": Setting("", (str,), 'a URL name or an absolute path, "" to find one'),
    "EXEMPT_VIEWS": Setting((), LIST, "a list of namespace:name", _are_names),
    "POLL_SECONDS": Setting(1, (int, float, NoneType), "a number of seconds, 0 or more, or None"),
    "SESSION_INDEX": Setting(None, (bool, NoneType), "True, False or None"),
    "EXPIRE_ON_LOCKOUT": Setting(
        False, (bool, str), 'True, False or "success"', _is_bool_or("success")
    ),
    "LOCKOUT_WINDOW": Setting(DAY, (timedelta,), "a timedelta"),
    "LOCKOUT_THRESHOLD": Setting(1, (int,), "a whole number, 1 or more", _is_positive),
    "LOCKOUT_COOLDOWN": Setting(DAY, (timedelta,), "a timedelta"),
    "CHANGE_ATTEMPTS": Setting(5, (int,), "a whole number, 1 or more", _is_positive),
    "FAIL_CLOSED": Setting(False, (bool,), "True or False"),
    "ASSUME_CHANGED": Setting("now", (str,), '"now" or "joined"', ("now", "joined").__contains__),
    "ENFORCE": Setting(True, (bool, str), 'True, False or "report"', _is_bool_or("report")),
    "LOGIN_VALIDATORS": Setting(
        None,
        (NoneType, bool, list, tuple),
        "True for AUTH_PASSWORD_VALIDATORS, or a list like that one",
    ),
    "SITE_URL": Setting(
        "",
        (str,),
        "the address of the site for e-mails, https://example.com",
        re.compile(r"\Z|https?://").match,
    ),
    "ENQUEUE_ABOVE": Setting(None, (int, NoneType), "a number of users, or None"),
    "TASKS_PER_BATCH": Setting(2, (int,), "a whole number, 1 or more", _is_positive),
    "TASK_BACKEND": Setting("default", (str,), "the alias of a backend in TASKS"),
    "TASK_QUEUE": Setting("default", (str,), "the name of a queue of that backend"),
    "REASONS": Setting({}, (dict,), "a dict of slug to text", _are_slugs),
}


def read_setting(name: str) -> Any:
    """The value, or the default in place of one of a wrong type: each default holds people."""
    setting = SETTINGS[name]
    value = setting.read(name)
    return value if value is setting.default or setting.accepts(value) else setting.default


class Read(Generic[T]):
    """A property that reads a setting on access, and converts its value."""

    def __init__(self, name: str, convert: Callable[[Any], T]) -> None:
        self.name = name
        self.convert = convert

    def __get__(self, instance: object, owner: type) -> T:
        return self.convert(read_setting(self.name))


def _keep_names(values: Iterable[Any]) -> frozenset[str]:
    return frozenset(value for value in values if isinstance(value, str))


def _keep_positive(value: Any) -> int:
    return max(1, int(value))


def keep(value: Any) -> Any:
    return value


def _name_decisive(value: Any) -> str:
    """Return a name that is the same in every process; empty for what decides nothing."""
    found = PRESETS[value].policy if isinstance(value, str) and value in PRESETS else value
    if isinstance(found, Policy):
        return "" if found.is_default else found.key
    if found is None or isinstance(found, str):
        return found or ""
    named = found if hasattr(found, "__qualname__") else type(found)
    return f"{named.__module__}.{named.__qualname__}"


class Conf:
    """One property per ``PWEXPIRE_*`` setting, read on access."""

    @property
    def policy(self) -> PolicyFor | None:
        """``None`` while the site has set no policy, so that nobody has to ask it."""
        value = read_setting("POLICY")
        if isinstance(value, dict):
            rules = self.rules or {}
            return lambda user: choose_for(rules, user)
        value = load_policy(value)
        if value is None or (isinstance(value, Policy) and value.is_default):
            return None
        if isinstance(value, Policy):
            return lambda user: Chosen(value)
        return lambda user: Chosen(ask_policy(value, user))

    @property
    def policy_key(self) -> str | None:
        """Changes when the policy does, so that what a session knows of its age can be doubted."""
        value = read_setting("POLICY")
        if isinstance(value, dict):
            parts = [
                ",".join(f"{key}={one.key}" for key, one in sorted((self.rules or {}).items()))
            ]
        else:
            parts = [_name_decisive(value)]
        parts += [_name_decisive(read_setting(name)) for name in ASKED[1:]]
        return "|".join(filter(None, parts)) or None

    @property
    def reconsider(self) -> timedelta | None:
        """Return for how long a verdict counts that depends on callables or rules of the user."""
        value = read_setting("POLICY")
        by_user = isinstance(value, dict) or callable(load_policy(value))
        by_user = by_user or read_setting("SECOND_FACTOR") is not None
        return RECONSIDER if by_user or read_setting("APPLIES_TO") is not None else None

    @property
    def rules(self) -> dict[str, Policy] | None:
        """Rule -> policy, under ``""`` where there is one for all; ``None``: a callable knows.

        ``UNREADABLE`` for a rule that leads to no policy.
        """
        value = read_setting("POLICY")
        if isinstance(value, dict):
            loaded = {key: load_policy(one) for key, one in value.items() if isinstance(key, str)}
            return {k: one if isinstance(one, Policy) else UNREADABLE for k, one in loaded.items()}
        value = load_policy(value)
        if callable(value):
            return None
        return {"": Policy() if value is None else value}

    @property
    def policies(self) -> tuple[Policy, ...]:
        """All that can be chosen, as far as that is known before a user is."""
        return tuple((self.rules or {}).values())

    second_factor = Read("SECOND_FACTOR", partial(load_predicate, "SECOND_FACTOR", strict=False))
    applies_to = Read("APPLIES_TO", partial(load_predicate, "APPLIES_TO", strict=True))
    exempt_backends = Read("EXEMPT_BACKENDS", _keep_names)
    exempt_views = Read("EXEMPT_VIEWS", _keep_names)
    change_url = Read("CHANGE_URL", str)
    reset_url = Read("RESET_URL", str)
    logout_url = Read("LOGOUT_URL", str)
    site_url = Read("SITE_URL", lambda value: str(value).rstrip("/"))
    poll_seconds: Read[float | None] = Read("POLL_SECONDS", keep)
    # None: where the session keys are in the database anyway.
    session_index: Read[bool | None] = Read("SESSION_INDEX", keep)
    expire_on_lockout = Read("EXPIRE_ON_LOCKOUT", lambda value: value is True)
    # Only if a login succeeds from elsewhere after the lockout: a guess that hit.
    expire_on_success = Read("EXPIRE_ON_LOCKOUT", lambda value: bool(value == "success"))
    lockout_window: Read[timedelta] = Read("LOCKOUT_WINDOW", keep)
    lockout_threshold = Read("LOCKOUT_THRESHOLD", _keep_positive)
    lockout_cooldown: Read[timedelta] = Read("LOCKOUT_COOLDOWN", keep)
    assume_joined = Read("ASSUME_CHANGED", lambda value: bool(value == "joined"))
    # Only False and "report" switch it off; a typing mistake must free nobody.
    enforce = Read("ENFORCE", lambda value: value is not False and value != "report")
    # Count what would be held, and hold nobody.
    report_only = Read("ENFORCE", lambda value: bool(value == "report"))
    enqueue_above: Read[int | None] = Read("ENQUEUE_ABOVE", keep)
    tasks_per_batch = Read("TASKS_PER_BATCH", _keep_positive)
    task_backend = Read("TASK_BACKEND", str)
    task_queue = Read("TASK_QUEUE", str)
    reasons: Read[dict[str, str]] = Read("REASONS", dict)

    @property
    def refuses_logins(self) -> bool:
        """Whether users are kept out whose old password is withdrawn, by whatever backend."""
        return not self.lax_backends and any(map(refuses_logins, settings.AUTHENTICATION_BACKENDS))

    @property
    def lax_backends(self) -> list[str]:
        """The backends that would let somebody in with a withdrawn password.

        Sessions of exempt backends are never held, so nothing is demanded of their logins either.
        """
        exempt = self.exempt_backends
        return [
            path for path in settings.AUTHENTICATION_BACKENDS if path not in exempt and is_lax(path)
        ]

    @property
    def login_validators(self) -> Sequence[Mapping[str, Any]] | None:
        value = read_setting("LOGIN_VALIDATORS")
        if isinstance(value, bool):
            return list(settings.AUTH_PASSWORD_VALIDATORS) if value else None
        return value  # type: ignore[no-any-return]

    @property
    def change_attempts(self) -> int:
        """Wrong old passwords until the session ends: one less than django-axes would lock at."""
        attempts = int(read_setting("CHANGE_ATTEMPTS"))
        limit = getattr(settings, "AXES_FAILURE_LIMIT", 3) if apps.is_installed("axes") else None
        if isinstance(limit, int):
            attempts = min(attempts, limit - 1)
        return max(1, attempts)

    @property
    def fail_closed(self) -> bool:
        # Of a value that is no bool the strict reading counts here, and not the default.
        return getattr(settings, "PWEXPIRE_FAIL_CLOSED", False) is not False


conf = Conf()

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.apps import apps
from django.conf import settings

from pwexpire.loading import Predicate, ask_policy, load_policy, load_predicate
from pwexpire.logins import is_lax, refuses_logins
from pwexpire.policy import PRESETS, Chosen, Policy, choose

PolicyFor = Callable[[Any], Chosen]
# What a callable or a mapping says of a user may change while he is logged in.
RECONSIDER = timedelta(hours=1)


@dataclass(frozen=True)
class Setting:
    default: Any
    types: tuple[Any, ...]
    wants: str

    def accepts(self, value: object) -> bool:
        if isinstance(value, bool) and bool not in self.types:
            return False
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value < 0:
            return False
        if isinstance(value, timedelta) and value < timedelta(0):
            return False
        return isinstance(value, self.types)


NoneType = type(None)
PREDICATE: tuple[Any, ...] = (NoneType, str, Callable)
SETTINGS: dict[str, Setting] = {
    "POLICY": Setting(
        None,
        (NoneType, Policy, str, dict, Callable),
        "a Policy, the name of a preset, a dict of those, or a callable (or the path to one)",
    ),
    "SECOND_FACTOR": Setting(None, PREDICATE, "a callable that takes a user, or the path to one"),
    "APPLIES_TO": Setting(None, PREDICATE, "a callable that takes a user, or the path to one"),
    "EXEMPT_BACKENDS": Setting((), (list, tuple, set, frozenset), "a list of backends' paths"),
    "CHANGE_URL": Setting("pwexpire:password_change", (str,), "a URL name or an absolute path"),
    "RESET_URL": Setting("password_reset", (str,), "a URL name or an absolute path"),
    "LOGOUT_URL": Setting("", (str,), 'a URL name or an absolute path, "" to find one'),
    "EXEMPT_VIEWS": Setting((), (list, tuple, set, frozenset), "a list of namespace:name"),
    "POLL_SECONDS": Setting(1, (int, float, NoneType), "a number of seconds, 0 or more, or None"),
    "SESSION_INDEX": Setting(None, (bool, NoneType), "True, False or None"),
    "EXPIRE_ON_LOCKOUT": Setting(False, (bool, str), 'True, False or "success"'),
    "LOCKOUT_WINDOW": Setting(timedelta(hours=24), (timedelta,), "a timedelta"),
    "LOCKOUT_THRESHOLD": Setting(1, (int,), "a whole number, 1 or more"),
    "LOCKOUT_COOLDOWN": Setting(timedelta(hours=24), (timedelta,), "a timedelta"),
    "CHANGE_ATTEMPTS": Setting(5, (int,), "a whole number, 1 or more"),
    "FAIL_CLOSED": Setting(False, (bool,), "True or False"),
    "ASSUME_CHANGED": Setting("now", (str,), '"now" or "joined"'),
    "ENFORCE": Setting(True, (bool, str), 'True, False or "report"'),
    "LOGIN_VALIDATORS": Setting(
        None,
        (NoneType, bool, list, tuple),
        "True for AUTH_PASSWORD_VALIDATORS, or a list like that one",
    ),
    "SITE_URL": Setting("", (str,), "the address of the site for e-mails, https://example.com"),
    "ENQUEUE_ABOVE": Setting(None, (int, NoneType), "a number of users, or None"),
    "TASKS_PER_BATCH": Setting(2, (int,), "a whole number, 1 or more"),
    "TASK_BACKEND": Setting("default", (str,), "the alias of a backend in TASKS"),
    "TASK_QUEUE": Setting("default", (str,), "the name of a queue of that backend"),
    "REASONS": Setting({}, (dict,), "a dict of slug to text"),
}


def _said(value: Any) -> str:
    """The same in every process; empty for what decides nothing."""
    found = PRESETS[value].policy if isinstance(value, str) and value in PRESETS else value
    if isinstance(found, Policy):
        return "" if found.is_default else found.key
    if found is None or isinstance(found, str):
        return found or ""
    named = found if hasattr(found, "__qualname__") else type(found)
    return f"{named.__module__}.{named.__qualname__}"


def _by_rules(rules: Mapping[str, Policy], user: Any) -> Chosen:
    asks_groups = any(key.startswith("group:") for key in rules)
    return choose(
        rules,
        staff=getattr(user, "is_staff", False),
        superuser=getattr(user, "is_superuser", False),
        # In Python, so that groups that were fetched together are not asked for one by one.
        groups=[group.name for group in user.groups.all()] if asks_groups else (),
    )


class Conf:
    """One property per ``PWEXPIRE_*`` setting, read on access."""

    @staticmethod
    def _get(name: str) -> Any:
        """The value, or the default in place of one of a wrong type: each default holds people."""
        setting = SETTINGS[name]
        value = getattr(settings, f"PWEXPIRE_{name}", setting.default)
        return value if value is setting.default or setting.accepts(value) else setting.default

    @property
    def policy(self) -> PolicyFor | None:
        """``None`` while the site has set no policy, so that nobody has to ask it."""
        value = self._get("POLICY")
        if isinstance(value, dict):
            rules = self.rules or {}
            return lambda user: _by_rules(rules, user)
        value = load_policy(value)
        if value is None or (isinstance(value, Policy) and value.is_default):
            return None
        if isinstance(value, Policy):
            return lambda user: Chosen(value)
        return lambda user: Chosen(ask_policy(value, user))

    @property
    def policy_key(self) -> str | None:
        """Changes when the policy does, so that what a session knows of its age can be doubted."""
        value = self._get("POLICY")
        if isinstance(value, dict):
            said = [",".join(f"{key}={one.key}" for key, one in sorted((self.rules or {}).items()))]
        else:
            said = [_said(value)]
        said += [_said(self._get(name)) for name in ("SECOND_FACTOR", "APPLIES_TO")]
        return "|".join(filter(None, said)) or None

    @property
    def reconsider(self) -> timedelta | None:
        """How long a verdict counts that depends on what callables or rules say of the user."""
        value = self._get("POLICY")
        by_user = isinstance(value, dict) or callable(load_policy(value))
        by_user = by_user or self._get("SECOND_FACTOR") is not None
        return RECONSIDER if by_user or self._get("APPLIES_TO") is not None else None

    @property
    def rules(self) -> dict[str, Policy] | None:
        """Rule -> policy, under ``""`` where there is one for all; ``None``: a callable knows.

        A rule that leads to no policy is left out.
        """
        value = self._get("POLICY")
        if isinstance(value, dict):
            loaded = {key: load_policy(one) for key, one in value.items() if isinstance(key, str)}
            return {key: one for key, one in loaded.items() if isinstance(one, Policy)}
        value = load_policy(value)
        if callable(value):
            return None
        return {"": Policy() if value is None else value}

    @property
    def policies(self) -> tuple[Policy, ...]:
        """All that can be chosen, as far as that is known before a user is."""
        return tuple((self.rules or {}).values())

    @property
    def second_factor(self) -> Predicate | None:
        return load_predicate("SECOND_FACTOR", self._get("SECOND_FACTOR"), strict=False)

    @property
    def applies_to(self) -> Predicate | None:
        return load_predicate("APPLIES_TO", self._get("APPLIES_TO"), strict=True)

    @property
    def exempt_backends(self) -> frozenset[str]:
        return frozenset(name for name in self._get("EXEMPT_BACKENDS") if isinstance(name, str))

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
        value = self._get("LOGIN_VALIDATORS")
        if isinstance(value, bool):
            return list(settings.AUTH_PASSWORD_VALIDATORS) if value else None
        return value  # type: ignore[no-any-return]

    @property
    def site_url(self) -> str:
        return str(self._get("SITE_URL")).rstrip("/")

    @property
    def change_url(self) -> str:
        return str(self._get("CHANGE_URL"))

    @property
    def reset_url(self) -> str:
        return str(self._get("RESET_URL"))

    @property
    def logout_url(self) -> str:
        return str(self._get("LOGOUT_URL"))

    @property
    def exempt_views(self) -> frozenset[str]:
        return frozenset(name for name in self._get("EXEMPT_VIEWS") if isinstance(name, str))

    @property
    def poll_seconds(self) -> float | None:
        value = self._get("POLL_SECONDS")
        return None if value is None else float(value)

    @property
    def session_index(self) -> bool | None:
        """``None``: where the session keys are in the database anyway."""
        value = self._get("SESSION_INDEX")
        return None if value is None else bool(value)

    @property
    def expire_on_lockout(self) -> bool:
        return self._get("EXPIRE_ON_LOCKOUT") is True

    @property
    def expire_on_success(self) -> bool:
        """Only if a login succeeds from elsewhere after the lockout: a guess that hit."""
        return bool(self._get("EXPIRE_ON_LOCKOUT") == "success")

    @property
    def lockout_window(self) -> timedelta:
        value: timedelta = self._get("LOCKOUT_WINDOW")
        return value

    @property
    def lockout_threshold(self) -> int:
        return max(1, int(self._get("LOCKOUT_THRESHOLD")))

    @property
    def lockout_cooldown(self) -> timedelta:
        value: timedelta = self._get("LOCKOUT_COOLDOWN")
        return value

    @property
    def change_attempts(self) -> int:
        """Wrong old passwords until the session ends: one less than django-axes would lock at."""
        attempts = int(self._get("CHANGE_ATTEMPTS"))
        limit = getattr(settings, "AXES_FAILURE_LIMIT", 3) if apps.is_installed("axes") else None
        if isinstance(limit, int):
            attempts = min(attempts, limit - 1)
        return max(1, attempts)

    @property
    def fail_closed(self) -> bool:
        # Not _get(): of a value that is no bool the strict reading counts here, not the default.
        return getattr(settings, "PWEXPIRE_FAIL_CLOSED", False) is not False

    @property
    def assume_joined(self) -> bool:
        return bool(self._get("ASSUME_CHANGED") == "joined")

    @property
    def enforce(self) -> bool:
        """Only ``False`` and ``"report"`` switch it off; a typing mistake must free nobody."""
        value = self._get("ENFORCE")
        return value is not False and value != "report"

    @property
    def report_only(self) -> bool:
        """Count what would be held, and hold nobody."""
        return bool(self._get("ENFORCE") == "report")

    @property
    def enqueue_above(self) -> int | None:
        value: int | None = self._get("ENQUEUE_ABOVE")
        return value

    @property
    def tasks_per_batch(self) -> int:
        return max(1, int(self._get("TASKS_PER_BATCH")))

    @property
    def task_backend(self) -> str:
        return str(self._get("TASK_BACKEND"))

    @property
    def task_queue(self) -> str:
        return str(self._get("TASK_QUEUE"))

    @property
    def reasons(self) -> dict[str, str]:
        return dict(self._get("REASONS"))


conf = Conf()

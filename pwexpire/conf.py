from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.apps import apps
from django.conf import settings
from django.utils.module_loading import import_string

from pwexpire.policy import Policy

PolicyFor = Callable[[Any], Policy]


@dataclass(frozen=True)
class Setting:
    default: Any
    types: tuple[type, ...]
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
SETTINGS: dict[str, Setting] = {
    "POLICY": Setting(None, (NoneType, Policy, str), "a Policy, or the dotted path to a callable"),
    "CHANGE_URL": Setting("pwexpire:password_change", (str,), "a URL name or an absolute path"),
    "RESET_URL": Setting("password_reset", (str,), "a URL name or an absolute path"),
    "EXEMPT_VIEWS": Setting((), (list, tuple, set, frozenset), "a list of namespace:name"),
    "POLL_SECONDS": Setting(1, (int, float, NoneType), "a number of seconds, 0 or more, or None"),
    "SESSION_INDEX": Setting(True, (bool,), "True or False"),
    "EXPIRE_ON_LOCKOUT": Setting(False, (bool,), "True or False"),
    "LOCKOUT_THRESHOLD": Setting(1, (int,), "a whole number, 1 or more"),
    "LOCKOUT_COOLDOWN": Setting(timedelta(hours=24), (timedelta,), "a timedelta"),
    "CHANGE_ATTEMPTS": Setting(5, (int,), "a whole number, 1 or more"),
    "FAIL_CLOSED": Setting(False, (bool,), "True or False"),
    "ASSUME_CHANGED": Setting("now", (str,), '"now" or "joined"'),
    "ENFORCE": Setting(True, (bool,), "True or False"),
    "ENQUEUE_ABOVE": Setting(None, (int, NoneType), "a number of users, or None"),
    "TASKS_PER_BATCH": Setting(2, (int,), "a whole number, 1 or more"),
    "TASK_BACKEND": Setting("default", (str,), "the alias of a backend in TASKS"),
    "TASK_QUEUE": Setting("default", (str,), "the name of a queue of that backend"),
    "REASONS": Setting({}, (dict,), "a dict of slug to text"),
}
_DEFAULT_POLICY = Policy()


class Conf:
    """One property per ``PWEXPIRE_*`` setting, read on access."""

    @staticmethod
    def _get(name: str) -> Any:
        return getattr(settings, f"PWEXPIRE_{name}", SETTINGS[name].default)

    @property
    def policy(self) -> PolicyFor | None:
        """``None`` while the site has set no policy, so that nobody has to ask it."""
        value = self._get("POLICY")
        if isinstance(value, str):
            value = import_string(value)
        if value is None or value == _DEFAULT_POLICY:
            return None
        if isinstance(value, Policy):
            return lambda user: value
        return value  # type: ignore[no-any-return]

    @property
    def policy_key(self) -> str | None:
        """Changes when the policy does, so that what a session knows of its age can be doubted."""
        value = self._get("POLICY")
        if value is None or value == _DEFAULT_POLICY:
            return None
        return str(value.max_age) if isinstance(value, Policy) else str(value)

    @property
    def change_url(self) -> str:
        return str(self._get("CHANGE_URL"))

    @property
    def reset_url(self) -> str:
        return str(self._get("RESET_URL"))

    @property
    def exempt_views(self) -> frozenset[str]:
        return frozenset(self._get("EXEMPT_VIEWS"))

    @property
    def poll_seconds(self) -> float | None:
        value = self._get("POLL_SECONDS")
        return None if value is None else float(value)

    @property
    def session_index(self) -> bool:
        return bool(self._get("SESSION_INDEX"))

    @property
    def expire_on_lockout(self) -> bool:
        return bool(self._get("EXPIRE_ON_LOCKOUT"))

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
        return bool(self._get("FAIL_CLOSED"))

    @property
    def assume_joined(self) -> bool:
        return bool(self._get("ASSUME_CHANGED") == "joined")

    @property
    def enforce(self) -> bool:
        return bool(self._get("ENFORCE"))

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

"""When a password ages out. Pure: facts and the time come in, a decision goes out."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What a site demands of the age of a password.

    ``max_age``: a ``timedelta`` after which a password has to be changed, or ``None`` (default)
    for a change on command only, as NIST SP 800-63B-4 section 3.1.1.2 wants.
    ``warn_before``: a ``timedelta`` before that moment from which ``PasswordStatus.warn`` is true.

    Raises ``ValueError`` for an interval that is not positive, ``TypeError`` for another type.
    """

    max_age: timedelta | None = None
    warn_before: timedelta | None = None

    def __post_init__(self) -> None:
        for name in ("max_age", "warn_before"):
            value = getattr(self, name)
            if value is None:
                continue
            if not isinstance(value, timedelta):
                raise TypeError(f"Policy.{name} must be a timedelta or None, not {value!r}.")
            if value <= timedelta(0):
                raise ValueError(f"Policy.{name} must be longer than nothing, not {value!r}.")


@dataclass(frozen=True, kw_only=True)
class Decision:
    must_change: bool
    expires_at: datetime | None
    warn: bool


def decide(policy: Policy, *, changed_at: datetime, now: datetime) -> Decision:
    if policy.max_age is None:
        return Decision(must_change=False, expires_at=None, warn=False)
    expires_at = changed_at + policy.max_age
    warn = policy.warn_before is not None and now >= expires_at - policy.warn_before
    return Decision(must_change=now >= expires_at, expires_at=expires_at, warn=warn)

"""What a site demands of passwords, and when. Pure: facts and the time come in, a decision out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta

from pwexpire.constants import REQUIRE_ORDER

# Each old password that is looked at costs one hashing, at every change.
HISTORY_MAX = 24
INTERVALS = ("max_age", "min_age", "temporary_for")
# Field -> how many at most.
COUNTS = {"grace_logins": None, "history": HISTORY_MAX}


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What a site demands of its users' passwords.

    ``max_age``: a ``timedelta`` after which a password has to be changed, or ``None`` (default)
    for a change on command only, as NIST SP 800-63B-4 section 3.1.1.2 wants.
    ``warn_before``: a ``timedelta`` before that moment, or several of them, from which the user is
    warned; each is a step of ``manage.py pwexpire notify``.
    ``grace_logins``: how many more logins a password that aged out is good for (the
    pwdGraceAuthNLimit of LDAP's password policy draft). What was demanded by an expiry knows none.
    ``min_age``: a ``timedelta`` for which the user cannot change a password again, unless it has
    to be changed.
    ``history``: how many passwords before the present one must not come back, 0 to 24.
    ``change_on_first_use``: users who were created by somebody else have to change the password
    at the first login. ``change_after_admin_reset``: the same after somebody else set it.
    ``temporary_for``: a ``timedelta`` after which such a password is withdrawn.
    ``require``: what an aged password leads to, one of ``"warn"``, ``"change"`` (default),
    ``"reset"`` and ``"deny"``.
    ``single_factor_only``: ``max_age`` does not concern users for whom
    ``PWEXPIRE_SECOND_FACTOR`` is true (PCI DSS 8.3.9).
    ``name``: what it is called where it is explained.

    Raises ``ValueError`` for an interval that is not positive, a count below 0 or above its bound
    and an unknown ``require``, ``TypeError`` for another type.
    """

    max_age: timedelta | None = None
    warn_before: timedelta | Sequence[timedelta] | None = None
    grace_logins: int = 0
    min_age: timedelta | None = None
    history: int = 0
    change_on_first_use: bool = False
    change_after_admin_reset: bool = False
    temporary_for: timedelta | None = None
    require: str = "change"
    single_factor_only: bool = False
    name: str = ""

    def __post_init__(self) -> None:
        for name in INTERVALS:
            if getattr(self, name) is not None:
                _check_interval(name, getattr(self, name))
        steps = self.warn_before
        if isinstance(steps, Iterable) and not isinstance(steps, str):
            # A list may be shared, and change after it was looked at here.
            object.__setattr__(self, "warn_before", tuple(steps))
        for step in self._list_steps():
            _check_interval("warn_before", step)
        for name, most in COUNTS.items():
            _check_count(name, getattr(self, name), most)
        _check_require(self.require)
        if self.min_age and self.max_age and self.min_age >= self.max_age:
            raise ValueError("Policy.min_age must be shorter than max_age.")

    @property
    def warn_steps(self) -> tuple[timedelta, ...]:
        """The longest first."""
        return tuple(sorted(set(self._list_steps()), reverse=True))

    def _list_steps(self) -> tuple[timedelta, ...]:
        steps = self.warn_before
        if steps is None:
            return ()
        return steps if isinstance(steps, tuple) else (steps,)

    @property
    def key(self) -> str:
        """Changes with everything that decides whether somebody is held."""
        decisive = (
            self.max_age,
            self.require,
            self.grace_logins,
            self.single_factor_only,
            self.change_on_first_use,
            self.change_after_admin_reset,
            self.temporary_for,
        )
        return "/".join(map(str, decisive))

    def wants_own(self, *, new: bool) -> bool:
        """Whether a password that somebody else chose, for a ``new`` user or not, has to go."""
        return self.change_on_first_use if new else self.change_after_admin_reset

    @property
    def is_default(self) -> bool:
        plain = Policy()
        return all(
            getattr(self, one.name) == getattr(plain, one.name)
            for one in fields(self)
            if one.name != "name"
        )


def _check_interval(name: str, value: object) -> None:
    if not isinstance(value, timedelta):
        raise TypeError(f"Policy.{name} must be a timedelta or None, not {value!r}.")
    if value <= timedelta(0):
        raise ValueError(f"Policy.{name} must be longer than nothing, not {value!r}.")


def _check_count(name: str, value: object, most: int | None) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"Policy.{name} must be a whole number, not {value!r}.")
    if value < 0:
        raise ValueError(f"Policy.{name} must be 0 or more, not {value!r}.")
    if most is not None and value > most:
        raise ValueError(
            f"Policy.{name} must be at most {most}, not {value!r}: "
            "each costs one hashing at every change."
        )


def _check_require(value: object) -> None:
    if value not in REQUIRE_ORDER:
        known = ", ".join(map(repr, REQUIRE_ORDER))
        raise ValueError(f"Policy.require must be one of {known}, not {value!r}.")


# Of a setting that leads to no policy, or of a callable that names none: nobody knows whether it
# would hold the user, so it lets no old password come back, and no flagged session go.
UNREADABLE = Policy(history=HISTORY_MAX)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """``must_change`` is true for a password that aged out, also where that only warns."""

    must_change: bool
    expires_at: datetime | None
    warn: bool


def decide(
    policy: Policy, *, changed_at: datetime, now: datetime, second_factor: bool = False
) -> Decision:
    if policy.max_age is None or (policy.single_factor_only and second_factor):
        return Decision(must_change=False, expires_at=None, warn=False)
    expires_at = changed_at + policy.max_age
    steps = policy.warn_steps
    warn = bool(steps) and now >= expires_at - steps[0]
    return Decision(must_change=now >= expires_at, expires_at=expires_at, warn=warn)

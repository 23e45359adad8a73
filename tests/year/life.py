"""One user as he remembers his year: plain Python, that asks the package for nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from tests.truth.oracle import MILDEST_FIRST, Facts, Rules, Wanted, asked, has_aged, is_given
from tests.truth.oracle import changed as note_change

THRESHOLD = 3
APART = timedelta(minutes=10)
WINDOW = COOLDOWN = timedelta(hours=24)


@dataclass
class Seat:
    """A browser with a session of his."""

    browser: Any
    by_hand: bool = False
    grace: bool = False


@dataclass
class Lockouts:
    count: int = 0
    since: datetime | None = None
    last: datetime | None = None
    address: str | None = None


@dataclass
class Life:
    """``rules``: what the site says of him now. ``told``: what he was written of, each once."""

    user: Any
    facts: Facts
    password: str
    rules: Callable[[], Rules]
    seats: list[Seat] = field(default_factory=list)
    past: list[str] = field(default_factory=list)
    lockouts: Lockouts = field(default_factory=Lockouts)
    renewed: datetime | None = None
    told: set[tuple[str, object]] = field(default_factory=set)
    story: list[str] = field(default_factory=list)
    passwords: int = 0

    # What is asked of him.

    def asked(self, now: datetime) -> str | None:
        return asked(self.facts, self.rules(), now)[0]

    def is_demanded(self) -> bool:
        return any(one.require != "warn" for one in self.facts.demands)

    # What others do.

    def is_expired(self, require: str, now: datetime, batch: int) -> bool:
        """By name: a demand that is open already, and as strict, stays; is it a new one."""
        least = MILDEST_FIRST.index(require)
        if any(MILDEST_FIRST.index(one.require) >= least for one in self.facts.demands):
            return False
        self.is_expired_with_all(require, now, batch)
        return True

    def is_held_as_strictly(self, require: str, now: datetime) -> bool:
        """Or warned, where a warning is all that is asked for."""
        rules = self.rules()
        held, _ = asked(self.facts, rules, now)
        early = max(rules.policy.warn_before or (), default=None) if require == "warn" else None
        if early is not None and has_aged(self.facts, rules, now + early):
            return True
        return bool(held) and MILDEST_FIRST.index(held) >= MILDEST_FIRST.index(require)

    def is_expired_with_all(self, require: str, now: datetime, batch: int) -> None:
        self.facts.demands.append(Wanted(require, now, batch=batch))
        if require in ("reset", "deny"):
            self.seats.clear()

    def is_freed(self) -> None:
        self.facts.demands = []

    def is_locked_out(self, now: datetime, address: str, *, expires: bool) -> bool:
        """Whether this one expires him."""
        mine = self.lockouts
        if self.is_demanded() or (self.renewed and now - self.renewed < COOLDOWN):
            return False
        if mine.last is not None and now - mine.last < APART:
            return False
        over = mine.since is None or now - mine.since >= WINDOW
        if over or (expires and mine.count >= THRESHOLD):
            mine.count, mine.since = 0, now
        mine.count, mine.last, mine.address = mine.count + 1, now, address
        return expires and mine.count >= THRESHOLD

    # What he does.

    def enters(self, now: datetime, address: str, *, on_success: bool) -> tuple[str, bool]:
        """A login with the right password: what it comes to, and whether it is one of grace."""
        rules = self.rules()
        require, only_age = asked(self.facts, rules, now)
        grace = bool(require) and only_age and self.facts.grace_used < rules.policy.grace_logins
        if require in ("reset", "deny") and not grace:
            return "refused", False
        if on_success and self._was_guessed(now, address):
            self.facts.demands.append(Wanted("change", now))
            self.lockouts = Lockouts()
            return "held", False
        if grace:
            self.facts.grace_used += 1
        return ("held" if require and not grace else "free"), grace

    def _was_guessed(self, now: datetime, address: str) -> bool:
        mine = self.lockouts
        if mine.count < THRESHOLD or mine.last is None or mine.last <= now - WINDOW:
            return False
        return mine.address != address and not self.is_demanded()

    def meets(self, seat: Seat, now: datetime) -> str:
        """What his session meets with."""
        require, only_age = asked(self.facts, self.rules(), now)
        if seat not in self.seats:
            return "out"
        if require is None or (seat.grace and only_age):
            return "held" if seat.by_hand else "free"
        if require in ("reset", "deny"):
            self.seats.remove(seat)
            return "out"
        return "held"

    def new_password(self) -> str:
        self.passwords += 1
        return f"Password-{self.user.pk}-{self.passwords}"

    def has_changed(
        self, now: datetime, password: str, *, by_other: bool, seat: Seat | None = None
    ) -> None:
        """``seat``: where it was done; all other sessions are over."""
        note_change(self.facts, self.rules(), now, by_other=by_other)
        self.past = [self.password, *self.past][:2]
        self.password, self.renewed, self.lockouts = password, now, Lockouts()
        self.seats = [seat] if seat is not None else []
        if seat is not None:
            seat.by_hand = seat.grace = False

    # What he is written.

    def due_warning(self, now: datetime) -> tuple[str, object] | None:
        """The step and the date that he has to be told of, if he was not."""
        rules = self.rules()
        steps = rules.policy.warn_steps
        if not steps or rules.policy.max_age is None or self.is_demanded():
            return None
        if rules.policy.single_factor_only and rules.second_factor:
            return None
        if self.is_given():
            return None
        left = self.facts.changed + rules.policy.max_age - now
        begun = [step for step in steps if step >= left]
        if has_aged(self.facts, rules, now) or not begun:
            return None
        told = ("warning", (self.facts.changed + rules.policy.max_age, min(begun)))
        return None if told in self.told else told

    def is_given(self) -> bool:
        return is_given(self.facts, self.rules())

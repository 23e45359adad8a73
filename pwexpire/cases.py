"""What a session says of itself, and whether that is enough to let a request pass."""

from __future__ import annotations

import time
from dataclasses import dataclass

from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
from django.contrib.sessions.backends.base import SessionBase

from pwexpire.constants import SESSION_DEMAND, SESSION_FLAG, SESSION_STAMP
from pwexpire.feed import VerdictKey, View
from pwexpire.sessionstore.base import peek

# django-hijack: the primary keys of those who took this session over, the first one's is his own.
HIJACKERS = "hijack_history"


@dataclass(slots=True)
class Case:
    """What a session says of itself, and what was decided of it in this request.

    ``grace``: the login was one of those that an aged password is good for. ``hijacker``: who is
    really sitting there, if it is somebody else.
    """

    session_key: str | None
    user_id: str
    auth_hash: str
    flagged: bool
    flag_number: int | None
    stamp: int
    born: int
    ages: float | None
    policy_key: str | None
    backend: str
    grace: bool
    hijacker: str | None
    held: bool = False
    answered: bool = False
    reached: bool = False

    @property
    def key(self) -> VerdictKey:
        return self.user_id, self.auth_hash, self.born, self.backend, self.grace, self.hijacker

    @property
    def served_elsewhere(self) -> bool:
        """Held, let through to an exempt view, and never seen to arrive there."""
        return self.held and not self.answered and not self.reached

    @property
    def known_flagged(self) -> bool:
        return self.flagged and (self.flag_number is None or self.flag_number > self.stamp)


def read_case(session: SessionBase) -> Case | None:
    """``None`` for a session that nobody is logged in to. The session must be loaded."""
    data = peek(session)
    user_id = data.get(SESSION_KEY)
    if user_id is None:
        return None
    stamp = data.get(SESSION_STAMP)
    if not isinstance(stamp, dict):
        stamp = {}
    number = data.get(SESSION_DEMAND)
    hijackers = data.get(HIJACKERS)
    return Case(
        session_key=session.session_key,
        user_id=str(user_id),
        auth_hash=data.get(HASH_SESSION_KEY) or "",
        flagged=bool(data.get(SESSION_FLAG)),
        flag_number=number if isinstance(number, int) else None,
        stamp=stamp.get("n", 0),
        born=stamp.get("b", 0),
        ages=stamp.get("a"),
        policy_key=stamp.get("p"),
        backend=data.get(BACKEND_SESSION_KEY) or "",
        grace=bool(stamp.get("g")),
        hijacker=str(hijackers[0]) if hijackers and isinstance(hijackers, list) else None,
    )


def is_suspect(case: Case, view: View) -> bool:
    """Whether the record has to be asked; compares numbers only."""
    known = view.verdicts.get(case.key) if view.verdicts else None
    if known is not None:
        number, ages, policy_key = known.number, known.ages, known.policy_key
    else:
        number = case.stamp if case.born <= view.counter else -1
        ages, policy_key = case.ages, case.policy_key
    if case.flagged and (case.flag_number is None or case.flag_number > number):
        return True
    if view.demand(case.user_id) > number:
        return True
    if case.hijacker is not None and view.demand(case.hijacker) > number:
        return True
    wanted = view.policy_key
    if wanted is None:
        return False
    return policy_key != wanted or (ages is not None and time.time() >= ages)

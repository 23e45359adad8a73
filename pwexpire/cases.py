"""What a session says of itself, and whether that is enough to let a request pass."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.contrib.auth import (
    BACKEND_SESSION_KEY,
    HASH_SESSION_KEY,
    SESSION_KEY,
)
from django.contrib.sessions.backends.base import SessionBase
from django.http import HttpRequest

from pwexpire.constants import SESSION_DEMAND, SESSION_FLAG, SESSION_STAMP
from pwexpire.feed import VerdictKey, View
from pwexpire.models import is_recorded
from pwexpire.sessionstore.base import peek

# django-hijack: the primary keys of those who took this session over, the first one's is his own.
HIJACKERS = "hijack_history"
# django-loginas: who it was before, signed.
LOGINAS = "loginas_from_user"


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


def names_user(session: Any, user: Any) -> bool:
    """Whether ``session`` is a session of Django's that ``user`` is logged in to.

    A signal or a middleware may speak of a user whom the session does not know: a token, an
    impersonation. Such a session is none of theirs.
    """
    if not isinstance(session, SessionBase):
        return False
    accessed = session.accessed
    named = session.get(SESSION_KEY)
    session.accessed = accessed  # else the answer would vary by cookie
    return is_user(user, str(named))


def is_user(user: Any, user_id: str) -> bool:
    """Whether ``user`` is the user of this project whom a session calls ``user_id``."""
    if not is_recorded(user):
        return False
    # As login() writes it.
    return bool(user._meta.pk.value_to_string(user) == user_id)


def is_impersonated(request: HttpRequest) -> bool:
    """Whether whoever sits there acts as another user, who is then ``request.user``."""
    if not request.user.is_authenticated:
        return False
    session = request.session
    taken_over = (HIJACKERS, getattr(settings, "LOGINAS_FROM_USER_SESSION_FLAG", LOGINAS))
    return any(key in session for key in taken_over) or not names_user(session, request.user)


def is_demanded(case: Case, view: View) -> bool:
    """Whether more is demanded than this session was cleared for; compares numbers only."""
    known = view.verdicts.get(case.key) if view.verdicts else None
    if known is not None:
        number, flag = known.number, max(known.number, known.flag)
    else:
        # Where nobody polls, a session may well be younger than what this process knows.
        number = flag = case.stamp if case.born <= view.counter or not view.polled else -1
    if case.flagged and (case.flag_number is None or case.flag_number > flag):
        return True
    if view.demand(case.user_id) > number:
        return True
    return case.hijacker is not None and view.demand(case.hijacker) > number


def is_suspect(case: Case, view: View) -> bool:
    """Whether the record has to be asked; never queries."""
    if is_demanded(case, view):
        return True
    wanted = view.policy_key
    if wanted is None:
        return False
    known = view.verdicts.get(case.key, case) if view.verdicts else case
    if known.policy_key != wanted:
        return True
    return known.ages is not None and time.time() >= known.ages

"""What a session says of itself, and what is kept of a request."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
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
from pwexpire.demand_view import ClearanceKey
from pwexpire.sessionstore.base import peek
from pwexpire.users import is_recorded

REQUEST_STATE = "_pwexpire"
UNKNOWN: Any = object()
# django-hijack: the primary keys of those who took this session over; the first sits there.
HIJACKERS = "hijack_history"


# These two are made at every request, and mostly of defaults: those stand in the class, and there
# is no __init__ to be called.
class SessionState:
    """What a session says of itself.

    ``grace``: the login was one of those that an aged password is good for. ``real_user_id``: the
    user who acts as the one whom the session names, if it is another one.
    """

    user_id: str = ""
    auth_hash: str = ""
    flagged: bool = False
    flag_number: int | None = None
    stamp: int = 0
    born: int = 0
    ages: float | None = None
    policy_key: str | None = None
    backend: str = ""
    grace: bool = False
    real_user_id: str | None = None

    @property
    def key(self) -> ClearanceKey:
        return self.user_id, self.auth_hash, self.born, self.backend, self.grace, self.real_user_id

    def is_flagged_after(self, number: int) -> bool:
        return self.flagged and (self.flag_number is None or self.flag_number > number)


class RequestState:
    """All that is kept of one request, in one attribute of it.

    ``session``: the one that was decided about, ``None`` if there could be nobody in it.
    ``state``: that session as it came, or as it became on the way to the view; ``None`` if nobody
    is logged in by it. ``gone_key``: of the cookie, if there is no such session. ``fault``: why
    it could not be read. ``was_held``: at any time in this request. ``logged_in``: a login
    happened. ``failed_change``: the request only tells others of a wrong old password on a change
    page. ``urlconf``: by which a held request was judged before the view. ``request``: itself,
    while it goes through the middleware.

    What was seen of a change of a password: ``real_changes``: primary key -> was it a real change.
    ``knows_old``: whether the present password was sent, ``counted``: as a try that is in the
    record, ``reported``: which was a wrong one and is followed up. ``forgotten``: the key of a
    session that a logout took out of the index.
    """

    session: SessionBase | None = None
    session_key: str | None = None
    state: SessionState | None = None
    gone_key: str | None = None
    fault: Exception | None = None
    held: bool = False
    was_held: bool = False
    answered: bool = False
    reached: bool = False
    urlconf: Any = None
    logged_in: bool = False
    failed_change: bool = False
    status: Any = UNKNOWN
    request: HttpRequest | None = None
    real_changes: Mapping[str, bool] = MappingProxyType({})
    knows_old: bool | None = None
    counted: bool = False
    reported: bool = False
    forgotten: str | None = None

    @property
    def served_elsewhere(self) -> bool:
        """Held, let through to an exempt view, and never seen to arrive there."""
        return self.held and not self.answered and not self.reached

    def forget_decision(self) -> None:
        """The session became another one on the way to the view."""
        self.session = self.session_key = self.state = self.gone_key = self.fault = None
        self.held = self.answered = self.reached = False


def find_request_state(request: Any) -> RequestState | None:
    found: RequestState | None = getattr(request, REQUEST_STATE, None)
    return found


def request_state_of(request: Any) -> RequestState:
    request_state = find_request_state(request)
    if request_state is None:
        request_state = RequestState()
        setattr(request, REQUEST_STATE, request_state)
    return request_state


def read_session_state(session: SessionBase) -> SessionState | None:
    """``None`` for a session that nobody is logged in to. The session must be loaded."""
    data = peek(session)
    user_id = data.get(SESSION_KEY)
    if user_id is None:
        return None
    stamp = data.get(SESSION_STAMP)
    if not isinstance(stamp, dict):
        stamp = {}
    number = data.get(SESSION_DEMAND)
    state = SessionState()
    state.user_id, state.auth_hash = str(user_id), data.get(HASH_SESSION_KEY) or ""
    state.flagged = bool(data.get(SESSION_FLAG))
    state.flag_number = number if isinstance(number, int) else None
    # What is none of ours was cleared for nothing, and asks at once whether it aged out.
    n, b, ages = stamp.get("n"), stamp.get("b"), stamp.get("a")
    state.stamp = n if isinstance(n, int) else 0
    state.born = b if isinstance(b, int) else 0
    state.ages = ages if ages is None or isinstance(ages, (int, float)) else 0.0
    state.policy_key = stamp.get("p")
    state.backend = data.get(BACKEND_SESSION_KEY) or ""
    state.grace = bool(stamp.get("g"))
    return state


@cache
def loginas_key() -> str:
    """Read once, as django-loginas does."""
    return getattr(settings, "LOGINAS_FROM_USER_SESSION_FLAG", "loginas_from_user")


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
    """Whether the user who sits there acts as another one, who is then ``request.user``."""
    if not request.user.is_authenticated:
        return False
    session, state = getattr(request, "session", None), request_state_of(request).state
    if state is not None and state.real_user_id is not None:
        return True
    if not names_user(session, request.user):
        return True
    assert session is not None
    return any(session.get(key) for key in (HIJACKERS, loginas_key()))

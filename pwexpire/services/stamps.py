"""What a session carries of pwexpire. Written at a login and at a change, at no other time."""

from __future__ import annotations

from django.contrib.sessions.backends.base import SessionBase

from pwexpire.conf import conf
from pwexpire.constants import SESSION_DEMAND, SESSION_FLAG, SESSION_STAMP
from pwexpire.services.password_state import PasswordState


def stamp_session(
    session: SessionBase, counter: int, password_state: PasswordState, *, grace: bool = False
) -> None:
    """``counter``: read before the record was judged.

    ``n``: up to which number nothing is demanded of this session, -1 if something is, numbered or
    not; ``b``: at which number it began.
    ``grace``: it is one of the logins that an aged password is good for.
    """
    held = password_state.held and not grace
    stamp = {
        "n": -1 if held else counter,
        "b": counter,
        "a": password_state.grace_ages if grace else password_state.ages,
        # Of a policy that could not be read nothing is known: the next request asks.
        "p": None if password_state.in_doubt else conf.policy_key,
    }
    session[SESSION_STAMP] = stamp | {"g": True} if grace else stamp


def stamp_unjudged(session: SessionBase, counter: int) -> None:
    """The next request asks the record, if there is anything to ask it for."""
    session[SESSION_STAMP] = {"n": 0, "b": counter, "a": None, "p": None}


def set_flag(session: SessionBase, number: int) -> None:
    session[SESSION_FLAG] = True
    session[SESSION_DEMAND] = number


def clear_flag(session: SessionBase) -> bool:
    session.pop(SESSION_DEMAND, None)
    return bool(session.pop(SESSION_FLAG, False))


def clear_numbered_flag(session: SessionBase) -> None:
    """A flag set by hand outlives a login: only a change, or who set it, takes it away."""
    if SESSION_DEMAND in session:
        clear_flag(session)

"""Whether a request is held. Pure: no request, no query, no clock, no setting is read in here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from pwexpire.demand_view import View
from pwexpire.services.password_state import PasswordState
from pwexpire.session_state import SessionState


class Access(Enum):
    PASS = "pass"
    HOLD = "hold"
    # The session is over, and the request goes on as nobody's.
    END = "end"
    # The old password is withdrawn: the session is over, and its request is answered with that.
    LOCKED = "locked"


class AccessReason(Enum):
    OFF = "enforcement is off"
    DEMANDED_BEFORE_FAULT = "the record or the policy cannot be asked, and a demand is known"
    FAIL_CLOSED = "nothing can be asked, and the site wants nobody to pass then"
    FAIL_OPEN = "nothing can be asked"
    NOTHING_NEW = "nothing was demanded since the session was cleared"
    USER_GONE = "the session names nobody who is there"
    LEFT_OUT = "the site's own rule leaves the user out"
    ENDED = "the sessions of the user were ended"
    NOT_DEMANDED = "nothing is demanded of the user"
    BACKEND = "the session was opened by an exempt backend"
    GRACE = "the session was opened by a grace login"
    REPORTED = "would be held, but is counted only"
    IMPERSONATOR = "something is demanded of the user who acts as another one"
    WITHDRAWN = "the old password is withdrawn"
    DEMANDED = "a change is demanded of the user"
    BY_HAND = "the flag was set by hand"


# What is remembered for a session: the record was asked, and it holds nothing against it.
CLEARED = frozenset({AccessReason.NOT_DEMANDED, AccessReason.BACKEND, AccessReason.GRACE})


@dataclass(frozen=True, slots=True, kw_only=True)
class Modes:
    """The settings that decide. Neither ``enforce`` nor ``report_only``: nobody is asked."""

    enforce: bool = True
    report_only: bool = False
    fail_closed: bool = False
    exempt_backends: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What was asked about a session. ``own``: of the user whom it names, ``None`` without one.

    ``real``: of the user who acts as that one. ``left_out``: by a rule of the site.
    """

    own: PasswordState | None = None
    real: PasswordState | None = None
    usable_password: bool = True
    left_out: bool = False


@dataclass(frozen=True, slots=True)
class AccessDecision:
    """``good_until``: when a cleared session has to be asked for again, if at any time.

    ``number``: what the flag of a held session gets, if the record was asked. ``require``: what is
    demanded where the password is withdrawn.
    """

    access: Access
    reason: AccessReason
    good_until: float | None = None
    number: int | None = None
    require: str | None = None


@dataclass(frozen=True)
class Question:
    """``state``: ``None`` where the session could not be read. ``facts``: ``None`` if not asked."""

    state: SessionState | None
    view: View | None
    facts: Facts | None
    modes: Modes
    now: float
    fault: bool

    @property
    def password_state(self) -> PasswordState:
        """Of the user who really sits there."""
        assert self.facts is not None and self.facts.own is not None
        return self.facts.real or self.facts.own

    @property
    def impersonated(self) -> bool:
        return self.facts is not None and self.facts.real is not None

    @property
    def exempt_backend(self) -> bool:
        return self.state is not None and self.state.backend in self.modes.exempt_backends

    @property
    def known_before_fault(self) -> bool:
        state, view = self.state, self.view
        if not self.fault or state is None or self.modes.report_only or self.exempt_backend:
            return False
        return state.is_flagged_after(state.stamp) or (
            view is not None and is_demanded(state, view)
        )

    @property
    def nothing_new(self) -> bool:
        return self.state is None or (
            self.view is not None and not is_suspect(self.state, self.view, self.now)
        )

    @property
    def user_gone(self) -> bool:
        return self.facts is None or self.facts.own is None

    @property
    def ended(self) -> bool:
        """A session of either of them: of the user, or of who acts as that one."""
        assert self.state is not None and self.facts is not None
        password_state = (self.facts.own, self.facts.real)
        return any(one is not None and one.ended > self.state.born for one in password_state)

    @property
    def withdrawn(self) -> bool:
        kept_in = self.exempt_backend or self.impersonated or self.modes.report_only
        return self.password_state.withdrawn and not kept_in

    @property
    def by_hand(self) -> bool:
        assert self.state is not None and self.facts is not None
        unnumbered = self.state.flagged and self.state.flag_number is None
        return unnumbered and self.facts.usable_password and not self.impersonated

    @property
    def on_grace(self) -> bool:
        """Whether the login was a grace login, of every rule by which the password aged out."""
        state, password_state = self.state, self.password_state
        assert state is not None
        if not (
            state.grace
            and password_state.held_by_age_alone
            and password_state.chosen.policy.grace_logins
        ):
            return False
        # Under a rule that began to hold the user after this login, the login was no grace login.
        return state.ages is None or self.now < state.ages

    @property
    def in_doubt(self) -> bool:
        """Whether nothing holds the user but perhaps a policy that cannot be read."""
        excused = self.exempt_backend or self.modes.report_only
        held = self.password_state.held or self.by_hand
        return self.password_state.in_doubt and not (held or excused)

    @property
    def held_before_doubt(self) -> bool:
        assert self.state is not None
        flagged = self.state.is_flagged_after(self.state.stamp)
        return self.in_doubt and flagged and not self.impersonated

    @property
    def number(self) -> int:
        """An age has no number: it gets one that no session was cleared for.

        So it holds through a fault as well. An expiry that takes the same one holds too.
        """
        assert self.view is not None
        return self.password_state.demand or self.view.counter + 1

    @property
    def good_until(self) -> float | None:
        if self.exempt_backend:
            return None
        return self.password_state.grace_ages if self.on_grace else self.password_state.ages


Row = tuple[Callable[[Question], bool], Access, AccessReason]

# The first row that is true decides. What is above another one is stronger than it.
ROWS: tuple[Row, ...] = (
    (
        lambda q: not (q.modes.enforce or q.modes.report_only),
        Access.PASS,
        AccessReason.OFF,
    ),
    (lambda q: q.known_before_fault, Access.HOLD, AccessReason.DEMANDED_BEFORE_FAULT),
    (
        lambda q: q.fault and q.modes.fail_closed and not q.modes.report_only,
        Access.HOLD,
        AccessReason.FAIL_CLOSED,
    ),
    (lambda q: q.fault, Access.PASS, AccessReason.FAIL_OPEN),
    (lambda q: q.nothing_new, Access.PASS, AccessReason.NOTHING_NEW),
    # Else a flag of nobody's would be looked into at every request.
    (
        lambda q: q.user_gone and q.state is not None and q.state.flagged,
        Access.END,
        AccessReason.USER_GONE,
    ),
    (lambda q: q.user_gone, Access.PASS, AccessReason.USER_GONE),
    (
        lambda q: q.facts is not None and q.facts.left_out,
        Access.PASS,
        AccessReason.LEFT_OUT,
    ),
    # Who was logged out because the password is withdrawn learns why.
    (
        lambda q: q.ended and q.withdrawn,
        Access.LOCKED,
        AccessReason.WITHDRAWN,
    ),
    # An end was asked for by somebody, so it counts in a trial run and for every backend.
    (lambda q: q.ended, Access.END, AccessReason.ENDED),
    # As with a database that does not answer: what is known goes on to hold.
    (lambda q: q.held_before_doubt, Access.HOLD, AccessReason.DEMANDED_BEFORE_FAULT),
    (
        lambda q: q.in_doubt and q.modes.fail_closed,
        Access.HOLD,
        AccessReason.FAIL_CLOSED,
    ),
    (
        lambda q: not (q.password_state.held or q.by_hand),
        Access.PASS,
        AccessReason.NOT_DEMANDED,
    ),
    (lambda q: q.exempt_backend, Access.PASS, AccessReason.BACKEND),
    (lambda q: q.on_grace and not q.by_hand, Access.PASS, AccessReason.GRACE),
    (lambda q: q.modes.report_only, Access.PASS, AccessReason.REPORTED),
    # In the session of another user there is no page on which to change one's own password.
    (lambda q: q.impersonated, Access.END, AccessReason.IMPERSONATOR),
    (lambda q: q.password_state.locked, Access.LOCKED, AccessReason.WITHDRAWN),
    (lambda q: q.password_state.held, Access.HOLD, AccessReason.DEMANDED),
    (lambda q: True, Access.HOLD, AccessReason.BY_HAND),
)


def decide(
    state: SessionState | None,
    view: View | None,
    facts: Facts | None,
    modes: Modes,
    *,
    now: float,
    fault: bool = False,
) -> AccessDecision:
    """Whether the session reaches its view. ``fault``: something could not be asked."""
    question = Question(state, view, facts, modes, now, fault)
    access, reason = next((access, reason) for is_so, access, reason in ROWS if is_so(question))
    if reason in CLEARED:
        return AccessDecision(access, reason, good_until=question.good_until)
    if access is Access.LOCKED:
        return AccessDecision(access, reason, require=question.password_state.require)
    if reason in (AccessReason.DEMANDED, AccessReason.BY_HAND):
        return AccessDecision(access, reason, number=question.number)
    return AccessDecision(access, reason)


def is_demanded(state: SessionState, view: View) -> bool:
    """Whether more is demanded than this session was cleared for; compares numbers only."""
    known = view.find_clearance(state.key) if view.clearances else None
    if known is not None:
        number, flag = known.number, max(known.number, known.flag)
    else:
        # Where nobody polls, a session may well be younger than what this process knows.
        number = flag = state.stamp if state.born <= view.counter or not view.polled else -1
    if view.is_demanded_after(number, state.user_id):
        return True
    if state.flagged and state.is_flagged_after(flag):
        return True
    return state.real_user_id is not None and view.is_demanded_after(number, state.real_user_id)


def is_suspect(state: SessionState, view: View, now: float) -> bool:
    """Whether the record has to be asked."""
    if is_demanded(state, view):
        return True
    # What the session was cleared for says nothing of somebody who acts as its user.
    if state.real_user_id is not None and state.key not in view.clearances:
        return True
    wanted = view.policy_key
    # A login under a setting that is gone may have been cleared by that setting alone.
    if wanted is None and state.policy_key is None:
        return False
    known = view.clearances.get(state.key, state) if view.clearances else state
    if known.policy_key != wanted:
        return True
    return wanted is not None and known.ages is not None and now >= known.ages

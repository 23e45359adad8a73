"""Whether a request is held: each state of a session x what the record says x mode, as a table.

``expect`` is written from the laws alone, and knows nothing of the rows of the decision.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import pytest

from pwexpire import decision
from pwexpire.decision import Access, AccessReason, Facts, Modes, decide, is_demanded
from pwexpire.demand_view import Clearance, View
from pwexpire.policy import Chosen, Policy
from pwexpire.services.password_state import GivenPassword, OpenDemand, PasswordState
from pwexpire.session_state import SessionState
from tests.support import made

NOW = 1_000_000.0
STAMP, COUNTER, NEWER = 40, 50, 45
ALICE, ROOT = "1", "2"
SSO = "site.SingleSignOn"
FRESH = made(
    SessionState,
    user_id=ALICE,
    auth_hash="h",
    flagged=False,
    flag_number=None,
    stamp=STAMP,
    born=STAMP,
    ages=None,
    policy_key=None,
    backend="django.contrib.auth.backends.ModelBackend",
    grace=False,
    real_user_id=None,
)
FLAGS = {
    "no flag": {},
    "a flag that was met": {"flagged": True, "flag_number": STAMP},
    "a newer flag": {"flagged": True, "flag_number": NEWER},
    "a flag by hand": {"flagged": True, "flag_number": None},
}
LOGINS = {
    "by password": {},
    "by an exempt backend": {"backend": SSO},
    "by a grace login": {"grace": True},
    "by a grace login that is over": {"grace": True, "ages": NOW - 1},
    "with an age that is over": {"ages": NOW},
}
FEEDS = {
    "nothing new": View(counter=COUNTER),
    "a demand on alice": View(counter=COUNTER, users={ALICE: NEWER}),
    "a demand on everybody": View(counter=COUNTER, floor=NEWER),
    "a demand on root": View(counter=COUNTER, users={ROOT: NEWER}),
}


def opened(require):
    return OpenDemand(require=require, reason="admin", since=None, note="", batch=1, actor=None)


GRACE = Chosen(Policy(grace_logins=3))
RECORDS = {
    "nothing": PasswordState(),
    "a change": PasswordState(demand=NEWER, opened=opened("change")),
    "a reset": PasswordState(demand=NEWER, opened=opened("reset")),
    "a denial": PasswordState(demand=NEWER, opened=opened("deny")),
    "an age": PasswordState(aged=True),
    "an age with grace": PasswordState(aged=True, chosen=GRACE),
    "an age that only warns": PasswordState(aged=True, chosen=Chosen(Policy(require="warn"))),
    "an age and a change": PasswordState(
        aged=True, demand=NEWER, opened=opened("change"), chosen=GRACE
    ),
    "a given password": PasswordState(given=GivenPassword(since=None, by=None, require="change")),
    "an old end": PasswordState(ended=STAMP),
    "an end": PasswordState(ended=NEWER),
    "an end and a reset": PasswordState(ended=NEWER, demand=NEWER, opened=opened("reset")),
    "a doubt": PasswordState(in_doubt=True),
    "a doubt and a reset": PasswordState(in_doubt=True, demand=NEWER, opened=opened("reset")),
    "a doubt and an end": PasswordState(in_doubt=True, ended=NEWER),
}
FREE = {"nothing", "an age that only warns", "an old end", "an end", "a doubt"}
HOLDING = set(RECORDS) - FREE - {"a doubt and an end"}
LOCKING = {"a reset", "a denial", "an end and a reset", "a doubt and a reset"}
ENDING = {"an end", "an end and a reset", "a doubt and an end"}
MODES = {
    "on": Modes(exempt_backends=frozenset({SSO})),
    "closed": Modes(exempt_backends=frozenset({SSO}), fail_closed=True),
    "report": Modes(enforce=False, report_only=True, exempt_backends=frozenset({SSO})),
    "off": Modes(enforce=False, fail_closed=True),
}


@dataclass(frozen=True)
class Cell:
    flag: str
    login: str
    feed: str
    record: str
    mode: str
    # Who acts as alice, and what is demanded of them.
    root: str | None = None
    fault: bool = False
    gone: bool = False
    left_out: bool = False
    unread: bool = False

    @property
    def case(self):
        if self.unread:
            return None
        given = {**FLAGS[self.flag], **LOGINS[self.login]}
        return made(FRESH, **given, real_user_id=ROOT if self.root else None)

    @property
    def view(self):
        # A policy, so that an age that is over is seen.
        return replace(FEEDS[self.feed], policy_key="p" if "over" in self.login else None)

    def decide(self):
        facts = Facts(
            own=None if self.gone else RECORDS[self.record],
            real=RECORDS[self.root] if self.root else None,
            left_out=self.left_out,
        )
        case = self.case and made(self.case, policy_key=self.view.policy_key)
        asked = None if self.fault else facts
        return decide(case, self.view, asked, MODES[self.mode], now=NOW, fault=self.fault)


def concerns(cell):
    """Whether the session knows of something that is newer than it (laws 1 and 2)."""
    by_feed = cell.feed in ("a demand on alice", "a demand on everybody")
    by_root = cell.root is not None and cell.feed == "a demand on root"
    return by_feed or by_root or cell.flag in ("a newer flag", "a flag by hand")


def expect(cell):
    if cell.mode == "off":
        return Access.PASS
    if cell.fault:
        # Law 9: who is known to be held stays held, the others by choice; law 11: a trial run
        # and single sign-on hold nobody then either.
        holds = cell.mode != "report" and cell.login != "by an exempt backend"
        if not cell.unread and concerns(cell) and holds:
            return Access.HOLD
        return Access.HOLD if cell.mode == "closed" else Access.PASS
    over = cell.login in ("with an age that is over", "by a grace login that is over")
    if not concerns(cell) and not over and cell.root is None:
        return Access.PASS  # law 5: nothing was asked
    if cell.gone:
        return Access.END if cell.flag != "no flag" else Access.PASS
    if cell.left_out:
        return Access.PASS
    if cell.record in ENDING or cell.root in ENDING:
        alone = cell.root is None and cell.mode != "report"
        if alone and cell.record in LOCKING and cell.login != "by an exempt backend":
            return Access.LOCKED  # law 7: they learn why
        return Access.END  # an end is no demand: it counts for everybody
    # Law 10 and the hook: of whom is it demanded? Of who sits there.
    who = cell.root or cell.record
    by_hand = cell.flag == "a flag by hand" and cell.root is None  # law 1
    grace = cell.login == "by a grace login" and who == "an age with grace" and not by_hand
    excused = grace or cell.login == "by an exempt backend" or cell.mode == "report"
    if who == "a doubt" and not excused and not by_hand:
        known = cell.flag == "a newer flag" and cell.root is None
        return Access.HOLD if known or cell.mode == "closed" else Access.PASS
    if excused or not (who in HOLDING or by_hand):
        return Access.PASS
    if cell.root is not None:
        return Access.END
    return Access.LOCKED if who in LOCKING else Access.HOLD


def cells():
    for values in itertools.product(FLAGS, LOGINS, FEEDS, RECORDS, MODES):
        plain = Cell(*values)
        yield plain
        for change in ({"fault": True}, {"gone": True}, {"left_out": True}):
            if plain.record in ("a change", "an end", "an end and a reset"):
                yield replace(plain, **change)
        if plain.record in ("nothing", "a change", "an end"):
            yield from (replace(plain, root=root) for root in RECORDS)
        if plain.record == "nothing":
            yield replace(plain, fault=True, unread=True)
            yield replace(plain, fault=True, root="a change")


CELLS = list(cells())


def wrong():
    return [cell for cell in CELLS if cell.decide().access is not expect(cell)]


def test_the_decision_is_what_the_laws_say():
    assert len(CELLS) > 10_000
    assert wrong()[:3] == []


def name_pair(at):
    return "-".join(reason.name for _, _, reason in decision.ROWS[at : at + 2])


@pytest.mark.parametrize(
    "at",
    [
        at
        for at in range(len(decision.ROWS) - 1)
        if decision.ROWS[at][1] is not decision.ROWS[at + 1][1]
    ],
    ids=name_pair,
)
def test_a_table_in_another_order_is_noticed(monkeypatch, at):
    rows = list(decision.ROWS)
    rows[at], rows[at + 1] = rows[at + 1], rows[at]
    monkeypatch.setattr(decision, "ROWS", tuple(rows))
    assert wrong()


@pytest.mark.parametrize("reason", AccessReason)
def test_each_reason_is_given(reason):
    assert any(cell.decide().reason is reason for cell in CELLS)


def settle(**given):
    case = made(FRESH, flagged=True, flag_number=NEWER, **given)
    return case, View(counter=COUNTER, users={ALICE: NEWER})


def test_a_held_session_gets_the_number_of_the_demand():
    case, view = settle()
    facts = Facts(own=PasswordState(demand=NEWER, opened=opened("change")))
    assert decide(case, view, facts, Modes(), now=NOW).number == NEWER
    aged = decide(case, view, Facts(own=PasswordState(aged=True)), Modes(), now=NOW)
    assert aged.number == COUNTER + 1


def test_a_withdrawn_password_says_by_what():
    case, view = settle()
    facts = Facts(own=PasswordState(demand=NEWER, opened=opened("deny")))
    assert decide(case, view, facts, Modes(), now=NOW).require == "deny"


@pytest.mark.parametrize(
    ("given", "until"),
    [
        ({}, 7.0),
        ({"grace": True}, 9.0),
        ({"backend": SSO}, None),
    ],
)
def test_a_cleared_session_is_asked_for_again_in_time(given, until):
    case, view = settle(**given)
    aged = "grace" in given
    password_state = PasswordState(aged=aged, ages=7.0, grace_ages=9.0, chosen=GRACE)
    modes = Modes(exempt_backends=frozenset({SSO}))
    assert decide(case, view, Facts(own=password_state), modes, now=NOW).good_until == until


def test_a_password_that_cannot_be_used_is_held_by_no_flag():
    case, view = settle()
    facts = Facts(own=PasswordState(applies=False), usable_password=False)
    by_hand = made(case, flag_number=None)
    assert decide(by_hand, view, facts, Modes(), now=NOW).access is Access.PASS


@pytest.mark.parametrize(
    ("number", "flag", "demanded"), [(NEWER, 0, False), (STAMP, 0, True), (STAMP, NEWER, False)]
)
def test_what_was_remembered_counts_for_the_same_flag(number, flag, demanded):
    case = made(FRESH, flagged=True, flag_number=NEWER)
    view = View(counter=COUNTER)
    view.remember(case.key, Clearance(number, None, None, flag))
    assert is_demanded(case, view) is demanded


def test_a_session_of_another_sequence_is_asked_for():
    case = made(FRESH, born=COUNTER + 1, stamp=COUNTER + 1)
    assert is_demanded(case, View(counter=COUNTER, floor=1))
    assert not is_demanded(case, View(counter=COUNTER + 1, floor=1))


def test_another_policy_is_asked_about():
    case = made(FRESH, policy_key="old")
    for key, suspect in (("old", False), ("new", True), (None, True)):
        assert decision.is_suspect(case, View(counter=COUNTER, policy_key=key), NOW) is suspect

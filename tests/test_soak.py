"""The model of the soak run: an answer is wrong only if no order of events explains it."""

from __future__ import annotations

import pytest

from tests.bench.soak.model import Model, Visitor

POLL = 1.0


@pytest.fixture
def model():
    return Model(POLL)


@pytest.fixture
def alice():
    return Visitor(1, "alice", ["first"])


def expire(model, one, begun, returned, *, joined=True):
    model.begin([one], 1, begun)
    model.settle([one], 1, {one.pk} if joined else set(), returned)


def faults(model):
    return {what: count for what, count in model.counts.items() if not what.startswith("answers")}


@pytest.mark.parametrize(
    ("kind", "sent", "fault"),
    [
        ("passed", 8.0, None),
        ("held", 8.0, "held though free"),
        ("held", 10.5, None),  # the expiry may have been committed already
        ("passed", 11.9, None),  # within the interval
        ("passed", 12.1, "passed though expired"),
        ("held", 12.1, None),
    ],
)
def test_an_expiry_from_10_to_11(model, alice, kind, sent, fault):
    expire(model, alice, 10.0, 11.0)
    model.check(alice, kind, sent, sent + 0.1, "")
    assert faults(model) == ({fault: 1} if fault else {})


@pytest.mark.parametrize(
    ("kind", "sent", "fault"),
    [
        ("passed", 19.95, None),  # answered after the change began
        ("held", 20.5, None),
        ("held", 21.1, "held though free"),
        ("passed", 21.1, None),
    ],
)
def test_a_change_from_20_to_21(model, alice, kind, sent, fault):
    expire(model, alice, 10.0, 11.0)
    model.change(alice, 20.0, 21.0)
    model.check(alice, kind, sent, sent + 0.1, "")
    assert faults(model) == ({fault: 1} if fault else {})


def test_an_expiry_that_meets_a_change_may_have_won_or_not(model, alice):
    model.begin([alice], 1, 10.0)
    model.change(alice, 10.5, 10.6)
    model.settle([alice], 1, {alice.pk}, 11.0)
    for kind in ("passed", "held"):
        model.check(alice, kind, 30.0, 30.1, "")
    model.cancel([alice], None, 40.0, 41.0)
    assert not faults(model)
    model.check(alice, "held", 42.0, 42.1, "")
    assert faults(model) == {"held though free": 1}


def test_who_did_not_join_a_batch_is_not_held_by_it(model, alice):
    expire(model, alice, 10.0, 11.0, joined=False)
    model.check(alice, "passed", 30.0, 30.1, "")
    assert not faults(model)
    model.check(alice, "held", 30.0, 30.1, "")
    assert faults(model) == {"held though free": 1}


def test_faults_while_something_is_broken_on_purpose_are_counted_apart(model, alice):
    expire(model, alice, 10.0, 11.0)
    model.outages.open(20.0)
    model.outages.close(25.0)
    model.redeploys.open(30.0)
    for kind, sent in (("passed", 24.0), ("error", 22.0), ("error", 31.0), ("error", 27.0)):
        model.check(alice, kind, sent, sent + 0.1, "")
    assert faults(model) == {
        "passed in an outage": 1,
        "errors, outage": 1,
        "errors, redeploy": 1,
        "errors, else": 1,
    }

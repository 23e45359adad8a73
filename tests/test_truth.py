"""What a user meets with before and after each way, for every state under every policy.

A part of the table on one engine (all of it with ``PWEXPIRE_TEST_TABLE=whole``), and each of its
values on every other engine, and under ASGI.
The expectations come from ``tests.truth.oracle`` alone.
"""

from __future__ import annotations

import os
from itertools import product

import pytest
from django.contrib.auth import authenticate
from django.test import override_settings
from django.utils import timezone

from pwexpire import services
from pwexpire.services.status import read_state
from tests.conftest import ENGINES, Server
from tests.factories import AdminFactory
from tests.support import NEW, OLD
from tests.truth import oracle
from tests.truth.oracle import Facts, Rules, Wanted
from tests.truth.pairs import pairs_with
from tests.truth.people import (
    POLICIES,
    STATES,
    WAYS,
    Scene,
    enter,
    look,
    make_person,
    promised_login,
    try_login,
)

pytestmark = pytest.mark.django_db(transaction=True)
COLUMNS = [list(STATES), list(POLICIES), list(WAYS), ENGINES[1:], ["wsgi", "asgi"]]
SAMPLE = pairs_with([3, 4], COLUMNS, seed=3)
# Any two values of two columns meet in a sixth of the table. The whole takes some minutes.
PART = 1 if os.environ.get("PWEXPIRE_TEST_TABLE") == "whole" else 6


def rows_of(state):
    """``(policy, way)``."""
    place = list(STATES).index(state)
    found = product(enumerate(POLICIES), enumerate(WAYS))
    return [(policy, way) for (p, policy), (w, way) in found if (place + p + w) % PART == 0]


@pytest.fixture
def site(settings):
    settings.AUTHENTICATION_BACKENDS = ["pwexpire.backends.PasswordExpiryBackend"]
    read_state()
    return settings


@pytest.fixture
def office(site, client):
    root = AdminFactory(username="root")
    services.record_password_change(root)
    client.force_login(root)
    return client


def run_row(office, server, state, policy, way):
    """The differences between what was promised and what was met with."""
    chosen, rules = POLICIES[policy]
    person, browser = make_person(state), server()
    enter(browser, person.user)
    STATES[state](person, browser)
    wrong = []

    def compare(what, promised, met):
        if promised != met:
            wrong.append(f"{state} / {policy} / {way}: {what}: {met}, promised {promised}")

    def compare_login(what, password):
        promised = promised_login(person.facts, rules)
        compare(what, promised, try_login(server(), person.user, password))

    second = (lambda user: True) if rules.second_factor else None
    with override_settings(PWEXPIRE_POLICY=chosen, PWEXPIRE_SECOND_FACTOR=second):
        met_before = oracle.session(person.facts, rules, timezone.now(), by_hand=person.by_hand)
        compare("session before", met_before, look(browser))
        if not WAYS[way].changes:  # the others would only do the same once more
            compare_login("login before", OLD)
        scene = Scene(person, browser, office, server)
        password, promised = go(WAYS[way], scene, rules, met_before)
        compare("session after", promised, look(scene.browser))
        compare_login("login after", password)
        useless = NEW if password == OLD else OLD
        compare("the other password", None, authenticate(None, **names(person, useless)))
    if person.undo is not None:
        person.undo()
    return wrong


def names(person, password):
    return {"username": person.user.username, "password": password}


def go(way, scene, rules, met_before):
    """Go the way; the password that counts then, and what is promised to the session."""
    facts, possible = scene.person.facts, not way.needs or met_before != "out"
    way.go(scene)
    promised = met_before
    if way.changes and possible:
        oracle.changed(facts, rules, timezone.now(), by_other=way.changes == "other")
        promised = oracle.session(facts, rules, timezone.now())
    if way.logs_in:
        promised = promised_login(facts, rules)
        promised = "out" if promised == "refused" else promised
    if way.ends:
        promised = "out"
    return (NEW if way.changes and possible else OLD), promised


@pytest.mark.parametrize("state", STATES)
def test_the_table(site, office, state):
    wrong = []
    for policy, way in rows_of(state):
        wrong += run_row(office, Server("wsgi"), state, policy, way)
    assert not wrong, "\n".join([f"{len(wrong)} promises were broken:", *wrong])


def test_a_sample_on_every_engine(engine, site, office):
    name = engine.rpartition(".")[2]
    wrong, rows = [], [row for row in SAMPLE if row[3] == name]
    for state, policy, way, _, server in rows:
        wrong += run_row(office, Server(server), state, policy, way)
    assert (len(rows) >= 22) == (name != "db")
    assert not wrong, "\n".join([f"{len(wrong)} promises were broken:", *wrong])


def test_the_table_is_as_large_as_it_is_said_to_be():
    assert len(STATES) * len(POLICIES) * len(WAYS) == 2_530
    rows = [(state, *row) for state in STATES for row in rows_of(state)]
    assert len(rows) == 2_530 if PART == 1 else 420 < len(rows) < 424
    for one, two in [(0, 1), (0, 2), (1, 2)]:
        assert {(row[one], row[two]) for row in rows} == set(product(COLUMNS[one], COLUMNS[two]))


def test_all_that_there_is_meets_every_engine_and_server():
    for one, two in [(a, b) for a in (3, 4) for b in range(a)]:
        met = {(row[one], row[two]) for row in SAMPLE}
        assert met == set(product(COLUMNS[one], COLUMNS[two]))


def test_the_oracle_itself():
    """A few sentences of the specification, so that it cannot agree with everything."""
    now = timezone.now()
    old = POLICIES["grace"][1].policy.max_age
    fresh, worn = Facts(changed=now), Facts(changed=now - old)
    for policy, promised in [("none", "free"), ("grace", "held"), ("reset", "out")]:
        assert oracle.session(worn, POLICIES[policy][1], now) == promised
        assert oracle.session(fresh, POLICIES[policy][1], now) == "free"
    grace: Rules = POLICIES["grace"][1]
    assert [oracle.log_in(worn, grace, now) for _ in range(3)] == ["grace", "grace", "held"]
    denied = Facts(changed=now, demands=[Wanted("deny", now)])
    oracle.changed(denied, grace, now, by_other=False)
    assert oracle.log_in(denied, grace, now) == "refused"
    oracle.changed(denied, grace, now, by_other=True)
    assert oracle.log_in(denied, grace, now) == "free"
    assert oracle.log_in(denied, POLICIES["given"][1], now) == "held"

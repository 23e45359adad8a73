"""Policies: what they refuse, what they decide, which one is chosen, and how they are explained."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from io import StringIO
from itertools import product

import pytest
from django.contrib.auth.models import Group
from django.core.management import CommandError, call_command
from hypothesis import given
from hypothesis import strategies as st

from pwexpire.policy import HISTORY_MAX, PRESETS, Chosen, Policy, choose, decide, strictness

DAY = timedelta(days=1)
THEN = datetime(2026, 1, 1, tzinfo=UTC)
days = st.integers(1, 400).map(lambda number: timedelta(days=number))
policies = st.builds(
    Policy,
    max_age=st.none() | days.map(lambda age: age + 400 * DAY),
    warn_before=st.none() | days | st.lists(days, max_size=3),
    grace_logins=st.integers(0, 5),
    min_age=st.none() | days,
    history=st.integers(0, HISTORY_MAX),
    change_on_first_use=st.booleans(),
    change_after_admin_reset=st.booleans(),
    temporary_for=st.none() | days,
    require=st.sampled_from(["warn", "change", "reset", "deny"]),
    single_factor_only=st.booleans(),
)


@pytest.mark.parametrize(
    "wrong, error, words",
    [
        ({"max_age": 90}, TypeError, "max_age must be a timedelta"),
        ({"min_age": timedelta(0)}, ValueError, "min_age must be longer"),
        ({"temporary_for": -DAY}, ValueError, "temporary_for must be longer"),
        ({"warn_before": 14}, TypeError, "warn_before must be a timedelta"),
        ({"warn_before": "14d"}, TypeError, "warn_before must be a timedelta"),
        ({"warn_before": [DAY, 7]}, TypeError, "warn_before must be a timedelta"),
        ({"grace_logins": -1}, ValueError, "grace_logins must be 0 or more"),
        ({"history": True}, TypeError, "history must be a whole number"),
        ({"history": 4.0}, TypeError, "history must be a whole number"),
        ({"history": HISTORY_MAX + 1}, ValueError, "history must be at most 24"),
        ({"require": "maybe"}, ValueError, "require must be one of 'warn', 'change'"),
        ({"max_age": DAY, "min_age": DAY}, ValueError, "shorter than max_age"),
    ],
)
def test_what_a_policy_refuses(wrong, error, words):
    with pytest.raises(error, match=words):
        Policy(**wrong)


def test_steps_of_a_policy():
    assert Policy().warn_steps == () and Policy(warn_before=DAY).warn_steps == (DAY,)
    several = Policy(warn_before=[DAY, 7 * DAY, DAY])
    assert several.warn_steps == (7 * DAY, DAY)
    assert several == Policy(warn_before=(DAY, 7 * DAY, DAY))
    assert len({several, Policy(warn_before=(DAY, 7 * DAY, DAY))}) == 1


def test_keys_tell_apart_what_decides():
    kinds = [
        Policy(),
        Policy(max_age=DAY),
        Policy(max_age=DAY, require="reset"),
        Policy(max_age=DAY, grace_logins=1),
        Policy(max_age=DAY, single_factor_only=True),
        Policy(change_on_first_use=True),
        Policy(change_after_admin_reset=True),
        Policy(temporary_for=DAY),
    ]
    assert len({policy.key for policy in kinds}) == len(kinds)
    assert Policy(name="nist").is_default and not Policy(history=1).is_default


def test_truth_table_of_the_age():
    """(age in days, max_age, the longest step, single factor only, a second factor)."""
    for age, most, step, only, second in product(
        (0, 79, 80, 89, 90, 91), (None, 90), (None, 10), (False, True), (False, True)
    ):
        policy = Policy(
            max_age=most and most * DAY, warn_before=step and step * DAY, single_factor_only=only
        )
        now = THEN + age * DAY
        decision = decide(policy, changed_at=THEN, now=now, second_factor=second)
        counts = most is not None and not (only and second)
        assert decision.must_change is (counts and age >= 90)
        assert decision.warn is bool(counts and step and age >= 80)
        assert decision.expires_at == (THEN + 90 * DAY if counts else None)


@given(policies, days, days, st.booleans())
def test_nobody_becomes_free_by_waiting(policy, age, longer, second):
    early = decide(policy, changed_at=THEN, now=THEN + age, second_factor=second)
    late = decide(policy, changed_at=THEN, now=THEN + age + longer, second_factor=second)
    assert early.must_change <= late.must_change and early.warn <= late.warn
    if policy.warn_steps:
        assert early.must_change <= early.warn


@given(policies, policies)
def test_strictness_is_an_order(one, other):
    assert (strictness(one) == strictness(other)) or (
        (strictness(one) > strictness(other)) != (strictness(other) > strictness(one))
    )


@given(
    st.dictionaries(
        st.sampled_from(["staff", "superuser", "group:a", "group:b", "default"]), policies
    ),
    st.permutations(["a", "b", "c"]),
    st.booleans(),
    st.booleans(),
)
def test_the_same_rules_are_chosen_whatever_the_order(rules, groups, staff, superuser):
    chosen = choose(rules, staff=staff, superuser=superuser, groups=groups)
    again = choose(
        dict(reversed(rules.items())), staff=staff, superuser=superuser, groups=groups[::-1]
    )
    assert chosen == again
    mine = {"group:a", "group:b"} | ({"staff"} if staff else set())
    mine |= {"superuser"} if superuser else set()
    found = mine & rules.keys()
    if found:
        assert chosen.rule in found and set(chosen.matched) == found
        assert all(strictness(rules[chosen.rule]) >= strictness(rules[rule]) for rule in found)
        assert dict(chosen.each) == {rule: rules[rule] for rule in found}
    elif "default" in rules:
        assert chosen == Chosen(rules["default"], "default", ("default",))
    else:
        assert chosen == Chosen(Policy())


def test_what_counts_as_strict():
    ascending = [
        Policy(),
        Policy(history=4),
        Policy(max_age=365 * DAY),
        Policy(max_age=90 * DAY, single_factor_only=True),
        Policy(max_age=90 * DAY, require="warn"),
        Policy(max_age=90 * DAY, grace_logins=3),
        Policy(max_age=90 * DAY),
        Policy(max_age=90 * DAY, require="reset"),
        Policy(max_age=30 * DAY, single_factor_only=True),
    ]
    mixed = ascending[::2] + ascending[1::2]
    assert sorted(mixed, key=strictness) == ascending


def test_presets_are_policies_with_clauses():
    for name, preset in PRESETS.items():
        assert preset.policy.name == name and preset.clauses and preset.read
        assert preset.wants_periodic is (preset.policy.max_age is not None)
        assert not preset.periodic or preset.periodic in {one.number for one in preset.clauses}
    assert PRESETS["nist"].policy.is_default
    stricter = replace(PRESETS["pci-dss"].policy, max_age=60 * DAY)
    assert stricter.history == 4 and stricter.max_age == 60 * DAY


def tell(*args):
    out = StringIO()
    call_command("pwexpire", "policy", *args, stdout=out)
    return out.getvalue()


def test_the_command_shows_what_is_configured(settings):
    assert "no change at intervals" in tell()
    settings.PWEXPIRE_POLICY = "pci-dss"
    assert "max_age: 90 days" in tell() and "8.3.9" not in tell()
    settings.PWEXPIRE_POLICY = {"staff": "pci-dss", "default": Policy(max_age=DAY)}
    said = tell()
    assert "staff: pci-dss" in said and "default: custom" in said
    settings.PWEXPIRE_POLICY = "tests.testapp.policies.strict"
    assert "tests.testapp.policies.strict says" in tell()


def test_the_command_explains_clauses(settings):
    settings.PWEXPIRE_POLICY = "pci-dss"
    said = tell("--explain")
    assert all(number in said for number in ("8.3.5", "8.3.6", "8.3.7", "8.3.9"))
    assert "not read in the final text" in said
    assert "6.2.10" in tell("--preset", "asvs-5")
    (told,) = json.loads(tell("--explain", "--format", "json"))
    assert told["policy"] == "pci-dss" and len(told["clauses"]) == 4
    with pytest.raises(CommandError, match="use one of nist, pci-dss"):
        tell("--preset", "iso")


@pytest.mark.django_db
def test_the_command_tells_whose_policy_it_is(settings, alice, root):
    assert json.loads(tell("--user", "alice", "--format", "json"))["policy"] == "no policy"
    settings.PWEXPIRE_POLICY = {"superuser": "cis", "staff": "pci-dss", "group:Finance": "cis"}
    said = tell("--user", "root")
    assert "These rules match: staff, superuser." in said
    assert "history: 5 (superuser)" in said and "change_on_first_use: yes (staff)" in said
    assert json.loads(tell("--user", "root", "--format", "json"))["rule"] == "staff"
    assert json.loads(tell("--user", "alice", "--format", "json"))["rule"] == ""
    alice.groups.add(Group.objects.create(name="Finance"))
    assert json.loads(tell("--user", "alice", "--format", "json"))["rule"] == "group:Finance"
    with pytest.raises(CommandError):
        tell("--user", "nobody")

"""Several rules match one user: each is weighed for itself, and one more never frees anybody."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from io import StringIO
from types import SimpleNamespace

import pytest
from django.contrib.auth.models import Group
from django.core.management import call_command
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st

from pwexpire.constants import REQUIRE_ORDER
from pwexpire.models import PasswordRecord
from pwexpire.policy import PRESETS, Policy, choose
from pwexpire.services.history import length_kept, policy_of
from pwexpire.services.password_state import PasswordState, Rules, find_password_state
from pwexpire.services.status import password_status
from tests.support import is_held
from tests.test_laws import login
from tests.test_policy import policies
from tests.test_policy_attacks import in_days

DAY = timedelta(days=1)
THEN = datetime(2026, 1, 1, tzinfo=UTC)
KEYS = ["staff", "superuser", "group:a", "group:b"]


def judge_age(mapping, age, *, second=False, used=0, given=None, new=False):
    """What these rules, all of which match, say of a password that is ``age`` old."""
    chosen = choose(mapping, staff=True, superuser=True, groups=["a", "b"])
    rules = Rules(
        now=THEN + age,
        read_came=lambda: THEN,
        chosen_for=lambda user: chosen,
        applies_to=None,
        second_factor=lambda user: second,
        assume_joined=False,
        reconsider=None,
    )
    record = PasswordRecord(changed_at=THEN, grace_used=used, given_at=given, given_new=new)
    user = SimpleNamespace(password="md5$", has_usable_password=lambda: True)
    return find_password_state(rules, user, record, demand=0, find_open=lambda policy: None)


def rank(require: str | None) -> int:
    return -1 if require is None else REQUIRE_ORDER.index(require)


def is_kept_out(password_state: PasswordState) -> bool:
    """At a login: held, and no grace login left."""
    return password_state.held and not (password_state.held_by_age_alone and password_state.grace)


ages = st.integers(1, 900).map(lambda number: timedelta(days=number))


@given(
    mapping=st.dictionaries(st.sampled_from(KEYS), policies, min_size=1, max_size=3),
    key=st.sampled_from(KEYS),
    more=policies,
    age=ages,
    second=st.booleans(),
    used=st.integers(0, 5),
    was_given=st.booleans(),
    new=st.booleans(),
)
def test_one_more_rule_never_frees_anybody(mapping, key, more, age, second, used, was_given, new):
    if key in mapping:
        return
    facts = {"second": second, "used": used, "given": THEN if was_given else None, "new": new}
    fewer = judge_age(mapping, age, **facts)
    all_of_them = judge_age({**mapping, key: more}, age, **facts)
    assert all_of_them.held >= fewer.held
    assert is_kept_out(all_of_them) >= is_kept_out(fewer)
    if fewer.held:
        assert rank(all_of_them.require) >= rank(fewer.require)
    assert all_of_them.warn >= fewer.warn or all_of_them.held
    if fewer.ages is not None:
        assert all_of_them.ages is not None and all_of_them.ages <= fewer.ages
    if fewer.given is not None:
        assert all_of_them.given is not None
        assert rank(all_of_them.given.require) >= rank(fewer.given.require)
    one, other = fewer.chosen.policy, all_of_them.chosen.policy
    assert other.history >= one.history
    assert (other.min_age or timedelta(0)) >= (one.min_age or timedelta(0))
    if one.temporary_for is not None:
        assert other.temporary_for is not None and other.temporary_for <= one.temporary_for


@given(st.dictionaries(st.sampled_from(KEYS), policies, min_size=2), ages, st.booleans())
def test_a_verdict_counts_until_the_first_rule_changes_it(mapping, age, second):
    """Whatever is said before ``ages`` is what was said when it was asked."""
    password_state = judge_age(mapping, age, second=second)
    for days in (1, 30, 200):
        later = judge_age(mapping, age + days * DAY, second=second)
        if (
            password_state.ages is None
            or (THEN + age + days * DAY).timestamp() < password_state.ages
        ):
            assert later.held == password_state.held


def test_a_rule_that_warns_hides_none_that_holds():
    mapping = {
        "staff": Policy(max_age=30 * DAY, require="warn"),
        "group:a": Policy(max_age=60 * DAY),
    }
    early, late = judge_age(mapping, 40 * DAY), judge_age(mapping, 70 * DAY)
    assert not early.held and early.warn and early.ages == (THEN + 60 * DAY).timestamp()
    assert late.held and late.require == "change" and late.chosen.rule == "group:a"
    warnings = {"staff": mapping["staff"], "group:a": Policy(max_age=60 * DAY, require="warn")}
    only = judge_age(warnings, 40 * DAY)
    assert not only.held and only.require == "warn" and only.chosen.rule == "staff"


def test_a_rule_with_grace_logins_gives_none_for_another():
    mapping = {
        "staff": Policy(max_age=30 * DAY, grace_logins=3),
        "group:a": Policy(max_age=60 * DAY),
    }
    assert not is_kept_out(judge_age(mapping, 40 * DAY))
    assert is_kept_out(judge_age(mapping, 70 * DAY))


def test_a_second_factor_excuses_from_its_own_rule_only():
    mapping = {"group:a": PRESETS["pci-dss"].policy, "staff": PRESETS["cis"].policy}
    password_state = judge_age(mapping, 400 * DAY, second=True)
    assert password_state.held and password_state.chosen.rule == "staff"
    assert not judge_age({"group:a": mapping["group:a"]}, 400 * DAY, second=True).held


def test_the_strictest_way_of_all_that_aged_out_counts():
    mapping = {
        "staff": Policy(max_age=30 * DAY),
        "group:a": Policy(max_age=60 * DAY, require="reset"),
    }
    assert judge_age(mapping, 40 * DAY).require == "change"
    password_state = judge_age(mapping, 70 * DAY)
    assert password_state.require == "reset" and password_state.expires_at == THEN + 30 * DAY


def test_two_rules_may_want_what_one_policy_could_not():
    mapping = {"staff": Policy(max_age=30 * DAY), "group:a": Policy(min_age=40 * DAY)}
    assert judge_age(mapping, DAY).chosen.policy.min_age == 40 * DAY


@pytest.fixture
def finance(alice):
    alice.is_staff = True
    alice.save()
    alice.groups.add(Group.objects.create(name="Finance"))
    return alice


def make_old(user, days):
    PasswordRecord.objects.update_or_create(
        user=user, defaults={"changed_at": timezone.now() - days * DAY}
    )


@pytest.mark.django_db
def test_a_member_of_both_is_held_like_a_member_of_one(client, settings, finance):
    settings.PWEXPIRE_POLICY = {
        "staff": Policy(max_age=30 * DAY, require="warn"),
        "group:Finance": Policy(max_age=60 * DAY),
    }
    client.force_login(finance)
    assert not is_held(client)
    make_old(finance, 70)
    settings.PWEXPIRE_POLICY |= {"superuser": "cis"}  # which makes each session ask again
    assert is_held(client)
    assert password_status(finance).rule == "group:Finance"


@pytest.mark.django_db
def test_history_of_any_rule_is_kept(settings, finance):
    settings.PWEXPIRE_POLICY = {
        "staff": Policy(max_age=30 * DAY),
        "group:Finance": Policy(history=7, min_age=DAY),
    }
    assert policy_of(finance).history == 7 and policy_of(finance).min_age == DAY
    assert length_kept(finance) == 7


@pytest.mark.django_db(transaction=True)
def test_a_grace_login_of_one_rule_ends_when_another_holds(settings, finance, server):
    settings.PWEXPIRE_POLICY = {
        "staff": Policy(max_age=30 * DAY, grace_logins=3),
        "group:Finance": Policy(max_age=60 * DAY, grace_logins=3),
    }
    make_old(finance, 55)
    browser = login(server, finance)
    assert not is_held(browser)
    with in_days(4):
        assert not is_held(browser)
    with in_days(6):
        assert is_held(browser)


@pytest.mark.django_db(transaction=True)
def test_a_grace_login_ends_when_a_rule_without_any_is_added(settings, finance, server):
    settings.PWEXPIRE_POLICY = {"staff": Policy(max_age=30 * DAY, grace_logins=3)}
    make_old(finance, 70)
    browser = login(server, finance)
    assert not is_held(browser)
    settings.PWEXPIRE_POLICY |= {"group:Finance": Policy(max_age=60 * DAY)}
    assert is_held(browser)


@pytest.mark.django_db
def test_the_command_shows_which_rule_each_demand_is_from(settings, finance):
    settings.PWEXPIRE_POLICY = {
        "staff": Policy(max_age=30 * DAY, grace_logins=2, history=2),
        "group:Finance": Policy(max_age=60 * DAY, require="reset", history=7),
        "superuser": "cis",
    }
    out = StringIO()
    call_command("pwexpire", "policy", "--user", "alice", stdout=out)
    said = out.getvalue()
    assert "group:Finance, staff" in said and "cis" not in said
    assert "history: 7 (group:Finance)" in said and "history: 2" not in said
    assert "max_age: 30 days (staff)" in said
    assert "max_age: 60 days (group:Finance)" in said
    out = StringIO()
    call_command("pwexpire", "policy", "--user", "alice", "--format", "json", stdout=out)
    told = json.loads(out.getvalue())
    assert told["from"]["grace_logins"] == {"staff": 2}
    assert told["from"]["history"] == {"group:Finance": 7}

"""A max_age in an old site: nobody is locked out on one morning, and no real change is forged."""

from __future__ import annotations

import io
import json
import random
from collections import Counter
from datetime import timedelta

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.hashers import make_password
from django.core.management import CommandError, call_command
from django.db import OperationalError
from django.utils import timezone

from pwexpire import services
from pwexpire.conf import conf
from pwexpire.models import EnforcementState, PasswordRecord
from pwexpire.policy import Policy
from pwexpire.services import backfill, report
from pwexpire.services.backfill import Terms, slot
from pwexpire.services.selection import Selection
from pwexpire.services.status import password_status
from tests.support import is_held, store_session

pytestmark = pytest.mark.django_db(transaction=True)
User = get_user_model()
DAY = timedelta(days=1)
MAX_AGE, SPREAD = 90 * DAY, 30 * DAY
QUARTERLY = Policy(max_age=MAX_AGE)


def run(*args):
    out = io.StringIO()
    call_command("pwexpire", "backfill", *args, stdout=out)
    return out.getvalue()


def ask(*args):
    return json.loads(run(*args, "--format", "json"))


@pytest.fixture
def clock(monkeypatch):
    """Stands still, until it is moved."""

    class Clock:
        now = timezone.now()

        def move(self, by):
            self.now += by

    one = Clock()
    monkeypatch.setattr(timezone, "now", lambda: one.now)
    monkeypatch.setattr("time.time", lambda: one.now.timestamp())
    return one


def came(at):
    EnforcementState.objects.update_or_create(pk=1, defaults={"created_at": at})


@pytest.fixture
def old_site(clock, settings):
    """Users without a record, who joined at any time; pwexpire came long ago."""

    def make(count, years=5):
        came(clock.now - 400 * DAY)
        dice, usable = random.Random(count), make_password("old-Password-1")
        return User.objects.bulk_create(
            User(
                username=f"old{n}",
                password=usable,
                date_joined=clock.now - dice.random() * years * 365 * DAY,
            )
            for n in range(count)
        )

    settings.PWEXPIRE_POLICY = QUARTERLY
    settings.SESSION_COOKIE_AGE = 400 * 24 * 3600
    return make


def expiries(users):
    """As the service tells them."""
    return {user.pk: password_status(user).expires_at for user in users}


def written():
    return dict(PasswordRecord.objects.values_list("pk", "changed_at"))


def test_who_would_age_out_is_spread_evenly(old_site, clock):
    users = old_site(3_000)
    answer = ask("--assume", "joined")
    assert answer == {
        "users": 3_000,
        "written": 3_000,
        "assumed_before": 0,
        "seen": 0,
        "without_age": 0,
    }
    assert set(PasswordRecord.objects.values_list("assumed", flat=True)) == {True}
    changed = written()
    days = Counter()
    for user in users:
        due, until = user.date_joined + MAX_AGE, changed[user.pk] + MAX_AGE
        if due >= clock.now + SPREAD:
            assert until == due
        else:
            assert max(clock.now, due) < until <= max(clock.now, due) + SPREAD
            days[(until - clock.now).days] += due <= clock.now
    assert sum(days.values()) > 2_800
    assert all(45 < days[day] < 150 for day in range(30))
    assert not any(password_status(user).must_change for user in users[:100])


def test_counted_from_now_they_do_not_all_age_out_together_later(old_site, clock):
    users = old_site(600)
    ask("--assume", "now")
    found = expiries(users[:50])
    assert all(clock.now + MAX_AGE <= at < clock.now + MAX_AGE + SPREAD for at in found.values())
    weeks = Counter((at + MAX_AGE - clock.now).days // 6 for at in written().values())
    assert all(weeks[15 + week] > 60 for week in range(5))


@pytest.mark.parametrize("assume", ["now", "joined"])
def test_the_setting_says_what_is_assumed(old_site, clock, settings, assume):
    settings.PWEXPIRE_ASSUME_CHANGED = assume
    (user,) = old_site(1, years=0)
    user.date_joined = clock.now - 10 * DAY
    user.save()
    ask()
    at = password_status(user).expires_at
    assert (at == user.date_joined + MAX_AGE) == (assume == "joined")


def test_a_second_run_changes_nothing_whenever_it_is(old_site, clock):
    old_site(400)
    ask("--assume", "joined")
    first = written()
    answer = ask("--assume", "joined")
    assert answer["written"] == 0 and answer["assumed_before"] == 400 and written() == first
    ask("--assume", "now")
    assert written() == first
    spread = {pk for pk, at in first.items() if at + MAX_AGE < clock.now + SPREAD}
    clock.move(29 * DAY)  # most of them have aged out, at their own time
    ask("--assume", "joined")
    second = written()
    assert {pk for pk in first if second[pk] != first[pk]}.isdisjoint(spread)


def test_two_machines_agree(old_site, clock):
    old_site(300)
    ask("--assume", "joined")
    first = written()
    PasswordRecord.objects.all().delete()
    clock.move(timedelta(seconds=20))
    ask("--assume", "joined")
    assert sum(written()[pk] != at for pk, at in first.items()) <= 1


def test_another_max_age_spreads_them_anew(old_site, clock, settings):
    users = old_site(200)
    ask("--assume", "now")
    clock.move(80 * DAY)
    settings.PWEXPIRE_POLICY = Policy(max_age=60 * DAY)
    assert sum(password_status(user).must_change for user in users) > 100
    ask()
    assert not any(password_status(user).must_change for user in users)
    first = written()
    ask()
    assert written() == first


def test_an_interrupted_run_is_finished_by_the_next(old_site, monkeypatch):
    monkeypatch.setattr(backfill, "PAGE", 100)
    old_site(300)
    real, pages = backfill._write_page, []

    def fail(users, terms):
        pages.append(users)
        if len(pages) == 2:
            raise KeyboardInterrupt
        return real(users, terms)

    monkeypatch.setattr(backfill, "_write_page", fail)
    with pytest.raises(CommandError, match="Interrupted"):
        run()
    first = written()
    assert len(first) == 100
    monkeypatch.setattr(backfill, "_write_page", real)
    assert ask()["written"] == 200
    assert {pk: at for pk, at in written().items() if pk in first} == first


def test_a_page_that_gives_way_is_counted_once(old_site, monkeypatch):
    old_site(5)
    real, tries = backfill._update_records, []

    def conflict(known):
        tries.append(known)
        if len(tries) == 1:
            raise OperationalError("database is locked")
        return real(known)

    monkeypatch.setattr(backfill, "_update_records", conflict)
    assert ask()["written"] == 5 and len(tries) == 2


def test_a_change_that_was_seen_is_not_touched(old_site, alice, clock):
    for days in (5, 85, 500):
        PasswordRecord.objects.filter(pk=alice.pk).update(changed_at=clock.now - days * DAY)
        before = PasswordRecord.objects.values().get(pk=alice.pk)
        assert ask()["seen"] == 1
        assert PasswordRecord.objects.values().get(pk=alice.pk) == before
    assert password_status(alice).must_change
    with pytest.raises(CommandError, match=r"^A change that was seen is evidence.*max_age\.$"):
        run("--seen")


def test_a_record_without_a_change_is_filled_in(old_site, alice, clock):
    PasswordRecord.objects.update(changed_at=None, failed_changes=3)
    assert ask()["written"] == 1
    record = PasswordRecord.objects.get()
    assert record.assumed and record.changed_at and record.failed_changes == 3


@pytest.mark.parametrize("known", [True, False])
def test_a_change_meanwhile_wins(old_site, clock, monkeypatch, known):
    (user,) = old_site(1)
    if known:
        PasswordRecord.objects.create(user=user)
    real = backfill.age_out

    def change_first(*args):
        aging = real(*args)
        values = {"changed_at": clock.now, "assumed": False}
        PasswordRecord.objects.update_or_create(pk=user.pk, defaults=values)
        return aging

    monkeypatch.setattr(backfill, "age_out", change_first)
    ask("--assume", "joined")
    record = PasswordRecord.objects.get()
    assert record.changed_at == clock.now and not record.assumed


def test_a_demand_stays(old_site):
    users = old_site(3)
    services.expire_passwords(users[0])
    ask()
    assert [password_status(user).must_change for user in users] == [True, False, False]


def test_users_whose_password_does_not_age(old_site, settings, alice, bob, eve):
    old_site(1)
    PasswordRecord.objects.all().delete()
    alice.set_unusable_password()
    alice.save()
    settings.PWEXPIRE_APPLIES_TO = lambda user: user.username != "bob"
    settings.PWEXPIRE_SECOND_FACTOR = lambda user: user.username == "eve"
    settings.PWEXPIRE_POLICY = Policy(max_age=MAX_AGE, single_factor_only=True)
    assert ask()["without_age"] == 3
    assert User.objects.get(username="old0").pwexpire_record.assumed


def test_rules_are_asked_user_by_user(old_site, settings, root, alice, count_queries):
    PasswordRecord.objects.all().delete()
    settings.PWEXPIRE_POLICY = {"group:x": Policy(), "staff": QUARTERLY, "default": Policy()}
    assert ask() | {"users": 0} == {
        "users": 0,
        "written": 1,
        "assumed_before": 0,
        "seen": 0,
        "without_age": 1,
    }
    settings.PWEXPIRE_POLICY = lambda user: Policy()
    assert ask()["without_age"] == 2


def test_the_statements_of_a_page_do_not_grow(old_site, count_queries, settings):
    settings.PWEXPIRE_POLICY = {"group:x": Policy(), "default": QUARTERLY}
    users = old_site(3_200)
    PasswordRecord.objects.bulk_create(PasswordRecord(user=user) for user in users[:1_600])
    with count_queries() as captured:
        assert ask()["written"] == 3_200
    pages = -(-3_200 // backfill.PAGE)
    assert len(captured) <= (pages + 1) * 11
    with count_queries() as captured:
        ask("--dry-run")
    assert len(captured) <= 5 * 8


def test_selectors(old_site, alice):
    users = old_site(4)
    PasswordRecord.objects.all().delete()
    ask("--user", "old1", "--user", "old2", "--exclude", "old2")
    assert set(written()) == {users[1].pk}
    assert ask("--exclude", "alice")["written"] == 3


def test_a_dry_run_writes_nothing(old_site, clock, count_queries):
    old_site(200)
    with count_queries() as captured:
        answer = ask("--dry-run", "--assume", "joined", "--spread", "2w")
    assert not [query for query in captured if not query["sql"].startswith("SELECT")]
    assert not PasswordRecord.objects.exists()
    assert answer["unit"] == "week"
    first, *rest = answer["forecast"]
    # Without: 400 days after pwexpire came, everybody.
    assert (first["from"], first["without"], first["with"]) == ("at once", 200, 0)
    assert sum(row["with"] for row in rest) == 200 and not any(row["without"] for row in rest)
    text = run("--dry-run", "--assume", "joined")
    assert "without the backfill, by the week" in text and f"  200  {'#' * 40}\n" in text


def test_a_dry_run_tells_what_a_run_does(old_site, clock):
    users = old_site(300, years=1)
    answer = ask("--dry-run", "--assume", "joined", "--spread", "50d", "--max-age", "10d")
    assert answer["unit"] == "day"
    terms = Terms(spread=50 * DAY, joined=True, max_age=10 * DAY)
    backfill.backfill(Selection(User.objects.all()), terms)
    days = Counter(
        timezone.localtime(at + 10 * DAY).date().isoformat() for at in written().values()
    )
    told = {row["from"]: row["with"] for row in answer["forecast"] if row["with"]}
    assert told == dict(days) and sum(days.values()) == len(users)


def test_a_dry_run_of_nobody(old_site):
    assert ask("--dry-run") == {"unit": "day", "forecast": []}
    assert "without the backfill" in run("--dry-run")


def test_no_policy_ages(old_site, settings, alice):
    for policy in (None, Policy(), {"default": Policy(history=3)}, "nist"):
        settings.PWEXPIRE_POLICY = policy
        assert run() == "No policy has a max_age, so no password ages out: nothing was done.\n"
        assert ask()["written"] == 0
    settings.PWEXPIRE_POLICY = None
    assert sum(row["with"] for row in ask("--dry-run", "--max-age", "90d")["forecast"]) == 1


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--spread", "soon"], "--spread soon is no duration: write 12h, 30d or 2w"),
        (["--spread", "0d"], "no duration"),
        (["--spread", "-3d"], "no duration"),
        (["--spread", "999999d"], "no duration"),
        (["--spread", "30m"], "no duration"),
        (["--max-age", "90d"], "goes with --dry-run only"),
        (["--max-age", "x", "--dry-run"], "--max-age x is no duration"),
        (["--user", "nobody"], "Unknown users"),
        (["--everyone", "--staff"], "goes with no other selector"),
    ],
)
def test_refusals_are_one_sentence(old_site, args, words):
    args = [f"{args[0]}={args[1]}", *args[2:]] if args[1].startswith("-3") else args
    with pytest.raises(CommandError, match=words):
        run(*args)


@pytest.mark.parametrize("text", ["12h", "2w", "30d"])
def test_durations(old_site, clock, text):
    old_site(50)
    length = {"12h": DAY / 2, "2w": 14 * DAY, "30d": 30 * DAY}[text]
    ask("--assume", "joined", "--spread", text)
    near = [at + MAX_AGE for at in written().values() if at + MAX_AGE < clock.now + length]
    assert near and all(clock.now < at for at in near)


def test_a_user_model_without_a_day_of_joining(old_site, clock, alice, monkeypatch):
    rules = report.read_rules()
    alice.date_joined = None
    terms = Terms(spread=SPREAD, joined=True)
    aging = backfill.age_out(rules, alice, None, terms)
    assert clock.now + MAX_AGE <= aging.after < clock.now + MAX_AGE + SPREAD


def test_slots(settings):
    now = timezone.now()
    at = slot(7, now, max_age=MAX_AGE, spread=SPREAD)
    assert now <= at < now + SPREAD
    assert slot(7, at, max_age=MAX_AGE, spread=SPREAD) == at
    later = slot(7, at + backfill.MICROSECOND, max_age=MAX_AGE, spread=SPREAD)
    assert later == at + SPREAD
    assert slot(7, now, max_age=DAY, spread=SPREAD) != at
    assert slot(8, now, max_age=MAX_AGE, spread=SPREAD) != at
    settings.USE_TZ = False
    naive = slot(7, timezone.make_naive(now), max_age=MAX_AGE, spread=SPREAD)
    assert timezone.is_naive(naive)
    assert backfill._find_day(naive, timezone.make_naive(now)) == naive.date()


def test_an_open_session_that_carries_the_earlier_age(old_site, alice, clock, client):
    """Stamped with a day that the backfill has put off, it is asked again, and let through."""
    PasswordRecord.objects.all().delete()
    came(clock.now - 85 * DAY)
    client.force_login(alice)
    ages = (clock.now + 5 * DAY).timestamp()
    stamped = client.session["_pwexpire"]
    assert stamped["a"] == ages
    ask("--assume", "now")
    until = password_status(alice).expires_at
    clock.move(6 * DAY)
    assert clock.now.timestamp() > ages and not is_held(client)
    clock.now = until - timedelta(seconds=1)
    assert not is_held(client)
    clock.now = until
    assert is_held(client)


def test_without_the_backfill_that_session_is_held(old_site, alice, clock, client):
    PasswordRecord.objects.all().delete()
    came(clock.now - 85 * DAY)
    client.force_login(alice)
    clock.move(6 * DAY)
    assert is_held(client)


def test_a_session_with_an_older_stamp_yet(old_site, alice, clock, client):
    client.force_login(alice)
    PasswordRecord.objects.update(assumed=True, changed_at=clock.now - 100 * DAY)
    store_session(
        client,
        _pwexpire={**client.session["_pwexpire"], "a": (clock.now - 10 * DAY).timestamp()},
    )
    ask()
    assert conf.policy_key == client.session["_pwexpire"]["p"]
    assert not is_held(client)

"""A year of a site, day by day, against a model that knows what each user has to meet with."""

from __future__ import annotations

import pytest

from pwexpire.models import PasswordRecord
from pwexpire.services.backfill import Terms, backfill
from pwexpire.services.demands import all_users
from pwexpire.services.selection import Selection
from tests.year.site import AFTER, DAY, FIRST, Site

pytestmark = pytest.mark.django_db(transaction=True)


def night(site, events):
    """What happens to many, at the end of the day."""
    for event in events.get(site.day, ()):
        event(site)


def live(site, days, events):
    with site.clock.everywhere():
        for site.day in range(days):
            site.clock.now = FIRST + site.day * DAY
            site.clock.passes(hours=6)
            if site.day % 20 == 0 or site.policies_age():
                site.notify()
            site.clock.passes(hours=2)
            for _ in range(site.acting):
                site.acts(site.someone())
            chance = site.random.random()
            if chance < 0.15:
                site.lock_out(site.someone(), site.random.randint(1, 4))
            elif chance < 0.25:
                site.hire()
            elif chance < 0.3:
                site.ends_sessions(site.someone())
            site.clock.now = FIRST + site.day * DAY
            site.clock.passes(hours=22)
            night(site, events)
            if site.day % 30 == 29:
                site.check_all()
        site.check_all()


# What may happen in a night.


def import_some(site):
    site.admit(50, joined=site.clock.now)


def switch_ages_on(site):
    site.settings.PWEXPIRE_POLICY = AFTER
    backfill(Selection(all_users()), Terms(spread=30 * DAY, joined=False))
    days = dict(PasswordRecord.objects.filter(assumed=True).values_list("pk", "changed_at"))
    for pk, life in site.lives.items():
        if life.renewed is None and pk in days:
            left = days[pk] + AFTER.max_age - site.clock.now
            assert 0 * DAY < left <= 120 * DAY, (site.seed, pk, left)
            life.facts.changed = days[pk]


def by_group(site):
    site.settings.PWEXPIRE_POLICY = {"group:Cards": "pci-dss", "default": AFTER}
    site.by_rules = True
    change_group(site)


def change_group(site):
    for life in site.some(100):
        if life.user.pk in site.cards:
            site.cards.discard(life.user.pk)
            life.user.groups.remove(site.group)
        else:
            site.cards.add(life.user.pk)
            life.user.groups.add(site.group)
        site.note(life, "changes the group")


def breach_of_some(site):
    site.expire(unique([*site.some(150), *some_regulars(site, 20)]), "reset")


def some_regulars(site, count):
    return [site.lives[pk] for pk in site.random.sample(site.regulars, count)]


def breach_of_all(site):
    site.expire_everyone("change", spared=site.some(20))


def deny_some(site):
    site.expire(unique([*site.some(20), *some_regulars(site, 6)]), "deny")


def warn_some(site):
    site.expire(unique([*site.some(40), *some_regulars(site, 10)]), "warn")


def expire_some(site):
    site.expire(unique([*site.some(40), *some_regulars(site, 15)]), "change")


def free_some(site):
    site.cancel(unique([*site.some(100), *some_regulars(site, 15)]))


def lockouts_wait(site):
    site.settings.PWEXPIRE_EXPIRE_ON_LOCKOUT = "success"


def unique(lives):
    return list({life.user.pk: life for life in lives}.values())


YEAR = {
    20: [warn_some],
    40: [expire_some],
    50: [free_some],
    60: [import_some],
    75: [deny_some],
    100: [switch_ages_on],
    130: [expire_some],
    150: [breach_of_some],
    170: [lockouts_wait],
    185: [free_some],
    200: [breach_of_all],
    230: [deny_some],
    250: [by_group],
    270: [change_group],
    300: [import_some, warn_some],
    320: [change_group, expire_some],
    340: [free_some],
}


def test_a_year(settings):
    site = Site(settings, seed=1, users=1_000, acting=3)
    live(site, 365, YEAR)
    for what in ("login", "visit", "status", "mails", "announced", "lockout from 192.0.2.7"):
        assert site.counts[what] > 20, (what, site.counts)


@pytest.mark.parametrize("seed", [2, 3, 4])
def test_a_season_in_any_order(settings, seed):
    """The same events, each on a day that the dice choose; ages from the beginning."""
    site = Site(settings, seed=seed, users=120, acting=4)
    events = {0: [switch_ages_on]}
    rest = [event for some in YEAR.values() for event in some if event is not switch_ages_on]
    for event in rest:
        events.setdefault(site.random.randrange(1, 55), []).append(event)
    live(site, 60, events)

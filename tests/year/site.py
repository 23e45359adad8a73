"""A site and its year: what happens on which day, done to the package and told to the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from io import StringIO
from random import Random
from typing import Any
from unittest import mock

from django.contrib.auth import get_user_model
from django.contrib.auth.hashers import make_password
from django.contrib.auth.models import Group
from django.core import mail
from django.core.management import call_command
from django.test import Client

from pwexpire import services
from pwexpire.models import Demand, EnforcementState
from pwexpire.policy import PRESETS, Policy
from pwexpire.services import Require
from pwexpire.services.demands import all_users
from pwexpire.services.lockouts import expire_after_lockout
from pwexpire.services.notices import announce_expiry, notify_users
from pwexpire.services.report import rows
from pwexpire.services.selection import Selection
from pwexpire.services.status import read_state
from tests.factories import AdminFactory
from tests.support import change_password, store_session
from tests.truth.oracle import Facts, Rules, Wanted, has_aged
from tests.truth.people import follow_link, look
from tests.year.life import APART, Life, Seat

DAY = timedelta(days=1)
FIRST = datetime(2031, 1, 1, tzinfo=UTC)
START = "start-Password-0"
ADDRESSES = ["192.0.2.7", "198.51.100.9", "203.0.113.4", "2001:db8::1"]

BEFORE = Policy(
    change_on_first_use=True, change_after_admin_reset=True, temporary_for=timedelta(days=7)
)
AFTER = Policy(
    max_age=timedelta(days=90),
    warn_before=(timedelta(days=14), timedelta(days=7), timedelta(days=1)),
    grace_logins=2,
    change_on_first_use=True,
    change_after_admin_reset=True,
    temporary_for=timedelta(days=7),
)
CARDS = PRESETS["pci-dss"].policy


def has_second_factor(user: Any) -> bool:
    return bool(user.pk % 5 == 0)


def is_person(user: Any) -> bool:
    return bool(user.get_username() != "root")


SETTINGS = {
    "AUTHENTICATION_BACKENDS": ["pwexpire.backends.PasswordExpiryBackend"],
    "AUTH_PASSWORD_VALIDATORS": [
        {"NAME": "pwexpire.validators.PasswordHistoryValidator", "OPTIONS": {"length": 2}}
    ],
    "PWEXPIRE_POLICY": BEFORE,
    "PWEXPIRE_APPLIES_TO": is_person,
    "PWEXPIRE_SECOND_FACTOR": has_second_factor,
    "PWEXPIRE_EXPIRE_ON_LOCKOUT": True,
    "PWEXPIRE_LOCKOUT_THRESHOLD": 3,
    "PWEXPIRE_SITE_URL": "https://shop.example",
    "SESSION_COOKIE_AGE": 400 * 86_400,
    "AXES_ENABLED": False,
}


class Differs(AssertionError):
    """The package and the model disagree about a user."""


@dataclass
class Clock:
    now: datetime = FIRST

    def passes(self, **interval: int) -> None:
        self.now += timedelta(**interval)

    @contextmanager
    def everywhere(self) -> Iterator[None]:
        with ExitStack() as patches:
            patches.enter_context(mock.patch("django.utils.timezone.now", lambda: self.now))
            patches.enter_context(mock.patch("time.time", lambda: self.now.timestamp()))
            yield


@dataclass(repr=False)
class Site:
    """``acting``: users a day. ``settings``: of the test, given back at its end."""

    settings: Any
    seed: int
    users: int
    acting: int
    clock: Clock = field(default_factory=Clock)
    lives: dict[Any, Life] = field(default_factory=dict)
    cards: set[Any] = field(default_factory=set)
    counts: dict[str, int] = field(default_factory=dict)
    of_all: list[Wanted] = field(default_factory=list)
    day: int = 0
    by_rules: bool = False

    def __post_init__(self) -> None:
        self.random = Random(self.seed)
        for name, value in SETTINGS.items():
            setattr(self.settings, name, value)
        with self.clock.everywhere():
            self._opens()

    def _opens(self) -> None:
        EnforcementState.objects.all().delete()
        read_state()
        self.root = AdminFactory(username="root")
        self.admit(self.users, joined=self.clock.now - 100 * DAY, before=True)
        self.regulars = list(self.lives)[:60]
        self.group = Group.objects.create(name="Cards")

    # The rules of the day.

    def policy_of(self, user: Any) -> Policy:
        if self.by_rules and user.pk in self.cards:
            return CARDS
        policy: Policy = self.settings.PWEXPIRE_POLICY if not self.by_rules else AFTER
        return policy

    def rules_of(self, user: Any) -> Callable[[], Rules]:
        return lambda: Rules(self.policy_of(user), has_second_factor(user))

    @property
    def on_success(self) -> bool:
        return bool(self.settings.PWEXPIRE_EXPIRE_ON_LOCKOUT == "success")

    def policies_age(self) -> bool:
        return self.settings.PWEXPIRE_POLICY is not BEFORE

    # People come.

    def admit(self, count: int, *, joined: datetime, before: bool = False) -> list[Life]:
        """An import behind Django's back; ``before`` pwexpire came, or after."""
        model, encoded = get_user_model(), make_password(START)
        first = len(self.lives)
        model.objects.bulk_create(
            model(
                username=f"user{number}",
                email=f"user{number}@example.com" if number % 11 else "",
                password=encoded,
                date_joined=joined,
            )
            for number in range(first, first + count)
        )
        names = [f"user{number}" for number in range(first, first + count)]
        came = EnforcementState.objects.get().created_at
        new = []
        for user in model.objects.filter(username__in=names):
            facts = Facts(changed=came) if before else Facts(came, joined, given_new=True)
            facts.demands += self.of_all  # as the README says of those who are imported
            new.append(self._lives(user, facts, START))
        return new

    def _lives(self, user: Any, facts: Facts, password: str) -> Life:
        life = self.lives[user.pk] = Life(user, facts, password, self.rules_of(user))
        return life

    def hire(self) -> Life:
        """Created by a script; the password comes from somebody else."""
        number = len(self.lives)
        name, now = f"user{number}", self.clock.now
        user = get_user_model().objects.create_user(
            name, f"{name}@example.com", START, date_joined=now
        )
        return self._lives(user, Facts(now, now, given_new=True), START)

    # Seeing.

    def note(self, life: Life, what: str) -> None:
        life.story.append(f"day {self.day}, {self.clock.now:%H:%M}: {what}")
        self.counts[what.partition(":")[0]] = self.counts.get(what.partition(":")[0], 0) + 1

    def compare(self, life: Life, what: str, promised: object, met: object) -> None:
        self.note(life, f"{what}: {met}")
        if promised != met:
            story = "\n  ".join(life.story)
            raise Differs(
                f"seed {self.seed}, day {self.day}: {life.user.username}: {what}: {met}, "
                f"promised {promised}\n  {life.facts}\n  {story}"
            )

    def check_all(self) -> None:
        """The report says of everybody what the model does."""
        met = {row.user_id: row for row in rows(Selection(all_users()))}
        for pk, life in self.lives.items():
            row, now = met[pk], self.clock.now
            must = row.state in ("expired", "locked", "grace")
            self.compare(life, "report", bool(life.asked(now)), must)
            told = has_aged(life.facts, self.rules_of(life.user)(), now)
            self.compare(life, "report of reset", bool(life.is_given()), row.pwdReset)
            if life.asked(now):
                self.compare(life, "report of require", life.asked(now), row.require)
            elif not told:
                self.compare(life, "report of nothing", True, row.state in ("ok", "warned"))

    # One user at a time.

    def acts(self, life: Life) -> None:
        seat = self.random.choice(life.seats) if life.seats else None
        if seat is None or self.random.random() < 0.5:
            seat = self.logs_in(life)
        else:
            self.visits(life, seat)
        self.clock.passes(minutes=1)
        if self.random.random() < 0.5:
            self.compare_status(life)
        if self.random.random() < 0.55 or (seat is None and self.random.random() < 0.5):
            self.goes_a_way(life, seat if seat in life.seats else None)
        self.clock.passes(minutes=1)

    def compare_status(self, life: Life) -> None:
        status = services.password_status(life.user)
        promised = life.asked(self.clock.now)
        self.compare(life, "status", bool(promised), status.must_change)
        if promised:
            self.compare(life, "require", promised, status.require)

    def logs_in(self, life: Life) -> Seat | None:
        browser, address = Client(), self.random.choice(ADDRESSES)
        data = {"username": life.user.username, "password": life.password}
        promised, grace = life.enters(self.clock.now, address, on_success=self.on_success)
        answer = browser.post("/accounts/login/", data, REMOTE_ADDR=address)
        if answer.status_code == 200:
            self.compare(life, "login", promised, "refused")
            return None
        seat = Seat(browser, grace=grace)
        life.seats.append(seat)
        self.compare(life, "login", promised, look(browser))
        life.meets(seat, self.clock.now)
        return seat

    def visits(self, life: Life, seat: Seat) -> None:
        promised = life.meets(seat, self.clock.now)
        self.compare(life, "visit", promised, look(seat.browser))

    def goes_a_way(self, life: Life, seat: Seat | None) -> None:
        ways: list[Callable[[Life, Seat | None], None]] = [self.by_link, self.by_admin]
        ways += [self.by_script, self.by_command, self.by_record, self.by_old_password]
        if seat is not None:
            ways += [self.by_page, self.by_page, self.by_djangos_page, self.by_djangos_page]
            ways += [self.by_same_again, self.logs_out, self.flags_by_hand]
        before = list(life.seats)
        self.random.choice(ways)(life, seat)
        self.clock.passes(minutes=1)
        for one in self.random.sample(before, min(2, len(before))):
            self.visits(life, one)

    def by_page(
        self, life: Life, seat: Seat | None, url: str = "/account/password-change/"
    ) -> None:
        assert seat is not None
        self.note(life, f"changes: at {url}")
        new, promised = life.new_password(), life.meets(seat, self.clock.now)
        change_password(seat.browser, old=life.password, new=new, url=url)
        if promised != "out":
            life.has_changed(self.clock.now, new, by_other=False, seat=seat)

    def by_djangos_page(self, life: Life, seat: Seat | None) -> None:
        self.by_page(life, seat, "/accounts/password_change/")

    def by_same_again(self, life: Life, seat: Seat | None) -> None:
        """Or one of the last two: the validator refuses it."""
        assert seat is not None
        again = self.random.choice([life.password, *life.past])
        self.note(life, "tries an old one again")
        life.meets(seat, self.clock.now)
        change_password(
            seat.browser, old=life.password, new=again, url="/accounts/password_change/"
        )

    def by_link(self, life: Life, seat: Seat | None) -> None:
        self.note(life, "follows a link")
        new = life.new_password()
        user = get_user_model().objects.get(pk=life.user.pk)
        follow_link(Client(), user, new)
        life.has_changed(self.clock.now, new, by_other=False)

    def by_admin(self, life: Life, seat: Seat | None) -> None:
        self.note(life, "is given one by the administrator")
        office, new = Client(), life.new_password()
        office.force_login(self.root)
        data = {"password1": new, "password2": new, "usable_password": "true"}
        url = f"/admin/auth/user/{life.user.pk}/password/"
        assert office.post(url, data).status_code == 302
        life.has_changed(self.clock.now, new, by_other=True)

    def by_script(self, life: Life, seat: Seat | None) -> None:
        self.note(life, "is given one by a script")
        new, user = life.new_password(), get_user_model().objects.get(pk=life.user.pk)
        user.set_password(new)
        user.save()
        life.has_changed(self.clock.now, new, by_other=True)

    def by_command(self, life: Life, seat: Seat | None) -> None:
        self.note(life, "is given one by changepassword")
        new = life.new_password()
        asking = "django.contrib.auth.management.commands.changepassword.Command._get_pass"
        with mock.patch(asking, return_value=new):
            call_command("changepassword", life.user.username, stdout=StringIO())
        life.has_changed(self.clock.now, new, by_other=True)

    def by_record(self, life: Life, seat: Seat | None) -> None:
        self.note(life, "changes it elsewhere")
        new = life.new_password()
        users = get_user_model().objects.filter(pk=life.user.pk)
        users.update(password=make_password(new))
        services.record_password_change(users.get())
        life.has_changed(self.clock.now, new, by_other=False)

    def by_old_password(self, life: Life, seat: Seat | None) -> None:
        """A login with one that he had before."""
        if not life.past:
            return
        data = {"username": life.user.username, "password": life.past[0]}
        answer = Client().post("/accounts/login/", data)
        self.compare(life, "old password", 200, answer.status_code)

    def logs_out(self, life: Life, seat: Seat | None) -> None:
        assert seat is not None
        self.note(life, "logs out")
        life.meets(seat, self.clock.now)
        seat.browser.post("/accounts/logout/")
        if seat in life.seats:
            life.seats.remove(seat)

    def flags_by_hand(self, life: Life, seat: Seat | None) -> None:
        assert seat is not None
        if "password_expired" in seat.browser.session:
            return
        self.note(life, "is flagged by hand")
        store_session(seat.browser, password_expired=True)
        seat.by_hand = True

    # Many at a time.

    def some(self, count: int) -> list[Life]:
        return self.random.sample(list(self.lives.values()), min(count, len(self.lives)))

    def someone(self) -> Life:
        regular = self.random.random() < 0.75
        return self.lives[self.random.choice(self.regulars if regular else list(self.lives))]

    def expire(self, lives: list[Life], require: str) -> None:
        """By a queryset, and told by e-mail."""
        users = get_user_model().objects.filter(pk__in=[life.user.pk for life in lives])
        held = [life for life in lives if life.is_held_as_strictly(require, self.clock.now)]
        batch = services.expire_passwords(users, require=require)
        new = [life for life in lives if life.is_expired(require, self.clock.now, batch.pk)]
        met = set(Demand.objects.filter(batch=batch).values_list("user_id", flat=True))
        ends = require in (Require.RESET, Require.DENY)  # also what was opened since
        for life in lives:
            wanted = life in new or ends
            self.compare(life, f"is expired ({require})", wanted, life.user.pk in met)
        expired = [life for life in new if life not in held]  # nor by age alone
        assert batch.users_expired == len(expired), (self.seed, self.day, batch.users_expired)
        if ends:
            self.announce(batch, lives)

    def expire_everyone(self, require: str, *, spared: list[Life]) -> None:
        out = [self.root.pk, *(life.user.pk for life in spared)]
        batch = services.expire_everyone(
            require=require, exclude=get_user_model().objects.filter(pk__in=out)
        )
        self.of_all.append(Wanted(require, self.clock.now, batch=batch.pk))
        for pk, life in self.lives.items():
            if pk not in out:
                life.is_expired_with_all(require, self.clock.now, batch.pk)
                self.note(life, f"is expired with all: {require}")

    def announce(self, batch: Any, lives: list[Life]) -> None:
        mail.outbox.clear()
        announce_expiry(batch)
        announce_expiry(batch)
        wanted = sorted(life.user.email for life in lives if life.user.email)
        assert sorted(one.to[0] for one in mail.outbox) == wanted, (self.seed, self.day)
        self.counts["announced"] = self.counts.get("announced", 0) + len(wanted)

    def cancel(self, lives: list[Life]) -> None:
        services.cancel_expiry([life.user for life in lives])
        for life in lives:
            self.note(life, "is freed")
            life.is_freed()

    def lock_out(self, life: Life, times: int) -> None:
        """So many lockouts, some of them one and the same."""
        address = self.random.choice(ADDRESSES[:3])
        for _ in range(times):
            batch = expire_after_lockout(life.user, window=APART, address=address)
            expires = life.is_locked_out(self.clock.now, address, expires=not self.on_success)
            self.compare(life, f"lockout from {address}", expires, batch is not None)
            if expires:
                life.facts.demands.append(Wanted("change", self.clock.now))
            self.clock.passes(minutes=self.random.choice([3, 12, 15]))

    def ends_sessions(self, life: Life) -> None:
        self.note(life, "is logged out everywhere")
        services.end_sessions(life.user)
        life.seats.clear()

    def notify(self) -> None:
        """The mails of the day, and none when it is run once more.

        On four days of five it is asked for those who are due and some others, to save time.
        """
        now = self.clock.now
        due = {pk: told for pk, life in self.lives.items() if (told := life.due_warning(now))}
        asked = {*due, *(life.user.pk for life in self.some(150))}
        users = None if self.day % 5 == 0 else all_users().filter(pk__in=asked)
        mail.outbox.clear()
        notify_users(users)
        if self.day % 7 == 0:
            notify_users(users)
        met: dict[str, int] = {}
        for one in mail.outbox:
            met[one.to[0]] = met.get(one.to[0], 0) + 1
        for pk, life in self.lives.items():
            if life.user.email and (pk in due or life.user.email in met):
                self.compare(life, "mails", int(pk in due), met.pop(life.user.email, 0))
            if pk in due:
                life.told.add(due[pk])
        assert not met, (self.seed, self.day, met)

"""Ten thousand lockouts: what they cost, and whom."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from contextlib import contextmanager
from datetime import timedelta
from importlib.util import find_spec

import pytest
from django.core.cache import cache
from django.db import connection
from django.test import Client, RequestFactory
from django.utils import timezone

from pwexpire.models import Demand, ExpiryBatch, PasswordRecord
from tests.support import OLD, is_held

if find_spec("axes") is None:
    pytest.skip("django-axes is not installed", allow_module_level=True)
from axes.handlers.proxy import AxesProxyHandler
from axes.signals import user_locked_out

pytestmark = pytest.mark.django_db(transaction=True)

LOCKOUTS = 10_000
REAL, INVENTED, UNRELATED = 100, 900, 5
BETWEEN = 50
# Statements of one name, all of its lockouts together.
WRITES_PER_REAL_NAME = 20
READS_PER_EXPIRY = 40
# The name, the judgement, and what the threshold has to look at.
READS_PER_LOCKOUT = 3
# The counter is part of an idle request; where it moved, the new demands are read.
READS_OF_A_MOVED_COUNTER = 3
MODEL_BACKEND = "django.contrib.auth.backends.ModelBackend"
WRITES = ("INSERT", "UPDATE", "DELETE", "REPLACE")


class Ledger:
    """Statements, by who caused them."""

    def __init__(self):
        self.reads, self.writes = Counter(), defaultdict(list)
        self.lockouts = Counter()
        self.who = None

    def __call__(self, execute, sql, params, many, context):
        if sql.startswith(WRITES):
            self.writes[self.who].append(sql)
        elif sql.lstrip("(").startswith("SELECT"):
            self.reads[self.who] += 1
        return execute(sql, params, many, context)

    @contextmanager
    def of(self, who):
        self.who = who
        yield
        self.who = None


@pytest.fixture
def ledger():
    ledger = Ledger()
    with connection.execute_wrapper(ledger):
        yield ledger


@pytest.fixture
def hook(settings):
    settings.PWEXPIRE_EXPIRE_ON_LOCKOUT = True
    settings.PWEXPIRE_POLL_SECONDS = 0
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.db"
    return settings


@pytest.fixture
def people(users):
    real = users(REAL)
    names = [one.get_username() for one in real]
    return real, [*names, *(f"invented{number}" for number in range(INVENTED))]


def sit_down(users):
    browsers = []
    for user in users:
        browser = Client()
        browser.force_login(user, MODEL_BACKEND)
        assert not is_held(browser)
        browsers.append(browser)
    return browsers


def storm(ledger, names, count, others):
    """Lock names out in no order; let the others go on with their work; what that cost each."""
    lots = [names[number % len(names)] for number in range(count)]
    random.shuffle(lots)
    factory = RequestFactory()
    costs = []
    for number, name in enumerate(lots):
        request = factory.post("/accounts/login/", {"username": name, "password": "guess"})
        ledger.lockouts[name] += 1
        with ledger.of(name):
            user_locked_out.send("axes", request=request, username=name, ip_address="192.0.2.1")
        if number % BETWEEN == 0:
            moved = ExpiryBatch.objects.count()
            for browser in others:
                costs.append((moved, cost(ledger, browser)))
    return costs


def cost(ledger, browser):
    ledger.reads["other"] = 0
    with ledger.of("other"):
        assert not is_held(browser)
    return ledger.reads["other"]


def idle_cost(ledger, others):
    """Of a request that is not the first one; a Client looks its middleware up at that one."""
    costs = {cost(ledger, browser) for browser in others for _ in range(2)}
    assert len(costs) == 1
    return costs.pop()


def check_unrelated(costs, idle, ledger, expiries):
    assert len(costs) >= LOCKOUTS // BETWEEN
    assert max(reads for _, reads in costs) <= idle + READS_OF_A_MOVED_COUNTER
    dear = sum(reads > idle for _, reads in costs)
    assert dear <= expiries, "a burst of expiries is read once by each poll that finds it"
    assert {reads for made, reads in costs[-UNRELATED:]} == {idle}
    assert ledger.writes["other"] == []


def check_names(ledger, names):
    real, invented = names[:REAL], names[REAL:]
    for name in invented:
        assert ledger.writes[name] == []
        assert ledger.reads[name] <= ledger.lockouts[name], "more than one query for a name"
    for name in real:
        assert len(ledger.writes[name]) <= WRITES_PER_REAL_NAME, ledger.writes[name]
        most = READS_PER_LOCKOUT * ledger.lockouts[name] + READS_PER_EXPIRY
        assert ledger.reads[name] <= most, ledger.reads[name]


def test_ten_thousand_lockouts(hook, ledger, people, users):
    real, names = people
    others, victims = sit_down(users(UNRELATED)), sit_down(real)
    idle = idle_cost(ledger, others)
    costs = storm(ledger, names, LOCKOUTS, others)
    check_unrelated(costs, idle, ledger, REAL)
    check_names(ledger, names)
    assert ExpiryBatch.objects.count() == REAL
    assert set(Demand.objects.values_list("user", flat=True)) == {one.pk for one in real}
    assert all(map(is_held, victims)) and not any(map(is_held, others))


def test_the_same_with_a_threshold(hook, ledger, people, users):
    hook.PWEXPIRE_LOCKOUT_THRESHOLD = 3
    real, names = people
    others, victims = sit_down(users(UNRELATED)), sit_down(real)
    idle = idle_cost(ledger, others)
    costs = []
    for _wave in range(3):
        assert not ExpiryBatch.objects.exists()
        assert not any(map(is_held, victims))
        costs += storm(ledger, names, -(-LOCKOUTS // 3), others)
        PasswordRecord.objects.update(lockout_at=timezone.now() - timedelta(days=2))
    check_unrelated(costs, idle, ledger, REAL)
    check_names(ledger, names)
    assert ExpiryBatch.objects.count() == REAL
    assert all(map(is_held, victims)) and not any(map(is_held, others))


@pytest.mark.parametrize("handler", ["database.AxesDatabaseHandler", "cache.AxesCacheHandler"])
def test_real_failed_logins(hook, ledger, users, handler):
    hook.AXES_HANDLER = f"axes.handlers.{handler}"
    hook.AXES_LOCKOUT_PARAMETERS = ["username"]
    hook.AUTHENTICATION_BACKENDS = ["axes.backends.AxesStandaloneBackend", MODEL_BACKEND]
    hook.MIDDLEWARE = [*hook.MIDDLEWARE, "axes.middleware.AxesMiddleware"]
    real = users(5)
    names = [*(one.get_username() for one in real), *(f"invented{n}" for n in range(25))]
    others, victims = sit_down(users(1)), sit_down(real)
    AxesProxyHandler.get_implementation(force=True)
    attacker, answers = Client(), defaultdict(list)
    try:
        for _ in range(10):
            for name in names:
                data = {"username": name, "password": "guess"}
                with ledger.of(name):
                    answers[name].append(attacker.post("/accounts/login/", data).status_code)
            assert not is_held(others[0])
        locked = Client().post("/accounts/login/", {"username": names[0], "password": OLD})
    finally:
        cache.clear()
        AxesProxyHandler.implementation = None
    assert locked.status_code == 429
    assert len({tuple(codes) for codes in answers.values()}) == 1, "the answers tell names apart"
    for name in names:
        ours = [sql for sql in ledger.writes[name] if "pwexpire_" in sql]
        assert len(ours) <= (WRITES_PER_REAL_NAME if name in names[:5] else 0), ours
    assert ExpiryBatch.objects.count() == 5
    assert all(map(is_held, victims)) and not any(map(is_held, others))

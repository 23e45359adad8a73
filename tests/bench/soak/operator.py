"""What operators, deployments and breakdowns do to the site meanwhile."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable
from io import StringIO
from typing import Any

from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.db import DatabaseError, connection
from django.db.models import Max

from pwexpire import services
from pwexpire.models import Demand, ExpiryBatch
from tests.bench.measure import say
from tests.bench.soak.model import Model, Visitor
from tests.bench.soak.servers import Server
from tests.bench.soak.visitors import Load
from tests.clusters import PostgresCluster

REDEPLOY_SECONDS = 10
RECOVERY_SECONDS = 3
BULK_SHARE = 10
# When something happens, in parts of the run. What replaces workers comes first, so that the
# memory of the others can be watched for long; the last redeploy meets many open demands.
ONCE = {0.02: "fork", 0.04: "unfork", 0.06: "redeploy", 0.5: "everyone", 0.6: "unexpire everyone"}
ONCE |= {0.97: "redeploy"}
RESTARTS_SECONDS = 600
MEMORY_FROM, MEMORY_TO = 0.15, 0.95
# Seconds between two of them.
EVERY = {
    "expire": 0.8,
    "resume": 7.0,
    "cancel": 2.5,
    "bulk": 20.0,
    "cancel bulk": 45.0,
    "prune": 60.0,
}


class Sampler(threading.Thread):
    """Resident memory of the workers over time: (moment, process id, MiB)."""

    def __init__(self, servers: dict[str, Server]) -> None:
        super().__init__(daemon=True)
        self.servers = servers
        self.samples: dict[str, list[tuple[float, int, float]]] = {name: [] for name in servers}
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(1):
            for name, server in self.servers.items():
                now = time.monotonic()
                self.samples[name] += [(now, *one) for one in server.memory_mib().items()]


def users_of(chosen: list[Visitor]) -> Any:
    return get_user_model().objects.filter(pk__in=[one.pk for one in chosen])


class Operator:
    def __init__(
        self, model: Model, loads: list[Load], site: Server, cluster: PostgresCluster
    ) -> None:
        self.model, self.loads, self.site, self.cluster = model, loads, site, cluster
        self.owner = {one.pk: load for load in loads for one in load.visitors}
        self.visitors = [one for load in loads for one in load.visitors]
        self.batches: list[tuple[services.ExpiryBatch, list[Visitor]]] = []
        self.deferred: list[services.ExpiryBatch] = []
        self.everyone: services.ExpiryBatch | None = None
        self.cut = False
        # At most so many rows of cancellations may be there.
        self.cancellations = 0
        # Each expiry has a number before it has a batch.
        self.started = 0
        self.numbers: dict[int, int] = {}

    def play(self, seconds: float) -> None:
        began = time.monotonic()
        plan = [(began + part * seconds, what) for part, what in ONCE.items()]
        restarts = max(2, int(seconds // RESTARTS_SECONDS))
        for n in range(restarts):
            plan.append((began + seconds * (n + 1) / (restarts + 1), "restart"))
        plan.sort()
        due = {what: began + pause * random.random() for what, pause in EVERY.items()}
        while (now := time.monotonic()) < began + seconds:
            if plan and plan[0][0] <= now:
                self.do(plan.pop(0)[1])
            for what, moment in due.items():
                if moment <= now:
                    due[what] = now + EVERY[what]
                    self.do(what)
            for load in self.loads:
                if load.fault:
                    raise load.fault
            time.sleep(0.05)

    def do(self, what: str) -> None:
        doing: dict[str, Callable[[], Any]] = {
            "fork": lambda: self.site.send(signal.SIGTTIN),
            "unfork": lambda: self.site.send(signal.SIGTTOU),
            "redeploy": self.redeploy,
            "restart": self.restart,
            "everyone": self.expire_everyone,
            "unexpire everyone": self.cancel_everyone,
            "expire": self.expire_one,
            "resume": self.resume,
            "cancel": self.cancel,
            "bulk": self.expire_many,
            "cancel bulk": self.cancel_many,
            "prune": self.prune,
        }
        if what not in EVERY:
            say(what)
        self.model.count(f"did {what}")
        doing[what]()

    def redeploy(self) -> None:
        def over() -> None:
            self.model.redeploys.close(time.monotonic())

        self.model.redeploys.open(time.monotonic())
        self.site.send(signal.SIGHUP)
        timer = threading.Timer(REDEPLOY_SECONDS, over)
        timer.daemon = True
        timer.start()

    def restart(self) -> None:
        """As after a crash: every connection is cut, in the middle of an expiry."""
        self.model.outages.open(time.monotonic())
        last = ExpiryBatch.objects.aggregate(last=Max("pk", default=0))["last"]
        chosen = random.sample(self.visitors, max(2, len(self.visitors) // BULK_SHARE))
        interrupted = threading.Thread(target=self.expire_and_be_cut, args=(chosen,))
        interrupted.start()
        time.sleep(random.random() / 5)
        self.cluster.restart()
        connection.close()
        interrupted.join()
        if self.cut:
            self.finish(last, chosen)
        # Until each process had time to connect again and to ask.
        self.model.outages.close(time.monotonic() + self.model.poll + RECOVERY_SECONDS)

    def expire(self, chosen: list[Visitor], *, defer: bool = False) -> services.ExpiryBatch:
        self.started += 1
        self.model.begin(chosen, self.started, time.monotonic())
        batch = services.expire_passwords(users_of(chosen), note="soak", defer=defer)
        returned = time.monotonic()
        joined = set(Demand.objects.filter(batch=batch).values_list("user_id", flat=True))
        self.model.settle(chosen, self.started, joined, returned)
        self.numbers[batch.pk] = self.started
        return batch

    def expire_and_be_cut(self, chosen: list[Visitor]) -> None:
        self.cut = False
        try:
            self.expire(chosen)
        except DatabaseError:
            self.cut = True
            self.model.count("did interrupted bulk")
        finally:
            connection.close()

    def finish(self, last: int, chosen: list[Visitor]) -> None:
        """Go on with an expiry that was interrupted, if it had begun; ``last``: the one before."""
        joined: set[int] = set()
        batch = ExpiryBatch.objects.filter(pk__gt=last).first()
        if batch is not None:
            # The users again: it may have been cut off while they were being selected.
            services.resume_expiry(batch, users_of(chosen))
            joined = set(Demand.objects.filter(batch=batch).values_list("user_id", flat=True))
        self.model.settle(chosen, self.started, joined, time.monotonic())

    def expire_one(self) -> None:
        """Of every other one the sessions are not flagged at first: only the number holds them.

        They are asked for just before and just after the moment from which they must be held.
        """
        one, defer = random.choice(self.visitors), self.started % 2 == 0
        batch = self.expire([one], defer=defer)
        if defer:
            self.deferred.append(batch)
        now = time.monotonic()
        for delay in (0.5, 0.9, self.model.poll + 0.01, self.model.poll + 0.2):
            self.owner[one.pk].soon.append((now + delay, one))

    def resume(self) -> None:
        while self.deferred:
            services.resume_expiry(self.deferred.pop())

    def expire_many(self) -> None:
        chosen = random.sample(self.visitors, max(2, len(self.visitors) // BULK_SHARE))
        self.batches.append((self.expire(chosen), chosen))

    def expire_everyone(self) -> None:
        users = get_user_model().objects
        out = users.exclude(pk__in=[one.pk for one in self.visitors])
        self.started += 1
        self.model.begin(self.visitors, self.started, time.monotonic())
        self.everyone = services.expire_everyone(exclude=out, note="soak")
        self.numbers[self.everyone.pk] = self.started
        returned = time.monotonic()
        everybody = {one.pk for one in self.visitors}
        self.model.settle(self.visitors, self.started, everybody, returned)

    def cancel_everyone(self) -> None:
        if self.everyone is not None:
            self._cancel(self.everyone, self.visitors)

    def cancel(self) -> None:
        one = random.choice(self.visitors)
        begun = time.monotonic()
        services.cancel_expiry(get_user_model().objects.get(pk=one.pk), note="soak")
        self.model.cancel([one], None, begun, time.monotonic())
        self.cancellations += 2  # of a batch of its own, and of the one on everyone

    def cancel_many(self) -> None:
        if self.batches:
            self._cancel(*self.batches.pop(random.randrange(len(self.batches))))

    def _cancel(self, batch: services.ExpiryBatch, chosen: list[Visitor]) -> None:
        begun = time.monotonic()
        services.cancel_expiry(batch, note="soak")
        self.model.cancel(chosen, self.numbers[batch.pk], begun, time.monotonic())
        self.cancellations += 1

    def prune(self) -> None:
        call_command("pwexpire", "prune", stdout=StringIO())
        call_command("clearsessions", verbosity=0)

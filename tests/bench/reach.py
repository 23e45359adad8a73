"""How long it takes until everybody is held, in every server process."""

from __future__ import annotations

import http.client
import random
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from pwexpire import services
from pwexpire.conf import conf
from tests.bench import ways
from tests.bench.children import children
from tests.bench.data import key_of, owners
from tests.bench.databases import databases
from tests.bench.measure import Spread, say, timed
from tests.bench.scale import OWN, full

SERVERS = 4
ASKED = 25
SETTLE_SECONDS = 2
PATIENCE_SECONDS = 30

# When the last request was sent that was answered otherwise, and when the last answer came.
Seen = tuple[float, float]


def status(port: int, key: str) -> int:
    there = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
    try:
        there.request("GET", "/", headers={"Cookie": f"sessionid={key}"})
        response = there.getresponse()
        response.read()
        return response.status
    finally:
        there.close()


def ask_until(wanted: int, port: int, keys: list[str]) -> Seen:
    """Ask one server with these sessions in turns, until each was answered ``wanted``."""
    began = last_other = time.perf_counter()
    left = list(keys)
    while left:
        key, sent = left.pop(0), time.perf_counter()
        if (answered := status(port, key)) != wanted:
            if sent > began + PATIENCE_SECONDS:
                raise RuntimeError(f"a session is still answered {answered}, not {wanted}")
            last_other = sent
            left.append(key)
    return last_other, time.perf_counter()


class Site:
    """Four servers, and for each of them sessions of its own and a thread that asks."""

    def __init__(self, ports: list[int], keys: list[str]) -> None:
        self.ports = ports
        self.keys = [keys[n * ASKED : (n + 1) * ASKED] for n in range(len(ports))]
        self.threads = ThreadPoolExecutor(len(ports))

    def begin(self, wanted: int) -> list[Future[Seen]]:
        ask: Callable[..., Seen] = partial(ask_until, wanted)
        return [self.threads.submit(ask, *at) for at in zip(self.ports, self.keys, strict=True)]

    def ask(self, wanted: int) -> list[Seen]:
        return [one.result() for one in self.begin(wanted)]


def measure_reach(count: int, rounds: int, looped: int) -> dict[str, Any]:
    """``expire_everyone`` of ``count`` users with as many sessions, and the loop for ``looped``."""
    databases().use(full(count))
    # Not those that other measurements expired one by one.
    keys = [key_of(pk) for pk in owners(count, OWN)[-SERVERS * ASKED :]]
    held, late = [], []
    with children("tests.bench.servers", count=SERVERS) as servers:
        site = Site([int(server.hear()) for server in servers], keys)
        with site.threads:
            for turn in range(rounds):
                say(f"{SERVERS} servers and {count:,} sessions, round {turn + 1} of {rounds}")
                site.ask(200)
                asking = site.begin(302)
                time.sleep(random.random() * SETTLE_SECONDS)  # at no fixed moment between two polls
                began = time.perf_counter()
                batch = services.expire_everyone()
                returned = time.perf_counter()
                seen = [one.result() for one in asking]
                held.append(max(end for _, end in seen) - began)
                late.append(max(0.0, max(other for other, _ in seen) - returned))
                services.cancel_expiry(batch)
        loop = timed(partial(ways.loop, looped)).wall / looped * count
    return {
        "servers": SERVERS,
        "sessions": count,
        "asked": SERVERS * ASKED,
        "poll_seconds": conf.poll_seconds,
        "held_seconds": Spread.of(held),
        "last_let_through_seconds": Spread.of(late),
        "loop_seconds": loop,
        "looped": looped,
    }

"""Who must be held, who must not be, and who may be either because it is being decided.

All moments are those of ``time.monotonic``. A demand is in force for certain from the moment at
which the call that made it returned, and perhaps from the moment at which it began; with its end
it is the same. An answer is wrong only if no order of events explains it.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field

FORGOTTEN_SECONDS = 60


@dataclass
class Demanded:
    """``sure``: in force from then on. ``gone_from``, ``gone``: perhaps, and for certain, over."""

    begun: float
    sure: float | None = None
    gone_from: float | None = None
    gone: float | None = None

    def may_hold(self, sent: float, answered: float) -> bool:
        return self.begun <= answered and (self.gone is None or sent <= self.gone)

    def must_hold(self, sent: float, answered: float, poll: float) -> bool:
        if self.sure is None or self.sure + poll > sent:
            return False
        return self.gone_from is None or self.gone_from > answered

    def end(self, begun: float, returned: float | None) -> None:
        self.gone_from = begun if self.gone_from is None else min(self.gone_from, begun)
        if self.gone is None:
            self.gone = returned


@dataclass
class Session:
    key: str = ""
    # Nothing that happened so far logs it out.
    stays: bool = False


@dataclass
class Visitor:
    """``passwords``: more than one where it is not known whether a change was stored."""

    pk: int
    name: str
    passwords: list[str]
    sessions: list[Session] = field(default_factory=lambda: [Session(), Session()])
    demands: dict[int, Demanded] = field(default_factory=dict)


@dataclass
class Windows:
    """When something was broken on purpose."""

    closed: list[tuple[float, float]] = field(default_factory=list)
    opened: float | None = None

    def touch(self, sent: float, answered: float) -> bool:
        if self.opened is not None and answered >= self.opened:
            return True
        return any(sent <= end and answered >= begun for begun, end in self.closed)

    def open(self, now: float) -> None:
        self.opened = now

    def close(self, now: float) -> None:
        assert self.opened is not None
        self.closed.append((self.opened, now))
        self.opened = None


class Model:
    def __init__(self, poll: float) -> None:
        self.poll = poll
        self.lock = threading.Lock()
        self.counts: Counter[str] = Counter()
        self.late = 0.0
        self.examples: list[str] = []
        self.outages, self.redeploys = Windows(), Windows()

    def count(self, what: str, example: str = "") -> None:
        with self.lock:
            self._count(what, example)

    def _count(self, what: str, example: str = "") -> None:
        self.counts[what] += 1
        if example and self.counts[what] <= 5:
            self.examples.append(f"{what}: {example}")

    def begin(self, visitors: list[Visitor], batch: int, now: float) -> None:
        """An expiry is on its way to them."""
        with self.lock:
            for one in visitors:
                one.demands = {
                    number: demand
                    for number, demand in one.demands.items()
                    if demand.gone is None or demand.gone > now - FORGOTTEN_SECONDS
                }
                one.demands[batch] = Demanded(now)

    def settle(self, visitors: list[Visitor], batch: int, joined: set[int], now: float) -> None:
        """It is in force for those who ``joined``; of the others something else is demanded."""
        with self.lock:
            for one in visitors:
                demand = one.demands[batch]
                if one.pk in joined:
                    demand.sure = now
                else:
                    demand.end(demand.begun, now)

    def cancel(self, visitors: list[Visitor], batch: int | None, begun: float, now: float) -> None:
        """``batch``: of that one alone, else of all that is demanded of them."""
        with self.lock:
            for one in visitors:
                for number, demand in one.demands.items():
                    if batch in (None, number):
                        demand.end(begun, now)

    def change(self, one: Visitor, begun: float, now: float | None) -> None:
        """The password was changed; ``now`` is ``None`` if that is not known."""
        with self.lock:
            for demand in one.demands.values():
                sure = demand.sure is not None and demand.sure <= begun
                # An expiry that came meanwhile may have won.
                demand.end(begun, now if sure else None)

    def must_hold(self, one: Visitor, sent: float, answered: float, poll: float) -> bool:
        return any(demand.must_hold(sent, answered, poll) for demand in one.demands.values())

    def may_hold(self, one: Visitor, sent: float, answered: float) -> bool:
        return any(demand.may_hold(sent, answered) for demand in one.demands.values())

    def check(self, one: Visitor, kind: str, sent: float, answered: float, text: str) -> None:
        """``kind``: ``held``, ``passed``, ``out`` (logged out) or ``error``."""
        with self.lock:
            self._count(f"answers {kind}")
            down = self.outages.touch(sent, answered)
            if kind == "passed":
                self._check_passed(one, sent, answered, text, down=down)
            elif kind == "held" and not self.may_hold(one, sent, answered):
                what = "held in an outage though free" if down else "held though free"
                self._count(what, f"{one}: {text} at {sent:.3f}, outages {self.outages.closed}")
            elif kind == "error":
                redeployed = self.redeploys.touch(sent, answered)
                where = "outage" if down else "redeploy" if redeployed else "else"
                self._count(f"errors, {where}", "" if down else text)

    def _check_passed(
        self, one: Visitor, sent: float, answered: float, text: str, *, down: bool
    ) -> None:
        if not self.must_hold(one, sent, answered, 0):
            return
        if down:
            if self.must_hold(one, sent, answered, self.poll):
                self._count("passed in an outage", f"{one}: {text} at {sent:.3f}")
            return
        moments = [
            demand.sure
            for demand in one.demands.values()
            if demand.sure is not None and demand.must_hold(sent, answered, 0)
        ]
        late = sent - min(moments)
        self.late = max(self.late, late)
        if late > self.poll:
            self._count("passed though expired", f"{one.name}: {late:.3f} s late, {text}")

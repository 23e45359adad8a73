"""Whether an unexpired user pays for the expired ones who have not come yet."""

from __future__ import annotations

from typing import Any

from django.contrib.auth import get_user_model

from pwexpire import services
from tests.bench.data import PASSWORD, site
from tests.bench.databases import databases
from tests.bench.idle import OURS, Served
from tests.bench.measure import Spread, in_turns, say, timed
from tests.bench.scale import FEW_SESSIONS

User = get_user_model()
WARM = 20
TIMES = 50


def _waiting(logged_in: str, expired: int) -> str:
    """A copy of the site in which so many users are expired; one who is logged in is not."""
    say(f"expiring {expired:,} users, to wait")
    databases().restore(logged_in)
    batch = services.expire_passwords(User.objects.filter(pk__lte=expired))
    if batch.users_expired != expired:
        raise RuntimeError(f"{batch.users_expired} of {expired} users were expired")
    return databases().keep(f"waiting_{expired}")


def measure_waiting(few: int, many: int, pairs: int) -> dict[str, Any]:
    """In a site of ``many`` users and one; the first ``few``, or all but that one, are expired."""
    databases().restore(site(many, FEW_SESSIONS, FEW_SESSIONS))
    user = User.objects.create(username="unexpired", password=PASSWORD)
    bare, served = Served(None), Served(OURS)
    for one in (bare, served):
        one.log_in(user)
    logged_in = databases().keep("waiting_0")
    kept = {count: _waiting(logged_in, count) for count in (few, many)}
    taken: dict[int, list[float]] = {count: [] for count in kept}
    first: dict[int, list[float]] = {count: [] for count in kept}
    added: dict[int, float] = {}
    for turn in range(pairs):
        for count in in_turns(turn, kept):
            databases().use(kept[count])
            first[count].append(timed(served.ask).wall)
            if served.ask().status_code != 200:
                raise RuntimeError("the unexpired user was held")
            served.ask_often(WARM)
            if count not in added:
                added[count] = _queries_added(bare, served)
            taken[count].append(timed(lambda: served.ask_often(TIMES)).wall / TIMES)
    return {
        "few": few,
        "many": many,
        "ratio": Spread.between(taken[many], taken[few]),
        "queries_added": [added[count] for count in (few, many)],
        "microseconds": [Spread.of(taken[count]).median * 1e6 for count in (few, many)],
        "first_milliseconds": [Spread.of(first[count]).median * 1e3 for count in (few, many)],
    }


def _queries_added(bare: Served, served: Served) -> float:
    """The fewest of several: one of them may be the one with the poll of that second."""
    before, after = (min(sum(one.queries()) for _ in range(3)) for one in (bare, served))
    return after - before

"""The report on all users and the backfill of all ages: how long, and how much memory.

As a program, ``python -m tests.bench.evidence VERB`` is the process that does one of them.
"""

from __future__ import annotations

import json
import sys
import time
from datetime import timedelta
from typing import Any

VERBS = {
    "report": ["report", "--format", "csv"],
    "totals": ["report", "--totals"],
    "backfill": ["backfill", "--assume", "joined"],
}
# Users who are expired meanwhile, one in so many.
EXPIRED = 10


def measure_report(count: int) -> dict[str, Any]:
    """Every tenth user is expired; the report is written to nowhere."""
    from django.contrib.auth import get_user_model
    from django.db.models import F

    from pwexpire import services
    from tests.bench.children import children
    from tests.bench.data import site
    from tests.bench.databases import databases
    from tests.bench.measure import say
    from tests.bench.scale import FEW_SESSIONS

    databases().restore(site(count, FEW_SESSIONS, FEW_SESSIONS))
    users = get_user_model().objects.annotate(rest=F("pk") % EXPIRED)
    services.expire_passwords(get_user_model().objects.filter(pk__in=users.filter(rest=0)))
    found: dict[str, Any] = {"users": count, "verbs": {}}
    for verb in VERBS:
        say(f"{verb} of {count:,} users")
        databases().disconnect()
        with children("tests.bench.evidence", verb) as (child,):
            idle, peak, seconds = json.loads(child.hear())
        found["verbs"][verb] = {
            "idle_mib": idle,
            "added_mib": peak - idle,
            "seconds_per_100_000": seconds * 100_000 / count,
        }
    return found


class Nowhere:
    def write(self, text: str) -> None:
        pass


def main() -> None:
    import django
    from django.conf import settings
    from django.core.management import call_command

    from tests.bench.memory import peak_mib

    django.setup()
    from django.contrib.auth import get_user_model

    from pwexpire.policy import Policy

    settings.PWEXPIRE_POLICY = Policy(max_age=timedelta(days=90), grace_logins=3)
    get_user_model().objects.first()
    before, began = peak_mib(), time.monotonic()
    call_command("pwexpire", *VERBS[sys.argv[1]], stdout=Nowhere())
    print(json.dumps([before, peak_mib(), time.monotonic() - began]), flush=True)


if __name__ == "__main__":
    main()

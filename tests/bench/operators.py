"""What operators ask and start, while nine users in ten have an open demand."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.test import override_settings

from pwexpire import services
from pwexpire.constants import REQUEST_SECONDS
from pwexpire.management.formats import Rows, write_csv
from pwexpire.models import ExpiryBatch, SessionEntry
from pwexpire.policy import Policy
from pwexpire.services.expired import is_expired
from pwexpire.services.report import UserRow, rows
from pwexpire.services.selection import RANGE, Selection
from tests.bench.data import SERIES, add_own_sessions, add_users, execute
from tests.bench.databases import databases
from tests.bench.evidence import Nowhere
from tests.bench.measure import counted_queries, say

User = get_user_model()
DAY = timedelta(days=1)
GROUPS = 5
PAGE = 100
YEARLY = Policy(max_age=365 * DAY)
BY_GROUP = {"group:group1": Policy(max_age=90 * DAY), "default": YEARLY}
WARNING = Policy(max_age=90 * DAY, warn_before=7 * DAY)
VERBS: dict[str, tuple[Any, list[str]]] = {
    "backfill": (YEARLY, ["backfill", "--assume", "joined"]),
    "notify --dry-run": (WARNING, ["notify", "--dry-run"]),
    "prune": (None, ["prune"]),
    "reindex": (None, ["reindex"]),
}


def _build(count: int) -> None:
    """Users in groups, with a record each, and a session for one in ten."""
    databases().make()
    add_users(count)
    execute(f"INSERT INTO auth_group (id, name) {SERIES} i, 'group' || i FROM series", [GROUPS])
    execute(
        f"INSERT INTO auth_user_groups (user_id, group_id) {SERIES} i, 1 + i %% %s FROM series",
        [count, GROUPS],
    )
    execute(
        "INSERT INTO pwexpire_passwordrecord (user_id, satisfied, ended, failed_changes, lockouts) "
        f"{SERIES} i, 0, 0, 0, 0 FROM series",
        [count],
    )
    add_own_sessions(range(10, count + 1, 10))
    # A first batch of a few: what the database knows of the tables is of then.
    services.expire_passwords(User.objects.filter(pk__lte=10))
    databases().settle()


def _taken(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _expire(count: int) -> float:
    return _taken(partial(services.expire_passwords, User.objects.filter(pk__gt=count // 10)))


def _preview(users: Any) -> tuple[float, int]:
    with counted_queries() as queries:
        seconds = _taken(partial(services.preview_expiry, users))
    return seconds, len(queries.seen)


def _list(expired: bool) -> None:
    """What the admin asks for its list, filtered."""
    users = User.objects.all()
    wanted = is_expired(users)
    found = users.filter(wanted if expired else ~wanted)
    found.count()
    list(found.order_by("username")[:PAGE])


def _report(count: int, policy: Any) -> float:
    with override_settings(PWEXPIRE_POLICY=policy):
        found = Rows(UserRow._fields, rows(Selection(User.objects.all())))
        return count / _taken(partial(write_csv, found, Nowhere().write))


def _run_verb(policy: Any, words: list[str]) -> float:
    with override_settings(PWEXPIRE_POLICY=policy):
        return _taken(partial(call_command, "pwexpire", *words, stdout=Nowhere(), stderr=Nowhere()))


def _in_a_request() -> float:
    began = time.perf_counter()
    services.expire_passwords(User.objects.all(), seconds=REQUEST_SECONDS)
    return time.perf_counter() - began


def measure_operators(count: int) -> dict[str, Any]:
    say(f"{count:,} users, nine of ten expired")
    _build(count)
    expire = _expire(count)
    # Before the database has looked at its tables by itself.
    preview, statements = _preview(User.objects.all())
    of_one_chunk = _preview(User.objects.filter(pk__lte=RANGE))[1]
    _run_verb(None, ["status"])  # what the command imports is not measured
    found: dict[str, Any] = {
        "users": count,
        "expire_seconds": expire,
        "preview_seconds": preview,
        "preview_statements_per_chunk": (statements - of_one_chunk) / (count / RANGE - 1),
        "list_seconds": {
            name: _taken(partial(_list, expired))
            for name, expired in (("expired", True), ("not expired", False))
        },
        "status_seconds": _run_verb(None, ["status"]),
        "report_rows": {"no policy": _report(count, None), "by group": _report(count, BY_GROUP)},
    }
    SessionEntry.objects.all().delete()
    for batch in ExpiryBatch.objects.all():
        services.cancel_expiry(batch)
    found["verbs"] = {name: _run_verb(*given) for name, given in VERBS.items()}
    found["request_seconds"] = _in_a_request()
    return found

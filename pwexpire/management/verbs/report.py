"""Evidence for auditors: a row for each user, totals, or a row for each batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, fields
from typing import Any

from django.core.management.base import CommandError

from pwexpire.management.bars import bars
from pwexpire.management.console import AddVerb, Console
from pwexpire.management.formats import Rows
from pwexpire.management.selectors import add_selectors, choose_users, names_somebody
from pwexpire.services.batch_report import BatchRow, batch_rows
from pwexpire.services.lockouts import LockoutExpiry, lockout_report
from pwexpire.services.report import UserRow, rows
from pwexpire.services.totals import total
from pwexpire.services.trace import CancellationEvidence, cancellation_rows

FORMATS = ("text", "json", "csv")
LOCKOUT_COLUMNS = tuple(one.name for one in fields(LockoutExpiry))
TITLES = {"age": "age in days", "days_left": "days until it ages out"}

# What is reported as a whole, and not of users who can be selected.
WHOLE: dict[str, Callable[[], Rows]] = {
    "batches": lambda: Rows(BatchRow._fields, batch_rows()),
    "lockouts": lambda: Rows(LOCKOUT_COLUMNS, map(astuple, lockout_report().expiries)),
    "cancellations": lambda: Rows(CancellationEvidence._fields, cancellation_rows()),
}


def add(verb: AddVerb) -> None:
    parser = verb("report", "What is known of every password.", formats=FORMATS)
    add_selectors(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--totals", action="store_true", help="how many users of each kind")
    what.add_argument("--batches", action="store_true", help="each expiry, and what is left of it")
    what.add_argument("--lockouts", action="store_true", help="what lockouts led to")
    what.add_argument("--cancellations", action="store_true", help="who cancelled what, and when")
    parser.add_argument("--output", metavar="FILE", help="write it there, readable by you alone")
    parser.add_argument("--force", action="store_true", help="replace FILE if it is there")


def run(options: dict[str, Any], console: Console) -> Any:
    for name, read in WHOLE.items():
        if options[name] and names_somebody(options):
            raise CommandError(f"--{name} shows all of them: it goes with no selector.")
        if options[name]:
            return read()
    found = rows(choose_users(options, console.notice))
    if not options["totals"]:
        return Rows(UserRow._fields, found)
    totals = total(found)
    if options["format"] == "csv":
        return Rows(
            ("total", "value", "users"),
            (
                (name, value, count)
                for name, counts in totals.items()
                for value, count in counts.items()
            ),
        )
    return totals if options["format"] == "json" else {"sentences": _draw_totals(totals)}


def _draw_totals(totals: dict[str, dict[str, int]]) -> list[str]:
    lines = []
    for name, counts in totals.items():
        lines += [TITLES.get(name, name), *bars(counts)]
    return lines

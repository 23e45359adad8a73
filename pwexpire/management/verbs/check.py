"""Prove that sessions are held, or explain the verdict on a user."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError

from pwexpire.conf import conf
from pwexpire.management.console import AddVerb, Console
from pwexpire.management.probe import explain_results, probe
from pwexpire.management.selectors import find_user
from pwexpire.management.verdict import explain
from pwexpire.pages import find_url
from pwexpire.services.tables import read_tables

PASSED = "All is well: held sessions reach the way to change the password, and nothing else."


def add(verb: AddVerb) -> None:
    parser = verb("check", "Prove that sessions are held; writes nothing.")
    parser.add_argument("--user", metavar="NAME", help="explain the verdict on a user")


def run(options: dict[str, Any], console: Console) -> Any:
    if options["user"]:
        return explain(find_user(options["user"]))
    # The middleware holds whom a flag names without any table, so the probe alone would pass.
    read_tables()
    # Raises first: without a change page every other finding follows from that.
    find_url(conf.change_url)
    results = probe()
    wrong = explain_results(results)
    if wrong is not None:
        raise CommandError(wrong)
    rows: list[dict[str, Any]] = [{"request": one.request, "held": one.held} for one in results]
    # The last line of the text is the verdict; JSON keeps to the rows that programs read.
    return rows if options["format"] == "json" else [*rows, {"sentences": [PASSED]}]

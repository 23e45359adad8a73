"""The stored sessions."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable
from itertools import islice
from typing import Any

from django.core.management.base import CommandError

from pwexpire.management.console import Console
from pwexpire.management.listing import list_sessions, why_unlisted
from pwexpire.management.selectors import find_user


def add(verb: Callable[..., ArgumentParser]) -> None:
    parser = verb("sessions", "The stored sessions: of whom, flagged or not, until when.")
    parser.add_argument("--user", metavar="NAME")
    parser.add_argument("--flagged", action="store_true")
    parser.add_argument("--limit", type=int, metavar="N")


def run(options: dict[str, Any], console: Console) -> Any:
    if options["limit"] is not None and options["limit"] < 0:
        raise CommandError("--limit must be 0 or more.")
    if (reason := why_unlisted()) is not None:
        console.notice(reason)
    user = find_user(options["user"])
    return islice(list_sessions(user, flagged=options["flagged"]), options["limit"])

"""Count the users and sessions that an expiry would reach."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from pwexpire.management.console import AddVerb, Console
from pwexpire.management.formats import Facts
from pwexpire.management.selectors import add_selectors, excluded, select
from pwexpire.services.preview import preview_expiry


def add(verb: AddVerb) -> None:
    add_selectors(verb("preview", "Count the users that an expiry would reach; writes nothing."))


def run(options: dict[str, Any], console: Console) -> Any:
    users = select(options, console.notice)
    return Facts(asdict(preview_expiry(users, exclude=excluded(options))))

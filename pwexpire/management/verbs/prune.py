"""Remove what nobody needs any more."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable
from typing import Any

from django.core.management.base import CommandError

from pwexpire.services.history import prune_history
from pwexpire.services.index import prune_index
from pwexpire.services.notices import prune_notices
from pwexpire.services.pruning import prune_batches, prune_cancellations, prune_cancelled


def add(verb: Callable[..., ArgumentParser]) -> None:
    parser = verb("prune", "Remove dead index entries, satisfied batches and old hashes.")
    parser.add_argument("--chunk", type=int, default=1000, metavar="N")


def run(options: dict[str, Any], console: Any) -> Any:
    if options["chunk"] < 1:
        raise CommandError("--chunk must be 1 or more.")
    return {
        "entries": prune_index(options["chunk"]),
        "demands": prune_cancelled(options["chunk"]),
        "batches": prune_batches(options["chunk"]),
        "cancellations": prune_cancellations(options["chunk"]),
        "old_passwords": prune_history(options["chunk"]),
        "notices": prune_notices(options["chunk"]),
    }

"""Remove what nobody needs any more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.db import Error as DatabaseFault

from pwexpire.management.console import AddVerb, Console, check_number
from pwexpire.retries import is_missing_table
from pwexpire.services.history import prune_history
from pwexpire.services.index import prune_index
from pwexpire.services.pruning import (
    correct_dates,
    prune_batches,
    prune_cancellations,
    prune_cancelled,
    prune_filters,
    prune_notices,
)

# Demands before batches: a batch is finished once nothing of it is open.
PRUNERS: dict[str, Callable[[int], int]] = {
    "entries": prune_index,
    "demands": prune_cancelled,
    "batches": prune_batches,
    "filters": lambda chunk: prune_filters(),
    "cancellations": prune_cancellations,
    "old_passwords": prune_history,
    "notices": prune_notices,
    "future_changes": correct_dates,
}


def add(verb: AddVerb) -> None:
    parser = verb("prune", "Remove dead index entries, satisfied batches and old hashes.")
    parser.add_argument("--chunk", type=int, default=1000, metavar="N")


def run(options: dict[str, Any], console: Console) -> Any:
    check_number("chunk", options["chunk"], least=1)
    return {name: _prune(prune, options["chunk"], console) for name, prune in PRUNERS.items()}


def _prune(prune: Callable[[int], int], chunk: int, console: Console) -> int:
    try:
        return prune(chunk)
    except DatabaseFault as error:
        if not is_missing_table(error):
            raise
        # Old hashes and notices must go though a deployment has not come to migrate yet.
        console.notice("A table is missing, so something was not pruned: run manage.py migrate.")
        return 0

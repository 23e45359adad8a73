"""Stop the processes that work at a batch."""

from __future__ import annotations

from typing import Any

from pwexpire.management.batches import find_batch
from pwexpire.management.console import AddVerb, Console
from pwexpire.services.batches import stop_expiry


def add(verb: AddVerb) -> None:
    parser = verb("stop", "Stop the processes that work at a batch; resume goes on with it.")
    parser.add_argument("batch", type=int, metavar="ID")


def run(options: dict[str, Any], console: Console) -> Any:
    batch = find_batch(options["batch"])
    return {"batch": batch.pk, "stopped": stop_expiry(batch), "state": str(batch.state)}

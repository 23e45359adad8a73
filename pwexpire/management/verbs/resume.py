"""Go on with batches that were interrupted, stopped or deferred."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError

from pwexpire.feed import feed
from pwexpire.management.batches import (
    ENQUEUE,
    UNFINISHED,
    describe_batch,
    find_batch,
    find_enqueuer,
)
from pwexpire.management.console import AddVerb, Console
from pwexpire.management.selectors import add_selectors, excluded, names_somebody, select
from pwexpire.models import BatchState, ExpiryBatch
from pwexpire.services.batches import resume_expiry


def add(verb: AddVerb) -> None:
    parser = verb("resume", "Go on with interrupted batches.")
    parser.add_argument("batch", nargs="?", type=int, metavar="ID")
    parser.add_argument("--enqueue", action="store_true", help=ENQUEUE)
    add_selectors(parser)


def run(options: dict[str, Any], console: Console) -> Any:
    enqueue = find_enqueuer(options)
    if options["batch"] is None:
        if names_somebody(options):
            raise CommandError("Give the ID of the batch that these users belong to.")
        batches = _resume_all(defer=enqueue is not None)
    else:
        batches = [_resume_one(options, console, defer=enqueue is not None)]
    if enqueue is not None:
        for batch in batches:
            enqueue(batch)
    described = [describe_batch(batch) for batch in batches]
    return described if options["batch"] is None else described[0]


def _resume_all(*, defer: bool) -> list[ExpiryBatch]:
    rows = ExpiryBatch.objects.using(feed.using).filter(state__in=UNFINISHED)
    # A batch that was still selecting its users can only go on with the same selection.
    return [
        batch if batch.state == BatchState.STAGING else resume_expiry(batch, defer=defer)
        for batch in rows.order_by("pk")
    ]


def _resume_one(options: dict[str, Any], console: Console, *, defer: bool) -> ExpiryBatch:
    batch, users = find_batch(options["batch"]), None
    selecting = batch.state in (BatchState.STAGING, BatchState.STOPPED)
    if selecting and batch.number is None and not batch.everyone:
        users = select(options, console.notice)
    out = excluded(options)
    with console.progress() as progress:
        return resume_expiry(batch, users, exclude=out, progress=progress, defer=defer)

"""Go on with batches that were interrupted, stopped or deferred."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError
from django.db.models import QuerySet

from pwexpire.feed import feed
from pwexpire.management.batches import (
    ENQUEUE,
    UNFINISHED,
    describe_batch,
    find_batch,
    find_enqueuer,
)
from pwexpire.management.console import AddVerb, Console
from pwexpire.management.safety import (
    add_safety,
    confirm_expiry,
    count_selected,
    refuse_by_rank,
    refuse_lockout,
)
from pwexpire.management.selectors import (
    SELECTORS,
    add_selectors,
    excluded,
    names_somebody,
    select,
    selectors_as_typed,
)
from pwexpire.models import BatchState, ExpiryBatch, TraceKind
from pwexpire.services.batches import resume_expiry
from pwexpire.services.selection import Selection, for_the_record


def add(verb: AddVerb) -> None:
    parser = verb("resume", "Go on with interrupted batches.")
    parser.add_argument("batch", nargs="?", type=int, metavar="ID")
    parser.add_argument("--enqueue", action="store_true", help=ENQUEUE)
    add_selectors(parser)
    add_safety(parser)


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
    out = excluded(options)
    if batch.state in (BatchState.STAGING, BatchState.STOPPED) and batch.number is None:
        users = _select_again(batch, options, out, console)
    with console.progress() as progress:
        return resume_expiry(batch, users, exclude=out, progress=progress, defer=defer)


def _select_again(
    batch: ExpiryBatch, options: dict[str, Any], out: Any, console: Console
) -> QuerySet[Any]:
    """Return the users of a batch that is not in force, past the safeguards of an expiry."""
    given = {**options, "require": str(batch.require), "note": batch.note}
    if batch.everyone:
        given |= {**dict.fromkeys(SELECTORS), "user": [], "group": [], "everyone": True}
    users = select(given, console.notice)
    typed = for_the_record(selectors_as_typed(given))
    # A description that a service or the admin wrote cannot be compared.
    if batch.selection.startswith("--") and batch.selection != typed:
        raise CommandError(
            f"Batch {batch.pk} is of other users, nothing was done: it was made with "
            f"{batch.selection}. Give the same selection, or expire these users by themselves."
        )
    selection = Selection(users, exclude=out)
    count = count_selected(selection, given)
    refuse_by_rank(batch.actor, selection, given, kind=TraceKind.EXPIRY_REFUSED, batch=batch)
    refuse_lockout(given, batch.actor, selection)
    confirm_expiry(given, count, console)
    return users

"""Cancel demands."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError

from pwexpire.management.batches import find_batch
from pwexpire.management.console import AddVerb, Console
from pwexpire.management.safety import count_selected, find_actor, refuse_by_rank
from pwexpire.management.selectors import (
    ALLOW_EMPTY,
    add_selectors,
    names_somebody,
    select,
)
from pwexpire.models import TraceKind
from pwexpire.services.cancellations import cancel_expiry
from pwexpire.services.demands import all_users, batches_in_force, members
from pwexpire.services.expired import is_expired
from pwexpire.services.selection import Selection

ACTOR = "the user who cancels; their permission and rank count"
REFUSED = TraceKind.CANCELLATION_REFUSED


def add(verb: AddVerb) -> None:
    parser = verb("cancel", "Cancel the demands on the selected users, or those of a batch.")
    add_selectors(parser)
    parser.add_argument("--batch", type=int, metavar="ID")
    parser.add_argument("--allow-empty", action="store_true", help=ALLOW_EMPTY)
    parser.add_argument("--note", default="")
    parser.add_argument("--actor", metavar="NAME", help=ACTOR)


def run(options: dict[str, Any], console: Console) -> Any:
    actor = find_actor(options["actor"])
    given = {"actor": actor, "note": options["note"]}
    if options["batch"] is not None:
        if names_somebody(options):
            raise CommandError("--batch cancels all of a batch: it goes with no selector.")
        batch = find_batch(options["batch"])
        users = members(batch)
        if batch.everyone:
            users = all_users().exclude(pwexpire_exclusions__batch=batch)
        refuse_by_rank(actor, Selection(users), options, kind=REFUSED, batch=batch)
        return {"users_cancelled": cancel_expiry(batch, **given)}
    if options["exclude"]:
        raise CommandError("cancel takes no --exclude: name the users whose demand is cancelled.")
    users = select(options, console.notice)
    selection = Selection(users)
    count_selected(selection, options)
    refuse_by_rank(actor, selection, options, kind=REFUSED)
    if not options["everyone"]:
        return {"users_cancelled": cancel_expiry(users, **given)}
    # Who aged out as well is not free by it.
    before = users.filter(is_expired(users)).count()
    for batch in batches_in_force().filter(everyone=True):
        cancel_expiry(batch, **given)
    cancel_expiry(users, **given)
    return {"users_cancelled": before - users.filter(is_expired(users)).count()}

"""Demand a new password of the selected users."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from django.core.management.base import CommandError

from pwexpire.constants import REQUIRE_ORDER
from pwexpire.management.batches import COUNTS, ENQUEUE, describe_batch, find_enqueuer
from pwexpire.management.console import AddVerb, Console
from pwexpire.management.formats import Facts
from pwexpire.management.safety import (
    add_safety,
    confirm_expiry,
    count_selected,
    find_actor,
    refuse_by_rank,
    refuse_lockout,
)
from pwexpire.management.selectors import (
    add_selectors,
    excluded,
    select,
    selectors_as_typed,
)
from pwexpire.models import Reason, SessionAction, TraceKind
from pwexpire.services.batches import expire_everyone, expire_passwords
from pwexpire.services.drafts import draft_batch
from pwexpire.services.notices import announce_expiry
from pwexpire.services.preview import preview_expiry
from pwexpire.services.selection import Selection

EVERYONE_AT_ONCE = (
    "--enqueue goes with no --everyone, nothing was done: an expiry of everyone writes into no "
    "stored session, so that nothing is left to tasks."
)


def add(verb: AddVerb) -> None:
    parser = verb("expire", "Demand a new password of the selected users.")
    add_selectors(parser)
    add = parser.add_argument
    add("--dry-run", action="store_true", help="count, and write nothing")
    add("--reason", default=Reason.ADMIN.value)
    add("--require", default="change", metavar="|".join(REQUIRE_ORDER))
    add("--sessions", choices=SessionAction.values, default=SessionAction.FLAG.value)
    add("--note", default="")
    add("--actor", metavar="NAME", help="the user who asks for it; their permission and rank count")
    add("--enqueue", action="store_true", help=ENQUEUE)
    add("--announce", action="store_true", help="send the users an e-mail about it")
    add_safety(parser)


def run(options: dict[str, Any], console: Console) -> Any:
    if options["everyone"] and options["enqueue"]:
        raise CommandError(EVERYONE_AT_ONCE)
    actor, out = find_actor(options["actor"]), excluded(options)
    given = {name: options[name] for name in ("reason", "require", "sessions", "note")}
    given |= {"actor": actor, "selection": selectors_as_typed(options)}
    # Drafted first, so that a dry run refuses whatever the run would refuse.
    draft_batch(**given)
    enqueue = find_enqueuer(options)
    # Read once: standard input can name the users only once.
    users = select(options, console.notice)
    selection = Selection(users, exclude=out)
    # All refusals come before the question: a yes must not end in a refusal.
    count = count_selected(selection, options)
    refuse_by_rank(actor, selection, options, kind=TraceKind.EXPIRY_REFUSED)
    refuse_lockout(options, actor, selection)
    if options["dry_run"]:
        return Facts(asdict(preview_expiry(users, exclude=out)))
    if count == 0:
        return {"batch": None, **dict.fromkeys(COUNTS, 0)}
    confirm_expiry(options, count, console)
    given["exclude"] = out
    with console.progress() as progress:
        if options["everyone"]:
            batch = expire_everyone(**given, progress=progress)
        else:
            defer = enqueue is not None
            batch = expire_passwords(users, **given, progress=progress, defer=defer)
    if enqueue is not None:
        enqueue(batch)
    answer = describe_batch(batch)
    if options["announce"] and batch.number is not None:  # without a number it reached nobody
        report = announce_expiry(batch)
        answer |= {"mails_sent": report.sent, "mails_failed": report.failed}
    return answer

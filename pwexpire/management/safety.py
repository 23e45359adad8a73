"""What stands between an operator's mistake and the users."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from pwexpire.constants import LOCKING, PERMISSION
from pwexpire.management.console import Console
from pwexpire.management.selectors import ALLOW_EMPTY, COMBINED, find_user, list_some
from pwexpire.models import ExpiryBatch, TraceKind
from pwexpire.services.ranks import find_lockout, find_outranked, may_cancel_own, may_expire
from pwexpire.services.report import usernames
from pwexpire.services.selection import Selection
from pwexpire.services.trace import write_trace

# More users than a person reads through before they confirm.
ASK_ABOVE = 100
FORCE = "with reset or deny: also lock the actor or the last active superuser out"


def add_safety(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--yes", action="store_true", help="do not ask, whatever the number of users")
    add("--force", action="store_true", help=FORCE)
    add("--allow-empty", action="store_true", help=ALLOW_EMPTY)


def find_actor(name: str | None) -> Any:
    """Return the user whom ``--actor`` names. Raises ``CommandError`` if they may expire nobody."""
    actor = find_user(name)
    if actor is not None and not may_expire(actor):
        raise CommandError(
            f"{name} is not active, or lacks the permission {PERMISSION}: nothing was done."
        )
    return actor


def count_selected(selection: Selection, options: dict[str, Any]) -> int:
    """Return how many users are selected. Raises ``CommandError`` if there are none."""
    count = selection.count()
    if not count and not options["allow_empty"]:
        raise CommandError(
            f"No user is selected, nothing was done. {COMBINED} "
            "--allow-empty accepts an empty selection."
        )
    return count


def confirm_expiry(options: dict[str, Any], count: int, console: Console) -> None:
    """Ask before an expiry of many users, or one that only others can end for them."""
    harmless = count <= ASK_ABOVE and options["require"] not in LOCKING
    if options["yes"] or (harmless and not options["everyone"]):
        return
    users = "1 user" if count == 1 else f"{count:,} users"
    console.confirm(f"This expires the passwords of {users} (require: {options['require']}).")


def refuse_lockout(options: dict[str, Any], actor: Any, selection: Selection) -> None:
    """Refuse to lock out the actor, or the last active superuser, without ``--force``."""
    if options["require"] not in LOCKING or options["force"]:
        return
    found = find_lockout(selection, actor)
    words = [
        words
        for words, locked in (
            ("the actor", found.actor),
            ("the last active superuser", found.last_superuser),
        )
        if locked
    ]
    if words:
        raise CommandError(
            f"This would lock out {' and '.join(words)}, nothing was done. "
            "Leave them out with --exclude, or insist with --force."
        )


def refuse_by_rank(
    actor: Any,
    selection: Selection,
    options: dict[str, Any],
    *,
    kind: TraceKind,
    batch: ExpiryBatch | None = None,
) -> None:
    """Refuse what ``actor`` may not do; without an actor the operator is trusted.

    ``kind``: of the refusal, which is kept in the trace, of which ``batch``. A dry run writes
    nothing.
    """
    if actor is None:
        return
    outranked = find_outranked(actor, selection)
    cancelling = kind == TraceKind.CANCELLATION_REFUSED
    own = not outranked and cancelling and not may_cancel_own(actor, selection)
    refused = {actor.pk} if own else outranked
    if not refused:
        return
    if not options.get("dry_run"):
        of = None if batch is None else batch.pk
        write_trace([(of, pk) for pk in refused], actor=actor, note=options["note"], kind=kind)
    name = actor.get_username()
    if own:
        raise CommandError(f"{name} may not cancel a demand on themselves, nothing was done.")
    names = list_some([str(one) for one in usernames(outranked).values()])
    raise CommandError(
        f"{name} is not a superuser and may not expire or cancel one, nothing was done: {names}."
    )

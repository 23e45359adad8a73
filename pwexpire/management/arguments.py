"""The verbs of the command and what each takes."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence

from django.core.management.base import CommandParser

from pwexpire.constants import REQUIRE_ORDER
from pwexpire.management.selectors import add_selectors
from pwexpire.management.verbs import VERBS
from pwexpire.models import Reason, SessionAction

ENQUEUE = "leave the stored sessions to tasks"


def add_verbs(parser: CommandParser) -> None:
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, text: str, formats: Sequence[str] = ("text", "json")) -> ArgumentParser:
        added: ArgumentParser = verbs.add_parser(name, help=text, description=text)
        added.add_argument("--format", choices=formats, default="text")
        return added

    expire = verb("expire", "Demand a new password of the selected users.")
    add_selectors(expire)
    expire.add_argument("--dry-run", action="store_true", help="count, and write nothing")
    expire.add_argument("--reason", default=Reason.ADMIN.value)
    expire.add_argument("--require", default="change", metavar="|".join(REQUIRE_ORDER))
    expire.add_argument(
        "--sessions", choices=SessionAction.values, default=SessionAction.FLAG.value
    )
    expire.add_argument("--note", default="")
    expire.add_argument("--actor", metavar="NAME", help="who asks for it")
    expire.add_argument("--enqueue", action="store_true", help=ENQUEUE)
    expire.add_argument("--announce", action="store_true", help="tell the users by e-mail")
    add_selectors(verb("preview", "Count whom an expiry would meet."))
    cancel = verb("cancel", "Lift demands from users, or those of a batch.")
    add_selectors(cancel)
    cancel.add_argument("--batch", type=int, metavar="ID")
    cancel.add_argument("--note", default="")
    cancel.add_argument("--actor", metavar="NAME")
    resume = verb("resume", "Go on with interrupted batches.")
    resume.add_argument("batch", nargs="?", type=int, metavar="ID")
    resume.add_argument("--enqueue", action="store_true", help=ENQUEUE)
    add_selectors(resume)
    stop = verb("stop", "Stop the processes that work at a batch; resume goes on with it.")
    stop.add_argument("batch", type=int, metavar="ID")
    status = verb("status", "What stands against a user, or in all.")
    status.add_argument("--user", action="append", default=[], metavar="NAME")
    sessions = verb("sessions", "The stored sessions: whose, flagged or not, until when.")
    sessions.add_argument("--user", metavar="NAME")
    sessions.add_argument("--flagged", action="store_true")
    sessions.add_argument("--limit", type=int, metavar="N")
    check = verb("check", "Prove that sessions are held; writes nothing.")
    check.add_argument("--user", metavar="NAME", help="explain the verdict on a user")
    verb("reindex", "Index the sessions that were there before pwexpire.")
    prune = verb("prune", "Remove what is dead: index entries, batches that are met, old hashes.")
    prune.add_argument("--chunk", type=int, default=1000, metavar="N")
    for module in VERBS.values():
        module.add(verb)

"""Tell users by e-mail what is about to happen to their passwords, or what has happened."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError

from pwexpire.management.batches import find_batch
from pwexpire.management.console import AddVerb, Console, check_number
from pwexpire.management.selectors import add_selectors, excluded, names_somebody, select_or_all
from pwexpire.models import ExpiryBatch
from pwexpire.services.notices import NoticeReport, announce_expiry, notify_users, retry_unsent


def add(verb: AddVerb) -> None:
    parser = verb(
        "notify", "Tell users by e-mail that their password ages out, once for each step."
    )
    add_selectors(parser)
    parser.add_argument("--dry-run", action="store_true", help="count, and send nothing")
    parser.add_argument("--batch", type=int, metavar="ID", help="announce this expiry instead")
    parser.add_argument("--limit", type=int, metavar="N", help="send so many mails and no more")
    parser.add_argument("--enqueue", action="store_true", help="leave it to tasks")
    parser.add_argument(
        "--retry-unsent",
        action="store_true",
        help="also those that were begun over an hour ago, by a process that was killed",
    )


def run(options: dict[str, Any], console: Console) -> Any:
    limit, dry_run = options["limit"], options["dry_run"]
    check_number("limit", limit, least=1)
    batch = _find_announced(options)
    if options["enqueue"]:
        return _enqueue_notices(options, batch)
    if options["retry_unsent"] and not dry_run:
        # Before the run, which passes over every mail that has a row.
        retry_unsent()
    if batch is not None:
        report = announce_expiry(batch, dry_run=dry_run, limit=limit)
    else:
        users, out = select_or_all(options, console.notice), excluded(options)
        report = notify_users(users, exclude=out, dry_run=dry_run, limit=limit)
    if report.failed:
        raise CommandError(
            f"{report.failed} mails could not be sent, {report.sent} were: see the log, and run "
            "it again."
        )
    return _describe_run(report, dry_run)


def _find_announced(options: dict[str, Any]) -> ExpiryBatch | None:
    if options["batch"] is None:
        return None
    if names_somebody(options):
        raise CommandError("--batch tells the users of a batch: it goes with no selector.")
    return find_batch(options["batch"])


def _enqueue_notices(options: dict[str, Any], batch: ExpiryBatch | None) -> dict[str, Any]:
    from pwexpire.tasks import enqueue_notices

    if names_somebody(options) or options["limit"] is not None:
        raise CommandError("--enqueue goes with no selector and no --limit.")
    if options["dry_run"] or options["retry_unsent"]:
        raise CommandError("--enqueue goes with no --dry-run and no --retry-unsent.")
    enqueue_notices(batch)
    return {"enqueued": True}


def _describe_run(report: NoticeReport, dry_run: bool) -> dict[str, Any]:
    due = {step: count for step, count in sorted(report.steps.items()) if count}
    answer: dict[str, Any] = {"due": due, "known": report.known}
    if not dry_run:
        answer |= {"sent": report.sent, "without_address": report.without_address}
    return answer

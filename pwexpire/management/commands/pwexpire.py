from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.core.serializers.json import DjangoJSONEncoder

from pwexpire.conf import conf
from pwexpire.exceptions import PasswordExpiryError
from pwexpire.feed import feed
from pwexpire.management.probe import probe
from pwexpire.management.selectors import add_selectors, excluded, find_user, find_users, select
from pwexpire.models import BatchState, Demand, ExpiryBatch, Reason, SessionAction, SessionEntry
from pwexpire.services.batches import (
    expire_everyone,
    expire_passwords,
    preview_expiry,
    resume_expiry,
)
from pwexpire.services.cancellations import cancel_expiry
from pwexpire.services.sessions import Progress, prune_batches, prune_index
from pwexpire.services.status import active_batches, password_status, read_state
from pwexpire.sessionstore.base import StoredSession, shorten
from pwexpire.sessionstore.registry import get_adapter

UNFINISHED = (BatchState.STAGING, BatchState.STAGED, BatchState.ACTIVE)
COUNTS = (
    "users_expired",
    "users_already_expired",
    "users_not_applicable",
    "sessions_flagged",
    "sessions_ended",
)


class Command(BaseCommand):
    help = "Expire passwords, and see what is expired."

    def add_arguments(self, parser: CommandParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

        def verb(name: str, text: str) -> ArgumentParser:
            added: ArgumentParser = verbs.add_parser(name, help=text, description=text)
            added.add_argument("--format", choices=["text", "json"], default="text")
            return added

        expire = verb("expire", "Demand a new password of the selected users.")
        add_selectors(expire)
        expire.add_argument("--dry-run", action="store_true", help="count, and write nothing")
        expire.add_argument("--reason", default=Reason.ADMIN.value)
        expire.add_argument("--require", default="change")
        expire.add_argument(
            "--sessions", choices=SessionAction.values, default=SessionAction.FLAG.value
        )
        expire.add_argument("--note", default="")
        expire.add_argument("--actor", metavar="NAME", help="who asks for it")
        add_selectors(verb("preview", "Count whom an expiry would meet."))
        cancel = verb("cancel", "Lift demands from users, or those of a batch.")
        add_selectors(cancel)
        cancel.add_argument("--batch", type=int, metavar="ID")
        cancel.add_argument("--note", default="")
        cancel.add_argument("--actor", metavar="NAME")
        resume = verb("resume", "Go on with interrupted batches.")
        resume.add_argument("batch", nargs="?", type=int, metavar="ID")
        add_selectors(resume)
        status = verb("status", "What stands against a user, or in all.")
        status.add_argument("--user", action="append", default=[], metavar="NAME")
        sessions = verb("sessions", "The stored sessions: whose, flagged or not, until when.")
        sessions.add_argument("--user", metavar="NAME")
        sessions.add_argument("--flagged", action="store_true")
        sessions.add_argument("--limit", type=int, metavar="N")
        check = verb("check", "Prove that sessions are held; writes nothing.")
        check.add_argument("--user", metavar="NAME", help="explain the verdict on a user")
        prune = verb("prune", "Remove index entries of dead sessions, and batches that are met.")
        prune.add_argument("--chunk", type=int, default=1000, metavar="N")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            answer = getattr(self, f"do_{options['verb']}")(options)
        except PasswordExpiryError as error:
            raise CommandError(str(error)) from None
        self.tell(answer, options)

    def tell(self, answer: Any, options: dict[str, Any]) -> None:
        if options["format"] == "json":
            self.stdout.write(json.dumps(answer, cls=DjangoJSONEncoder, default=str))
            return
        for row in answer if isinstance(answer, list) else [answer]:
            self.stdout.write("  ".join(f"{name}: {_show(value)}" for name, value in row.items()))

    def do_expire(self, options: dict[str, Any]) -> Any:
        users, out = select(options), excluded(options)
        if options["dry_run"]:
            return self.do_preview(options)
        given = {name: options[name] for name in ("reason", "require", "sessions", "note")}
        given |= {"actor": find_user(options["actor"]), "exclude": out}
        with self.progress(options) as progress:
            if options["everyone"]:
                return _batch(expire_everyone(**given, progress=progress))
            return _batch(expire_passwords(users, **given, progress=progress))

    def do_preview(self, options: dict[str, Any]) -> Any:
        return asdict(preview_expiry(select(options), exclude=excluded(options)))

    def do_cancel(self, options: dict[str, Any]) -> Any:
        given = {"actor": find_user(options["actor"]), "note": options["note"]}
        if options["batch"] is not None:
            return {"users_cancelled": cancel_expiry(_find_batch(options["batch"]), **given)}
        if options["exclude"]:
            raise CommandError("cancel takes no --exclude: name the users whose demand is lifted.")
        users = select(options)
        lifted = 0
        if options["everyone"]:
            for batch in active_batches().filter(everyone=True):
                lifted = max(lifted, cancel_expiry(batch, **given))
        return {"users_cancelled": lifted + cancel_expiry(users, **given)}

    def do_resume(self, options: dict[str, Any]) -> Any:
        if options["batch"] is None:
            rows = ExpiryBatch.objects.using(feed.using).filter(state__in=UNFINISHED)
            return [
                _batch(batch if batch.state == BatchState.STAGING else resume_expiry(batch))
                for batch in rows.order_by("pk")
            ]
        batch = _find_batch(options["batch"])
        users = None
        if batch.state == BatchState.STAGING and not batch.everyone:
            users = select(options)
        with self.progress(options) as progress:
            out = excluded(options)
            return _batch(resume_expiry(batch, users, exclude=out, progress=progress))

    def do_status(self, options: dict[str, Any]) -> Any:
        if options["user"]:
            users = get_user_model()._base_manager.using(feed.using)
            return [
                {"user": user.get_username(), **asdict(password_status(user))}
                for user in users.filter(pk__in=find_users(options["user"]))
            ]
        state, adapter = read_state(), get_adapter()
        batches = ExpiryBatch.objects.using(feed.using)
        return {
            "enforced": conf.enforce,
            "counter": state.counter,
            "open_demands": Demand.objects.using(feed.using).count(),
            "demands_on_everyone": active_batches().filter(everyone=True).count(),
            "unfinished_batches": batches.filter(state__in=UNFINISHED).count(),
            "indexed_sessions": SessionEntry.objects.using(feed.using).count(),
            "index_complete": state.index_complete,
            "session_engine": adapter.name,
        }

    def do_sessions(self, options: dict[str, Any]) -> Any:
        wanted = None
        if options["user"]:
            user = find_user(options["user"])
            wanted = user._meta.pk.value_to_string(user)
        rows = (
            {
                "session": shorten(row.key),
                "user": row.user_id,
                "flagged": row.flagged,
                "expires": row.expires,
            }
            for row in _stored()
            if (wanted is None or row.user_id == wanted) and (row.flagged or not options["flagged"])
        )
        found = islice(rows, options["limit"])
        if options["format"] == "json":
            return list(found)
        for row in found:
            self.tell(row, options)
        return []

    def do_check(self, options: dict[str, Any]) -> Any:
        if options["user"]:
            return _explain(find_user(options["user"]))
        results = probe()
        wrong = [name for name, held, wanted in results if held != wanted]
        if wrong:
            raise CommandError(
                f"Not as it should be: {', '.join(wrong)}. Is PasswordExpiryMiddleware in "
                "MIDDLEWARE after AuthenticationMiddleware, and PWEXPIRE_ENFORCE not False?"
            )
        return [{"request": name, "held": held} for name, held, _ in results]

    def do_prune(self, options: dict[str, Any]) -> Any:
        if options["chunk"] < 1:
            raise CommandError("--chunk must be 1 or more.")
        return {"entries": prune_index(options["chunk"]), "batches": prune_batches()}

    @contextmanager
    def progress(self, options: dict[str, Any]) -> Iterator[Progress | None]:
        bar_of = _find_tqdm()
        if bar_of is None or options["format"] == "json" or not sys.stderr.isatty():
            yield None
            return
        with bar_of(unit=" rows", file=sys.stderr) as bar:

            def progress(done: int, total: int | None) -> None:
                bar.n = done
                bar.refresh()

            yield progress


def _find_tqdm() -> Any:
    """The progress bar of the extra ``progress``, if it is there."""
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm


def _show(value: Any) -> str:
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _batch(batch: ExpiryBatch) -> dict[str, Any]:
    return {
        "batch": batch.pk,
        "state": str(batch.state),
        "reason": str(batch.reason),
        **{name: getattr(batch, name) for name in COUNTS},
    }


def _find_batch(pk: int) -> ExpiryBatch:
    batch = ExpiryBatch.objects.using(feed.using).filter(pk=pk).first()
    if batch is None:
        raise CommandError(f"There is no batch {pk}.")
    return batch


def _stored() -> Iterator[StoredSession]:
    """All that is known of stored sessions: by listing them, else by the index."""
    adapter = get_adapter()
    if adapter.supports_enumerate:
        yield from adapter.sessions()
        return
    entries = SessionEntry.objects.using(feed.using).order_by("pk").iterator(chunk_size=1000)
    while chunk := [entry.pk for entry in islice(entries, 1000)]:
        for key in sorted(adapter.alive(chunk)):
            yield StoredSession.of(key, dict(adapter.store_class(key).items()), None)


def _explain(user: Any) -> dict[str, Any]:
    status = password_status(user)
    if not user.has_usable_password():
        verdict = "free: there is no usable password"
    elif not status.must_change:
        verdict = "free: nothing is demanded"
    else:
        verdict = f"held: {status.reason}"
    return {"user": user.get_username(), "verdict": verdict, **asdict(status)}

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, fields
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from django.contrib.auth import get_user_model
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import Error as DatabaseFault

from pwexpire.conf import conf
from pwexpire.exceptions import PasswordExpiryError, TasksUnavailable
from pwexpire.feed import feed
from pwexpire.management.arguments import add_verbs
from pwexpire.management.formats import WRITERS, Write, replacing
from pwexpire.management.listing import list_sessions, why_unlisted
from pwexpire.management.probe import explain_results, probe
from pwexpire.management.selectors import (
    SELECTORS,
    excluded,
    find_user,
    find_users,
    names_somebody,
    select,
)
from pwexpire.management.verbs import VERBS
from pwexpire.management.verdict import explain
from pwexpire.models import BatchState, ExpiryBatch, SessionEntry
from pwexpire.pages import find_url
from pwexpire.services.batches import (
    expire_everyone,
    expire_passwords,
    preview_expiry,
    resume_expiry,
    stop_expiry,
)
from pwexpire.services.cancellations import cancel_expiry
from pwexpire.services.evidence import usernames
from pwexpire.services.history import prune_history
from pwexpire.services.index import build_index, prune_index, uses_index
from pwexpire.services.notices import announce_expiry, prune_notices
from pwexpire.services.pruning import prune_batches, prune_cancellations, prune_cancelled
from pwexpire.services.staging import Progress
from pwexpire.services.status import (
    active_batches,
    active_demands,
    open_demand,
    password_status,
    read_state,
    usable_password,
)
from pwexpire.sessionstore.registry import get_adapter

UNFINISHED = (BatchState.STAGING, BatchState.STAGED, BatchState.ACTIVE)
COUNTS = (
    "users_expired",
    "users_already_expired",
    "users_not_applicable",
    "sessions_flagged",
    "sessions_ended",
)
CAPABILITIES = ("enumerate", "flag", "end", "user_lookup", "index")


class Command(BaseCommand):
    help = "Expire passwords, and see what is expired."

    def add_arguments(self, parser: CommandParser) -> None:
        add_verbs(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            verb = options["verb"]
            with self.destination(options) as write:
                if verb in VERBS:
                    answer = VERBS[verb].run(options, self.stdout)
                else:
                    answer = getattr(self, f"do_{verb}")(options)
                WRITERS[options["format"]](answer, write)
        except (PasswordExpiryError, ImproperlyConfigured) as error:
            raise CommandError(str(error)) from None
        except KeyboardInterrupt:
            raise CommandError(
                "Interrupted. manage.py pwexpire resume goes on with what is in force; "
                "manage.py pwexpire status counts the unfinished batches."
            ) from None
        except DatabaseFault as error:
            said = str(error).partition("\n")[0]
            raise CommandError(f"The database refused, is it migrated? {said}") from error

    def destination(self, options: dict[str, Any]) -> AbstractContextManager[Write]:
        if options.get("output"):
            return replacing(Path(options["output"]), force=options["force"])
        return nullcontext(partial(self.stdout.write, ending=""))

    def do_expire(self, options: dict[str, Any]) -> Any:
        users, out = select(options), excluded(options)
        if options["dry_run"]:
            return self.do_preview(options)
        given = {name: options[name] for name in ("reason", "require", "sessions", "note")}
        given |= {"actor": find_user(options["actor"]), "exclude": out}
        given["selection"] = _as_typed(options)
        with self.progress(options) as progress:
            if options["everyone"]:
                batch, enqueue = expire_everyone(**given, progress=progress), None
            else:
                enqueue = _enqueuer(options)
                defer = enqueue is not None
                batch = expire_passwords(users, **given, progress=progress, defer=defer)
        if enqueue is not None:
            enqueue(batch)
        told = _batch(batch)
        if options["announce"] and batch.number is not None:  # else it met nobody
            report = announce_expiry(batch)
            told |= {"mails_sent": report.sent, "mails_failed": report.failed}
        return told

    def do_preview(self, options: dict[str, Any]) -> Any:
        return asdict(preview_expiry(select(options), exclude=excluded(options)))

    def do_cancel(self, options: dict[str, Any]) -> Any:
        given = {"actor": find_user(options["actor"]), "note": options["note"]}
        if options["batch"] is not None:
            if names_somebody(options):
                raise CommandError("--batch lifts all of a batch: it goes with no selector.")
            return {"users_cancelled": cancel_expiry(_find_batch(options["batch"]), **given)}
        if options["exclude"]:
            raise CommandError("cancel takes no --exclude: name the users whose demand is lifted.")
        users = select(options)
        if not options["everyone"]:
            return {"users_cancelled": cancel_expiry(users, **given)}
        lifted = users.filter(usable_password() & open_demand()).count()
        for batch in active_batches().filter(everyone=True):
            cancel_expiry(batch, **given)
        cancel_expiry(users, **given)
        return {"users_cancelled": lifted}

    def do_resume(self, options: dict[str, Any]) -> Any:
        enqueue = _enqueuer(options)
        defer = enqueue is not None
        if options["batch"] is None:
            if names_somebody(options):
                raise CommandError("Give the ID of the batch whose users these are.")
            rows = ExpiryBatch.objects.using(feed.using).filter(state__in=UNFINISHED)
            batches = [
                batch if batch.state == BatchState.STAGING else resume_expiry(batch, defer=defer)
                for batch in rows.order_by("pk")
            ]
        else:
            batch, users = _find_batch(options["batch"]), None
            selecting = batch.state in (BatchState.STAGING, BatchState.STOPPED)
            if selecting and batch.number is None and not batch.everyone:
                users = select(options)
            with self.progress(options) as progress:
                out = excluded(options)
                resume_expiry(batch, users, exclude=out, progress=progress, defer=defer)
            batches = [batch]
        if enqueue is not None:
            for batch in batches:
                enqueue(batch)
        told = [_batch(batch) for batch in batches]
        return told if options["batch"] is None else told[0]

    def do_stop(self, options: dict[str, Any]) -> Any:
        batch = _find_batch(options["batch"])
        return {"batch": batch.pk, "stopped": stop_expiry(batch), "state": str(batch.state)}

    def do_reindex(self, options: dict[str, Any]) -> Any:
        adapter = get_adapter()
        if not uses_index(adapter) or not adapter.supports_enumerate:
            raise CommandError(
                f"The session engine {adapter.name} needs no index, or cannot be listed, "
                "or PWEXPIRE_SESSION_INDEX is off: there is nothing to do."
            )
        with self.progress(options) as progress:
            return {"entries_added": build_index(adapter, progress)}

    def do_status(self, options: dict[str, Any]) -> Any:
        if options["user"]:
            users = get_user_model()._base_manager.using(feed.using)
            return [_status(user) for user in users.filter(pk__in=find_users(options["user"]))]
        state, adapter = read_state(), get_adapter()
        batches = ExpiryBatch.objects.using(feed.using)
        return {
            "enforced": conf.enforce,
            "counter": state.counter,
            "open_demands": active_demands(batch__holds=True).count(),
            "demands_on_everyone": active_batches().filter(everyone=True).count(),
            "unfinished_batches": batches.filter(state__in=UNFINISHED).count(),
            "stopped_batches": batches.filter(state=BatchState.STOPPED).count(),
            "indexed_sessions": SessionEntry.objects.using(feed.using).count(),
            "index_complete": state.index_complete,
            "session_engine": adapter.name,
            "session_engine_can": [
                can for can in CAPABILITIES if getattr(adapter, f"supports_{can}")
            ],
        }

    def do_sessions(self, options: dict[str, Any]) -> Any:
        if options["limit"] is not None and options["limit"] < 0:
            raise CommandError("--limit must be 0 or more.")
        if (said := why_unlisted()) is not None:
            self.stderr.write(said)
        user = find_user(options["user"])
        return islice(list_sessions(user, flagged=options["flagged"]), options["limit"])

    def do_check(self, options: dict[str, Any]) -> Any:
        if options["user"]:
            return explain(find_user(options["user"]))
        find_url(conf.change_url)
        results = probe()
        wrong = explain_results(results)
        if wrong is not None:
            raise CommandError(wrong)
        return [{"request": one.request, "held": one.held} for one in results]

    def do_prune(self, options: dict[str, Any]) -> Any:
        if options["chunk"] < 1:
            raise CommandError("--chunk must be 1 or more.")
        return {
            "entries": prune_index(options["chunk"]),
            "demands": prune_cancelled(options["chunk"]),
            "batches": prune_batches(options["chunk"]),
            "cancellations": prune_cancellations(options["chunk"]),
            "old_passwords": prune_history(options["chunk"]),
            "notices": prune_notices(options["chunk"]),
        }

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


def _enqueuer(options: dict[str, Any]) -> Callable[[ExpiryBatch], None] | None:
    """What hands a batch over to tasks, if that was asked for and there is anybody to do them."""
    if not options["enqueue"]:
        return None
    from pwexpire.tasks import NO_TASKS, enqueue_expiry, framework

    if framework is None:  # said before anything is written
        raise TasksUnavailable(NO_TASKS)
    return enqueue_expiry


def _find_tqdm() -> Any:
    """The progress bar of the extra ``progress``, if it is there."""
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm


def _as_typed(options: dict[str, Any]) -> str:
    """The selectors, for the record; the names of users do not outlive them."""
    words = []
    for name in (*SELECTORS, "everyone", "exclude"):
        value, option = options[name], f"--{name.replace('_', '-')}"
        if value is True:
            words.append(option)
        else:
            for one in value if isinstance(value, list) else filter(None, [value]):
                words += [option, "…" if name in ("user", "exclude") else shlex.quote(one)]
    return " ".join(words)


def _status(user: Any) -> dict[str, Any]:
    """``policy`` by its name, ``actor`` by his."""
    status = password_status(user)
    told = {field.name: getattr(status, field.name) for field in fields(status)}
    told["policy"] = status.policy.name
    told["actor"] = usernames([status.actor]).get(status.actor)
    return {"user": user.get_username(), **told}


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

"""What is demanded of a user, or the state of the whole site."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from django.contrib.auth import get_user_model

from pwexpire.conf import conf
from pwexpire.feed import feed
from pwexpire.management.batches import UNFINISHED
from pwexpire.management.console import AddVerb, Console
from pwexpire.management.formats import Facts
from pwexpire.management.selectors import find_users
from pwexpire.models import BatchState, ExpiryBatch, SessionEntry
from pwexpire.services.demands import batches_in_force, demands_in_force
from pwexpire.services.pruning import future_changes
from pwexpire.services.report import usernames
from pwexpire.services.status import (
    password_status,
    read_state,
)
from pwexpire.sessionstore.registry import get_adapter

CAPABILITIES = ("enumerate", "flag", "end", "user_lookup", "index")


def add(verb: AddVerb) -> None:
    parser = verb("status", "What is demanded of a user, or the state of the whole site.")
    parser.add_argument("--user", action="append", default=[], metavar="NAME")


def run(options: dict[str, Any], console: Console) -> Any:
    if options["user"]:
        users = get_user_model()._base_manager.using(feed.using)
        return [_describe_user(user) for user in users.filter(pk__in=find_users(options["user"]))]
    state, adapter = read_state(), get_adapter()
    batches = ExpiryBatch.objects.using(feed.using)
    return Facts(
        enforced=conf.enforce,
        counter=state.counter,
        open_demands=demands_in_force(batch__holds=True).count(),
        demands_on_everyone=batches_in_force().filter(everyone=True).count(),
        unfinished_batches=batches.filter(state__in=UNFINISHED).count(),
        stopped_batches=batches.filter(state=BatchState.STOPPED).count(),
        future_changes=future_changes().count(),
        indexed_sessions=SessionEntry.objects.using(feed.using).count(),
        index_complete=state.index_complete,
        session_engine=adapter.name,
        session_engine_can=[can for can in CAPABILITIES if getattr(adapter, f"supports_{can}")],
    )


def _describe_user(user: Any) -> Facts:
    """The status of ``user``, with the names of the policy and of the actor."""
    status = password_status(user)
    found = {field.name: getattr(status, field.name) for field in fields(status)}
    found["policy"] = status.policy.name
    found["actor"] = usernames([status.actor]).get(status.actor)
    return Facts(user=user.get_username(), **found)

"""Index the sessions that were there before pwexpire."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError

from pwexpire.management.console import AddVerb, Console
from pwexpire.services.index import build_index, uses_index
from pwexpire.sessionstore.registry import get_adapter


def add(verb: AddVerb) -> None:
    verb("reindex", "Index the sessions that were there before pwexpire.")


def run(options: dict[str, Any], console: Console) -> Any:
    adapter = get_adapter()
    if not uses_index(adapter) or not adapter.supports_enumerate:
        raise CommandError(
            f"The session engine {adapter.name} needs no index, or cannot be listed, "
            "or PWEXPIRE_SESSION_INDEX is off: there is nothing to do."
        )
    with console.progress() as progress:
        return {"entries_added": build_index(adapter, progress)}

"""The verbs of the command, a module each: ``add`` adds its arguments, ``run`` does it.

``run(options, console)`` returns the answer that is written: a dictionary, or an iterable of them.
"""

from __future__ import annotations

from types import ModuleType

from pwexpire.management.verbs import (
    backfill,
    cancel,
    check,
    expire,
    notify,
    policy,
    preview,
    prune,
    reindex,
    report,
    resume,
    sessions,
    status,
    stop,
)

VERBS: dict[str, ModuleType] = {
    module.__name__.rpartition(".")[2]: module
    for module in (
        expire,
        preview,
        cancel,
        stop,
        resume,
        status,
        sessions,
        check,
        reindex,
        prune,
        policy,
        notify,
        report,
        backfill,
    )
}

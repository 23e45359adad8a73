"""Verbs of the command with a module of their own: ``add`` its arguments, ``run`` it.

``run(options, stdout)`` returns what is told, as the ``do_`` methods of the command do.
"""

from __future__ import annotations

from types import ModuleType

from pwexpire.management.verbs import backfill, notify, policy, report

VERBS: dict[str, ModuleType] = {
    "backfill": backfill,
    "notify": notify,
    "policy": policy,
    "report": report,
}

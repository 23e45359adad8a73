"""The verbs of the command, a module each: ``add`` adds its arguments, ``run`` does it.

``run(options, console)`` returns the answer that is written: a dictionary, or an iterable of them.
"""

from __future__ import annotations

from importlib import import_module

# In the order in which the help lists them.
NAMES = (
    *("expire", "preview", "cancel", "stop", "resume", "status", "sessions", "check"),
    *("reindex", "prune", "policy", "notify", "report", "backfill"),
)
VERBS = {name: import_module(f"{__name__}.{name}") for name in NAMES}

"""What a verb says beside its answer: notices, questions and progress, all on standard error."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.core.management.base import CommandError

from pwexpire.services.staging import Progress

# Adds a verb by its name and what it does; returns the parser that takes its arguments.
AddVerb = Callable[..., ArgumentParser]
# More than any table has rows, and less than any database takes.
NUMBER_MAX = 10**12


class Console:
    """Standard error of the command; ``quiet``: no notices and no progress bar."""

    def __init__(self, stderr: Any, *, quiet: bool = False) -> None:
        self.stderr = stderr
        # A job may have closed it, and then Python has none.
        self.quiet = quiet or sys.stderr is None

    def notice(self, text: str) -> None:
        if not self.quiet:
            self.stderr.write(text)

    def confirm(self, what: str) -> None:
        """Ask on a terminal whether to go on; raise ``CommandError`` elsewhere, or on a no."""
        # A job without a terminal has nobody to ask, and its standard input may be closed.
        asking = sys.stderr is not None and has_stdin() and sys.stdin.isatty()
        if not asking:
            raise CommandError(f"{what} Nothing was done: confirm it with --yes.")
        self.stderr.write(f"{what} Continue? [y/N] ", ending="")
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise CommandError("Nothing was done.")

    @contextmanager
    def progress(self) -> Iterator[Progress | None]:
        """A progress bar on a terminal, if the extra ``progress`` is installed."""
        bar_of = _find_tqdm()
        if bar_of is None or self.quiet or not sys.stderr.isatty():
            yield None
            return
        with bar_of(unit=" rows", file=sys.stderr) as bar:

            def progress(done: int, total: int | None) -> None:
                bar.n = done
                bar.refresh()

            yield progress


def has_stdin() -> bool:
    return sys.stdin is not None and not sys.stdin.closed


def check_number(name: str, number: int | None, *, least: int) -> None:
    """Raise ``CommandError`` if an option has a number that no query takes."""
    if number is not None and number < least:
        raise CommandError(f"--{name} must be {least} or more.")
    if number is not None and number > NUMBER_MAX:
        raise CommandError(f"--{name} must be {NUMBER_MAX:,} or less.")


def _find_tqdm() -> Any:
    try:
        from tqdm import tqdm
    except ImportError:
        return None
    return tqdm

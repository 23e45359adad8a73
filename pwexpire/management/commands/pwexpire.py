from __future__ import annotations

import sys
from argparse import SUPPRESS, ArgumentParser
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import Error as DatabaseFault

from pwexpire.exceptions import PasswordExpiryError
from pwexpire.management.console import Console
from pwexpire.management.formats import WRITERS, Write, replacing, to_stream
from pwexpire.management.selectors import refuse_empty_values, refuse_undecodable_values
from pwexpire.management.verbs import VERBS
from pwexpire.retries import first_line


class Command(BaseCommand):
    help = "Expire passwords, and see what is expired."

    def add_arguments(self, parser: CommandParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

        def verb(name: str, text: str, formats: Sequence[str] = ("text", "json")) -> ArgumentParser:
            added: ArgumentParser = verbs.add_parser(name, help=text, description=text)
            added.add_argument("--format", choices=formats, default="text")
            _add_django_options(added)
            return added

        for module in VERBS.values():
            module.add(verb)

    def handle(self, *args: Any, **options: Any) -> None:
        quiet = options["verbosity"] == 0
        refuse_empty_values(options)
        refuse_undecodable_values(options)
        try:
            # The file is checked before the work: a name that is taken must not cost a run.
            with self.destination(options) as write:
                answer = VERBS[options["verb"]].run(options, Console(self.stderr, quiet=quiet))
                WRITERS[options["format"]](answer, write)
        except (PasswordExpiryError, ImproperlyConfigured) as error:
            raise CommandError(str(error)) from None
        except KeyboardInterrupt:
            raise CommandError(
                "Interrupted. manage.py pwexpire resume goes on with what is in force; "
                "manage.py pwexpire status counts the unfinished batches."
            ) from None
        except DatabaseFault as error:
            raise CommandError(
                f"The database refused: {first_line(error)}. "
                "If a table or a column is missing, run manage.py migrate."
            ) from error

    def destination(self, options: dict[str, Any]) -> AbstractContextManager[Write]:
        if options.get("output"):
            return replacing(Path(options["output"]), force=options["force"])
        if sys.stdout is None and options.get("stdout") is None:  # a job may have closed it
            return nullcontext(len)
        return to_stream(self.stdout)


def _add_django_options(parser: ArgumentParser) -> None:
    """Let the options that every command of Django has stand after the verb as well."""
    # A default would overwrite what was given before the verb.
    add = parser.add_argument_group("options of Django", argument_default=SUPPRESS).add_argument
    add("-v", "--verbosity", type=int, choices=range(4), help="0: no notices, no progress bar")
    for name in ("--settings", "--pythonpath"):
        add(name)
    for name in ("--traceback", "--no-color", "--force-color", "--skip-checks"):
        add(name, action="store_true")

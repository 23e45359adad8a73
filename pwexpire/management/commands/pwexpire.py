from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import Error as DatabaseFault

from pwexpire.exceptions import PasswordExpiryError
from pwexpire.management.arguments import add_verbs
from pwexpire.management.console import Console
from pwexpire.management.formats import WRITERS, Write, replacing
from pwexpire.management.verbs import VERBS


class Command(BaseCommand):
    help = "Expire passwords, and see what is expired."

    def add_arguments(self, parser: CommandParser) -> None:
        add_verbs(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        quiet = options["verbosity"] == 0
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
            said = str(error).partition("\n")[0]
            raise CommandError(f"The database refused, is it migrated? {said}") from error

    def destination(self, options: dict[str, Any]) -> AbstractContextManager[Write]:
        if options.get("output"):
            return replacing(Path(options["output"]), force=options["force"])
        return nullcontext(partial(self.stdout.write, ending=""))

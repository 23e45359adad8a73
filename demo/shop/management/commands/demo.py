from __future__ import annotations

import signal
import sys
import tempfile
from argparse import ArgumentParser
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import httpx
from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError

from shop.seed import PEOPLE, seed


class Command(BaseCommand):
    help = "Serves the demo shop, or plays the whole story against it over HTTP (--tour)."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--port", type=int, default=8000, help="port of 127.0.0.1 (8000)")
        parser.add_argument("--reset", action="store_true", help="start over with a new database")
        parser.add_argument(
            "--tour",
            action="store_true",
            help="play the story against a server and a database of its own, then exit",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if options["tour"]:
            self.tour()
        else:
            self.serve(options["port"], reset=options["reset"])

    def serve(self, port: int, *, reset: bool) -> None:
        if not 0 < port < 65536:
            raise CommandError("--port must be between 1 and 65535.")
        if reset:
            Path(settings.DATABASES["default"]["NAME"]).unlink(missing_ok=True)
        call_command("migrate", verbosity=0, interactive=False)
        made = seed()
        self.stdout.write(f"\nThe shop is at http://127.0.0.1:{port}/\n\n")
        for person in PEOPLE:
            self.stdout.write(f"  {person.name:<7}{person.password:<18}{person.role}")
        if not made:
            self.stdout.write("\nThey were there already, as you left them; --reset starts over.")
        self.stdout.write("")
        call_command("runserver", f"127.0.0.1:{port}", use_reloader=False)

    def tour(self) -> None:
        from shop.tour.browser import TourError
        from shop.tour.report import Report
        from shop.tour.server import copy_database, mails_of, make_database, serve
        from shop.tour.story import Story

        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        if isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")
        report = Report(self.stdout.write, plain=not _can_print("✓✗"))
        with tempfile.TemporaryDirectory(prefix="pwexpire-demo-") as folder:
            database, other = Path(folder, "tour.sqlite3"), Path(folder, "without-hook.sqlite3")
            make_database(database)
            copy_database(database, other)
            with serve(database) as url, serve(other, expire_on_lockout=False) as url_without:
                self.stdout.write(f"A server with a database of its own runs at {url}")
                try:
                    Story(report, url, url_without, mails_of(database)).play()
                except (TourError, httpx.HTTPError) as error:
                    report.expect(False, f"the step could not be finished: {error!r}")
        kept = report.expectations - len(report.failed)
        self.stdout.write(f"\n{kept} of {report.expectations} expectations were met.")
        if report.failed:
            raise CommandError("Not as it should be:\n  " + "\n  ".join(report.failed))


def _can_print(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True

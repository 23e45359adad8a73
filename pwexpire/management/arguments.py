"""The verbs of the command, each with the options that every verb takes."""

from __future__ import annotations

from argparse import SUPPRESS, ArgumentParser
from collections.abc import Sequence

from django.core.management.base import CommandParser

from pwexpire.management.verbs import VERBS


def add_verbs(parser: CommandParser) -> None:
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, text: str, formats: Sequence[str] = ("text", "json")) -> ArgumentParser:
        added: ArgumentParser = verbs.add_parser(name, help=text, description=text)
        added.add_argument("--format", choices=formats, default="text")
        _add_django_options(added)
        return added

    for module in VERBS.values():
        module.add(verb)


def _add_django_options(parser: ArgumentParser) -> None:
    """Let the options that every command of Django has stand after the verb as well."""
    # A default would overwrite what was given before the verb.
    add = parser.add_argument_group("options of Django", argument_default=SUPPRESS).add_argument
    add("-v", "--verbosity", type=int, choices=range(4), help="0: no notices, no progress bar")
    for name in ("--settings", "--pythonpath"):
        add(name)
    for name in ("--traceback", "--no-color", "--force-color", "--skip-checks"):
        add(name, action="store_true")

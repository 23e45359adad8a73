"""How an answer is written: as text, JSON or CSV, to standard output or into a file."""

from __future__ import annotations

import csv
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from django.core.management.base import CommandError

Write = Callable[[str], object]
# What a spreadsheet takes for a formula at the start of a cell (OWASP: CSV injection), also as the
# full-width characters of East Asian keyboards.
FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n", "\0", "＝", "＋", "－", "＠")


class Rows(Iterator[dict[str, Any]]):
    """Rows that are made while they are written; ``columns`` are known before there is any."""

    def __init__(self, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        self.columns = columns
        self.rows = iter(rows)

    def __next__(self) -> dict[str, Any]:
        return dict(zip(self.columns, next(self.rows), strict=True))


def show(value: Any) -> str:
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def write_json(answer: Any, write: Write) -> None:
    if not isinstance(answer, Iterator):
        write(f"{json.dumps(answer, default=show)}\n")
        return
    before = "["
    for row in answer:
        write(f"{before}{json.dumps(row, default=show)}")
        before = ",\n"
    write("[]\n" if before == "[" else "]\n")


def write_text(answer: Any, write: Write) -> None:
    for row in [answer] if isinstance(answer, dict) else answer:
        said = row.get("sentences") or [
            "  ".join(f"{name}: {show(value)}" for name, value in row.items())
        ]
        write("\n".join(said) + "\n")


def write_csv(answer: Rows, write: Write) -> None:
    """As RFC 4180 has it: with a header, and lines that end with CR LF."""
    writer = csv.writer(SimpleNamespace(write=write))
    writer.writerow(answer.columns)
    for row in answer.rows:
        writer.writerow([cell(value) for value in row])


def cell(value: Any) -> Any:
    """Nothing is empty, truth in small letters, and no text is taken for a formula."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return value
    text = show(value)
    return f"'{text}" if text.startswith(FORMULAS) else text


WRITERS: dict[str, Callable[[Any, Write], None]] = {
    "csv": write_csv,
    "json": write_json,
    "text": write_text,
}


@contextmanager
def replacing(path: Path, *, force: bool) -> Iterator[Write]:
    """Write beside ``path`` and move it there at the end, for its owner alone to read.

    Raises ``CommandError`` where something is there already, unless ``force`` and it is a file.
    """
    _check_free(path, force=force)
    try:
        number, made = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise CommandError(f"{path} cannot be written: {error.strerror}.") from None
    try:
        with open(number, "w", encoding="utf-8", newline="") as file:
            yield file.write
            file.flush()
            os.fsync(file.fileno())
        _check_free(path, force=force)
        os.replace(made, path)
    except OSError as error:
        raise CommandError(f"{path} cannot be written: {error.strerror}.") from None
    finally:
        Path(made).unlink(missing_ok=True)


def _check_free(path: Path, *, force: bool) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise CommandError(f"{path} cannot be written: {error.strerror}.") from None
    if not stat.S_ISREG(found.st_mode):
        raise CommandError(f"{path} is no file: give the name of one.")
    if not force:
        raise CommandError(f"{path} is there already: give another name, or --force.")

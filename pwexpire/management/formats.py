"""How an answer is written: as text, JSON or CSV, to standard output or into a file."""

from __future__ import annotations

import csv
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from itertools import chain, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from django.core.management.base import CommandError
from django.utils import timezone

Write = Callable[[str], object]
# What a spreadsheet takes for a formula at the start of a cell (OWASP: CSV injection), also as the
# full-width characters of East Asian keyboards.
FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n", "\0", "＝", "＋", "－", "＠")


DAY = timedelta(days=1)
# As many rows are read before the widths of a table are known.
WIDTHS_FROM = 100


class Rows(Iterator[dict[str, Any]]):
    """Rows that are made while they are written; ``columns`` are known before there is any."""

    def __init__(self, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        self.columns = columns
        self.rows = iter(rows)

    def __next__(self) -> dict[str, Any]:
        return dict(zip(self.columns, next(self.rows), strict=True))


class Facts(dict[str, Any]):
    """An answer that is written as a table of two columns, where it is written as text."""


def show(value: Any) -> str:
    """For programs: times as ISO 8601 has them."""
    if isinstance(value, str):  # most are
        return value
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
    if isinstance(answer, Rows):
        _write_table(answer, write)
        return
    for row in [answer] if isinstance(answer, dict) else answer:
        if isinstance(row, Facts):
            width = max(map(len, row))
            lines = [
                f"{name:<{width}}  {show_plain(value)}".rstrip() for name, value in row.items()
            ]
        else:
            lines = row.get("sentences") or [
                "  ".join(f"{name}: {show_plain(value)}" for name, value in row.items())
            ]
        write("\n".join(lines) + "\n")


def _write_table(answer: Rows, write: Write) -> None:
    # Rows are streamed: the first page decides on the widths, a longer value later shifts its line.
    page = [[show_plain(value) for value in row] for row in islice(answer.rows, WIDTHS_FROM)]
    widths = [max(map(len, column)) for column in zip(answer.columns, *page, strict=True)]
    rest = ([show_plain(value) for value in row] for row in answer.rows)
    for row in chain([list(answer.columns), ["-" * width for width in widths]], page, rest):
        cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        write("  ".join(cells).rstrip() + "\n")


def show_plain(value: Any) -> str:
    """For people, on one line: yes and no, times with their zone, whole days, lists with commas."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return _show_moment(value)
    if isinstance(value, timedelta):
        return _show_interval(value)
    if isinstance(value, (list, tuple)):
        return ", ".join(map(show_plain, value)) or "-"
    return " ".join(show(value).split())


def _show_interval(interval: timedelta) -> str:
    if interval % DAY:
        return str(interval)
    return "1 day" if interval == DAY else f"{interval.days} days"


def _show_moment(moment: datetime) -> str:
    local = timezone.localtime(moment) if timezone.is_aware(moment) else moment
    zone = local.tzname() or timezone.get_default_timezone_name()
    return f"{local:%Y-%m-%d %H:%M} {zone}"


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
    return f"'{text}" if text[:1] in FORMULAS else text


WRITERS: dict[str, Callable[[Any, Write], None]] = {
    "csv": write_csv,
    "json": write_json,
    "text": write_text,
}


class _StreamLost(Exception):
    """Standard output takes no more: its reader has left, or the disk is full."""


@contextmanager
def to_stream(stream: Any) -> Iterator[Write]:
    """Write to ``stream``; the end of its reader (``head``) ends the work without a word.

    Raises ``CommandError`` where it cannot be written for another reason.
    """
    # A fault of the work itself, whose network or disk may break as well, is none of the stream.
    try:
        yield partial(_guard, partial(_write_encodable, stream))
        _guard(stream.flush)
    except _StreamLost as lost:
        # Python writes the rest at its exit, and would complain of it.
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())
        fault = lost.__cause__
        if isinstance(fault, OSError) and not isinstance(fault, BrokenPipeError):
            said = f"Standard output cannot be written: {fault.strerror}."
            raise CommandError(said) from None


def _guard(work: Callable[..., object], *args: Any) -> None:
    try:
        work(*args)
    except OSError as error:
        raise _StreamLost from error


def _write_encodable(stream: Any, text: str) -> None:
    """Write ``text``, with escapes for what the encoding of a terminal does not have."""
    try:
        stream.write(text, ending="")
    except UnicodeEncodeError as error:
        known = text.encode(error.encoding, "backslashreplace").decode(error.encoding)
        stream.write(known, ending="")


@contextmanager
def replacing(path: Path, *, force: bool) -> Iterator[Write]:
    """Write beside ``path`` and move it there at the end, for its owner alone to read.

    Raises ``CommandError`` where something is there already, unless ``force`` and it is a file.
    """
    _check_free(path, force=force)
    try:
        # Beside the file: across file systems a move is a copy, and can be seen half done.
        number, made = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise CommandError(f"{path} cannot be written: {error.strerror}.") from None
    try:
        with open(number, "w", encoding="utf-8", newline="") as file:
            yield file.write
            file.flush()
            # Before the move, or a crash could leave the name with nothing in it.
            os.fsync(file.fileno())
        # Again: somebody may have put a file there meanwhile.
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

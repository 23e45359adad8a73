"""The JSON file of a run: what was measured, on what, and how it is looked up and shown."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tomllib
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.bench.measure import table

Run = dict[str, Any]
Row = dict[str, Any]

ROOT = Path(__file__).resolve().parents[2]
DATABASES = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}


def header(options: dict[str, Any]) -> Run:
    """What is the same for all databases; ``figures`` is still empty."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20
    with open(ROOT / "pyproject.toml", "rb") as file:  # it need not be installed
        own = tomllib.load(file)["project"]["version"]
    versions = {"Django": version("Django"), "pwexpire": own}
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "cores": os.cpu_count(),
            "memory_mib": round(memory),
        },
        "versions": {"Python": platform.python_version(), **versions},
        "options": options,
        "section_seconds": {},
        "figures": [],
    }


def write(run: Run, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(run, indent=1, ensure_ascii=False) + "\n")


def read(path: Path) -> Run:
    return dict(json.loads(path.read_text()))


def digest(run: Run) -> str:
    """What a picture carries, so that it can be seen of which run it is."""
    return hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()


def rows(run: Run, key: str, database: str) -> list[Row]:
    """The measured figures of this key, in the order in which they were measured."""
    found = [row for row in run["figures"] if (row["key"], row["database"]) == (key, database)]
    return [row for row in found if row["value"] is not None]


def databases(run: Run, *keys: str) -> list[str]:
    """Those on which all of ``keys`` were measured."""
    return [name for name in DATABASES if all(rows(run, key, name) for key in keys)]


def digits(row: Row) -> int:
    """Near one the third digit counts; a count has none."""
    value = row["value"]
    counted = row["low"] is None and value == int(value)
    if counted or value >= 20:
        return 0
    return 1 if value >= 10 else 3 if 0.9 < value < 1.1 else 2


def number(row: Row) -> str:
    return f"{row['value']:,.{digits(row)}f}"


def shown(row: Row, *, interval: bool = True) -> str:
    unit = f" {row['unit']}" if row["unit"] not in ("", "times") else ""
    if row["low"] is None or not interval:
        return f"{number(row)}{unit}"
    low, high = (f"{row[end]:,.{digits(row)}f}" for end in ("low", "high"))
    return f"{number(row)} ({low} to {high}){unit}"


def wanted(row: Row) -> str:
    return f"{row['wanted']} {row['limit']:g}" if row["limit"] is not None else ""


def measured_wanted_met(figures: Iterable[Row]) -> str:
    """All figures, and beside each what there is to compare it with."""
    lines = []
    for row in figures:
        value = shown(row) if row["value"] is not None else ""
        other = row["beside"]
        beside = f"{other['name']}: {other['value']:.4g}" if other else ""
        on = DATABASES.get(row["database"], row["database"])
        lines.append([row["name"], on, value, wanted(row), row["met"] or "", beside])
    return table(["figure", "on", "measured", "wanted", "met", "beside it"], lines)

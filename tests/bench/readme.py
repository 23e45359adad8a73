"""The figures of the README: written, and compared, from the stored run that it shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.bench.measure import table
from tests.bench.record import DATABASES, ROOT, Run, number, rows, shown, wanted

README, PICTURE = ROOT / "README.md", ROOT / "demo" / "figures.png"
STORED = Path(__file__).with_name("figures.json")
BEGIN, END = "<!-- figures -->\n", "<!-- end of the figures -->\n"

# Of each the largest size. A figure with another key is in the JSON file alone.
SHOWN = (
    "flag_faster",
    "floor_faster",
    "flag_over_floor",
    "expire_faster",
    "one_ratio",
    "users_ratio",
    "users_mib",
    "everyone_ratio",
    "late",
    "loop",
    "waiting",
    "workers_faster",
    "rival_calls_added",
    "verdict_python",
    "verdict_ms",
    "feed_mib",
    "feed_seconds",
    "feed_asked",
    "preview_ratio",
)
REQUESTS = ("request_cpu", "request_calls", "request_reads_added", "request_writes_added")
OURS = "pwexpire, a poll a second"


def command(options: dict[str, Any]) -> str:
    words = ["python -m tests.bench"]
    words += [] if options["size"] == "full" else [f"--{options['size']}"]
    for name in ("full", "only", "on"):
        words += [f"--{name}", *options[name]] if options[name] else []
    return " ".join(words)


def written(run: Run) -> str:
    """What stands between the marks."""
    versions = ", ".join(f"{name} {number}" for name, number in run["versions"].items())
    parts = [
        f"The figures are of {run['date'][:10]}, with {versions}, on a machine of "
        f"{run['machine']['cores']} cores that did other work as well:",
        f"```sh\n{command(run['options'])}\n```",
        _requests(run, "sqlite"),
        _sentence(run),
        _others(run),
        _sizes(run),
    ]
    return BEGIN + "\n" + "\n\n".join(part for part in parts if part) + "\n\n" + END


def _requests(run: Run, database: str) -> str:
    """A row for each middleware."""
    lines = []
    for row in rows(run, REQUESTS[0], database):
        cells = [found for key in REQUESTS for found in rows(run, key, database)]
        own = [shown(cell) for cell in cells if cell["of"] == row["of"]]
        lines.append([row["of"], *own])
    head = f"a logged-in, unexpired request, against the same without ({DATABASES[database]})"
    return table([head, "processor time", "function calls", "queries", "writes"], lines)


def _sentence(run: Run) -> str:
    said = []
    for row in rows(run, REQUESTS[0], "postgresql"):
        if row["of"] == OURS:
            said.append(f"On PostgreSQL pwexpire takes {shown(row)} times the processor time.")
    for row in rows(run, "anonymous_queries", "sqlite"):
        said.append(f"An anonymous request without a cookie costs {number(row)} queries.")
    return " ".join(said)


def _others(run: Run) -> str:
    lines = []
    for key in SHOWN:
        found = {name: rows(run, key, name) for name in DATABASES}
        present = {name: each[-1] for name, each in found.items() if each}
        if present:
            cells = [shown(present[name]) if name in present else "" for name in DATABASES]
            limits = _of_each({name: wanted(row) for name, row in present.items()})
            met = _of_each({name: row["met"] or "" for name, row in present.items()})
            lines.append([next(iter(present.values()))["name"], *cells, limits, met])
    return table(["", *DATABASES.values(), "wanted", "met"], lines)


def _of_each(values: dict[str, str]) -> str:
    """Once, if it is the same on each database."""
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    return ", ".join(f"{DATABASES[name]}: {value}" for name, value in values.items() if value)


def _sizes(run: Run) -> str:
    """Where a commit is dear, the gain depends on how many are saved."""
    fewer = rows(run, "flag_faster", "postgresql")[:-1]
    gains = [f"{row['of']:,} sessions {shown(row, interval=False)}" for row in fewer]
    if not gains:
        return ""
    return f"Of fewer sessions, against the loop on PostgreSQL: {', '.join(gains)}."


def replaced(text: str, run: Run) -> str:
    """``text`` with what stands between the marks written anew."""
    before, _, rest = text.partition(BEGIN)
    return before + written(run) + rest.partition(END)[2]

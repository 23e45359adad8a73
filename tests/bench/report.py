"""The figures of one database as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tests.bench.measure import Spread, table


def report(found: dict[str, Any]) -> str:
    said = "Medians, in brackets their 95 % intervals (of fewer than six pairs: all of them)."
    parts = [f"## {found['versions']}", said]
    for name, tell in SECTIONS.items():
        if name in found:
            parts += tell(found[name])
    parts += [f"**{name} failed**: {error}" for name, error in found["failed"].items()]
    taken = ", ".join(f"{name} {value:.0f} s" for name, value in found["section_seconds"].items())
    parts.append(f"Time of the sections: {taken}.")
    return "\n\n".join(parts)


def seconds(value: Spread) -> str:
    return value.text(2 if value.median >= 1 else 4)


def _idle(found: dict[str, Any]) -> Iterator[str]:
    rows = []
    for row in found["requests"]:
        if "trouble" in row:
            rows.append([row["name"], row["trouble"], "", "", "", "", ""])
            continue
        cells = [row["time"].text(3), row["cpu"].text(3), f"{row['calls']:.3f}"]
        cells += [f"{row['added_us']:.1f}", f"{row['reads_added']:g}", f"{row['writes_added']:g}"]
        rows.append([row["name"], *cells])
    head = ["a logged-in request, with / without", "time", "CPU time", "calls", "µs added"]
    yield table([*head, "queries added", "writes added"], rows)
    yield "A view that does not read the session:"
    strangers = [
        [row["name"], f"{row['reads_added']:g}", f"{row['writes_added']:g}", row["vary"] or "none"]
        for row in found["strangers"]
    ]
    yield table(["request", "queries added", "writes added", "Vary"], strangers)


def _verdict(found: list[dict[str, Any]]) -> Iterator[str]:
    rows = [
        [row["name"], row["statements"]]
        + [f"{row[name]:.3f}" for name in ("ms", "database_ms", "python_ms")]
        for row in found
    ]
    yield table(["one user", "statements", "ms", "of the database", "of Python"], rows)


def _statements(found: dict[str, Any]) -> Iterator[str]:
    yield "Statements, with BEGIN, COMMIT, SAVEPOINT and RELEASE:"
    rows = [[work, row["without"], row["added"], row["bound"]] for work, row in found.items()]
    yield table(["work", "without pwexpire", "added", "at most"], rows)


def _flagging(found: list[dict[str, Any]]) -> Iterator[str]:
    yield "Seconds for the stored sessions of as many users; the loop loads, sets and saves each:"
    rows, notes = [], []
    for size in found:
        taken = [seconds(size["seconds"][way]) for way in size["seconds"]]
        rows.append([f"{size['sessions']:,}", *taken])
        floors = ", ".join(f"{name} {seconds(one)}" for name, one in size["floors"].items())
        note = f"- {size['sessions']:,} sessions: floor by {size['floor_way']} ({floors} s)"
        if size["looped"] < size["sessions"]:
            note += f"; the loop was measured on {size['looped']:,} and extrapolated"
        notes.append(note)
        if "flag_faster_than_loop_in_transaction" in size:
            inside = size["flag_faster_than_loop_in_transaction"].text(1)
            first = size["first_flag_faster_than_loop"].text(1)
            notes.append(
                f"- {size['sessions']:,} sessions: {inside} times as fast as that loop inside one "
                f"transaction; {first} times as fast as the loop when the index is built first"
            )
    ways = ["`flag_sessions`", "`expire_passwords`", "floor", "loop"]
    yield table(["sessions", *ways], rows)
    ratios = [
        [
            f"{size['sessions']:,}",
            *(size[f"{way}_faster_than_loop"].text(1) for way in ("flag", "expire", "floor")),
            *(size[f"{way}_over_floor"].text() for way in ("flag", "expire")),
            size["codec_share_of_floor"].text(),
            f"{size['flag_statements_per_1000']:.1f}",
        ]
        for size in found
    ]
    head = ["sessions", "`flag_sessions`, times as fast as the loop", "`expire_passwords`, times"]
    head += ["floor, times", "`flag_sessions` / floor", "`expire_passwords` / floor"]
    yield table([*head, "decoding and encoding / floor", "statements for 1,000"], ratios)
    yield "\n".join(notes)


def _memory(found: dict[str, Any]) -> Iterator[str]:
    (one, more), (expire_one, expire_more) = found["flag_mib"], found["expire_mib"]
    yield (
        f"- Peak of what Python allocates for {found['few']:,} and {found['many']:,} sessions: "
        f"{one:.1f} and {more:.1f} MiB (`flag_sessions`), {expire_one:.1f} and {expire_more:.1f} "
        "MiB (`expire_passwords`)"
    )


def _one(found: dict[str, Any]) -> Iterator[str]:
    columns = (found["sizes"], found["seconds"], found["ratios"])
    rows = [
        [f"{size:,}", f"{taken.median * 1000:.2f}", ratio.text()]
        for size, taken, ratio in zip(*columns, strict=True)
    ]
    head = ["expiring one user among so many sessions", "ms", f"/ among {found['sizes'][0]:,}"]
    yield table(head, rows)


def _users(found: dict[str, Any]) -> Iterator[str]:
    expire, bare = (seconds(found["seconds"][way]) for way in ("expire", "bare"))
    yield (
        f"- `expire_passwords` of a QuerySet of {found['users']:,} users: {expire} s; one bare "
        f"`UPDATE` of as many rows: {bare} s; ratio {found['ratio'].text()}\n"
        f"- Memory: {found['added_mib']:.0f} MiB more at the peak than the idle process, "
        f"which has {found['idle_mib']:.0f}"
    )


def _everyone(found: dict[str, Any]) -> Iterator[str]:
    (few, many), (one, other) = found["statements"], found["milliseconds"]
    yield (
        f"- `expire_everyone` of {found['few']:,} and of {found['many']:,} users: {one:.1f} and "
        f"{other:.1f} ms, ratio {found['ratio'].text()}; {few} and {many} statements"
    )


def _reach(found: dict[str, Any]) -> Iterator[str]:
    naive = found["loop_seconds"]
    yield (
        f"- `expire_everyone` of {found['sessions']:,} users, polled every "
        f"{found['poll_seconds']:g} s by {found['servers']} server processes: "
        f"{found['asked']} sessions that ask all the time are held after "
        f"{found['held_seconds'].text()} s; the last request that still passed was sent "
        f"{found['last_let_through_seconds'].text()} s after the call\n"
        f"- The loop would need {naive:,.0f} s for {found['sessions']:,} sessions (measured on "
        f"{found['looped']:,} and extrapolated): {naive / found['held_seconds'].median:,.0f} "
        "times as long"
    )


def _waiting(found: dict[str, Any]) -> Iterator[str]:
    one, other = found["microseconds"]
    cold, colder = found["first_milliseconds"]
    few, many = found["queries_added"]
    yield (
        f"- A request of an unexpired user while {found['few']:,} and {found['many']:,} expired "
        f"ones wait: {one:.0f} and {other:.0f} µs, ratio {found['ratio'].text(3)}; "
        f"{few:g} and {many:g} queries added; the first request of a process takes "
        f"{cold:.1f} and {colder:.1f} ms"
    )


def _feed(found: dict[str, Any]) -> Iterator[str]:
    yield (
        f"- {found['users']:,} open demands of one expiry: a process reads them in "
        f"{found['read_seconds']:.3f} s ({found['read_cpu_seconds']:.3f} s of its own processor "
        f"time, {found['statements']} statements) and keeps {found['view_mib']:.2f} MiB "
        f"(its peak grows by {found['added_mib']:.1f}); {found['asked_share']:.2%} of the "
        f"unexpired users are asked for, a lookup takes {found['lookup_us']:.1f} µs; the filter is "
        f"{found['building_share']:.1%} of the {found['expiry_seconds']:.1f} s of the expiry"
    )


def _workers(found: dict[str, Any]) -> Iterator[str]:
    if "trouble" in found:
        yield f"- Two workers: not measured, {found['trouble']}"
        return
    one, two = (seconds(found["seconds"][number]) for number in ("1", "2"))
    yield (
        f"- One batch of {found['sessions']:,} sessions: {one} s by one process, {two} s by two "
        f"at the same time: {found['faster'].text()} times as fast"
    )


def _evidence(found: dict[str, Any]) -> Iterator[str]:
    rows = [
        [f"`{verb}`", *(f"{one[name]:.1f}" for name in ("seconds_per_100_000", "added_mib"))]
        for verb, one in found["verbs"].items()
    ]
    head = [f"of {found['users']:,} users", "seconds for 100,000", "MiB more than the idle process"]
    yield table(head, rows)


def _operators(found: dict[str, Any]) -> Iterator[str]:
    lists = ", ".join(f"{name} {one:.3f} s" for name, one in found["list_seconds"].items())
    rates = ", ".join(f"{name} {one:,.0f}" for name, one in found["report_rows"].items())
    verbs = ", ".join(f"`{name}` {one:.1f} s" for name, one in found["verbs"].items())
    yield (
        f"- {found['users']:,} users, nine of ten with an open demand: expiring them "
        f"{found['expire_seconds']:.1f} s, `preview_expiry` of all "
        f"{found['preview_seconds']:.1f} s\n"
        f"- The admin's list, count and first page: {lists}; `status` "
        f"{found['status_seconds']:.3f} s\n"
        f"- `report`, rows a second: {rates}\n"
        f"- {verbs}\n"
        f"- An expiry of all in a request: {found['request_seconds']:.2f} s"
    )


SECTIONS: dict[str, Callable[[Any], Iterator[str]]] = {
    "idle": _idle,
    "verdict": _verdict,
    "statements": _statements,
    "flagging": _flagging,
    "memory": _memory,
    "one": _one,
    "users": _users,
    "everyone": _everyone,
    "reach": _reach,
    "feed": _feed,
    "waiting": _waiting,
    "workers": _workers,
    "report": _evidence,
    "operators": _operators,
}

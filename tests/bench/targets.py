"""What is wanted of the figures, and whether they are it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

# How many times as fast as the naive loop: where a commit is dear, more is saved.
FASTER_THAN_LOOP = {"sqlite": 10, "postgresql": 20}
LOGIN_REQUIRED = "Django's `LoginRequiredMiddleware`"


class Figure(NamedTuple):
    """What a section found. The first four fields are enough for a figure with a limit.

    ``most``: whether ``limit`` is the most, or the least, that it may be. The picture and the
    README find it by ``key`` and by ``of``: on what it was measured. ``beside``: the name of
    something to compare it with, and that figure.
    """

    name: str
    value: Any
    limit: float | None = None
    most: bool = True
    key: str = ""
    of: str | int | None = None
    unit: str = ""
    beside: tuple[str, Any] | None = None


def judge(value: Any, limit: float, *, most: bool) -> str:
    """Whether the limit is kept; an interval on both sides of it decides nothing."""
    ends = (value.low, value.high) if hasattr(value, "median") else (value, value)
    met = {end <= limit if most else end >= limit for end in ends}
    return "too noisy to say" if len(met) == 2 else "yes" if met == {True} else "no"


def figures(found: dict[str, Any]) -> list[dict[str, Any]]:
    """All figures of one database, as they stand in the JSON file of a run."""
    rows = [as_row(Figure(*one), found["database"]) for one in _figures(found)]
    for name, error in found["failed"].items():
        rows.append(as_row(Figure(f"{name}: {error}", None, key=name), found["database"]))
    return rows


def as_row(one: Figure, database: str) -> dict[str, Any]:
    value, limit = one.value, one.limit
    row = {"key": one.key or one.name, "of": one.of, "name": one.name, "database": database}
    row |= {"value": getattr(value, "median", value), "unit": one.unit}
    row |= {end: getattr(value, end, None) for end in ("low", "high")}
    row |= {"wanted": None if limit is None else "at most" if one.most else "at least"}
    row |= {"limit": limit, "met": None, "beside": None}
    if value is None:
        row["met"] = "not measured"
    elif limit is not None:
        row["met"] = judge(value, limit, most=one.most)
    if one.beside:
        name, other = one.beside
        row["beside"] = {"name": name, "value": getattr(other, "median", other)}
    return row


def _figures(found: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    if "idle" in found:
        yield from _idle(found["idle"])
    if "verdict" in found:
        row = found["verdict"][1]
        yield "statements of the verdict of one user", row["statements"], 1, True
        name = "the verdict of one user, in Python"
        yield Figure(name, row["python_ms"], 0.6, key="verdict_python", unit="ms")
        yield Figure(
            "the verdict of one user, with the database",
            row["ms"],
            1.5,
            key="verdict_ms",
            unit="ms",
        )
    for work, row in found.get("statements", {}).items():
        beside = ("without pwexpire", row["without"])
        name = f"statements added: {work}"
        yield Figure(name, row["added"], row["bound"], key="statements", of=work, beside=beside)
    for size in found.get("flagging", ()):
        yield from _flagging(size, FASTER_THAN_LOOP[found["database"]])
    if "memory" in found:
        memory = found["memory"]
        times = memory["many"] // memory["few"]
        yield f"memory of flagging {times} times as many sessions", memory["flag_ratio"], 1.2, True
    yield from _scale(found)
    if "reach" in found:
        yield from _reach(found["reach"])
    if "feed" in found:
        yield from _feed(found["feed"])
    if "waiting" in found:
        waiting = found["waiting"]
        name = f"a request of an unexpired user beside {waiting['many']:,} expired ones / "
        name += f"beside {waiting['few']:,}"
        yield Figure(name, waiting["ratio"], 1.05, key="waiting")
        yield "queries that they add to it", max(waiting["queries_added"]), 0, True
    if "operators" in found:
        yield from _operators(found["operators"], found["database"])
    if "faster" in found.get("workers", {}):
        yield from _workers(found["workers"], found["database"])


# Rows a second that a report is to write, where the database answers from a server.
REPORT_ROWS = {"no policy": 40_000, "by group": 20_000}


def _operators(found: dict[str, Any], database: str) -> Iterator[tuple[Any, ...]]:
    share = found["users"] / 1_000_000
    ratio = found["preview_seconds"] / found["expire_seconds"]
    name = f"`preview_expiry` of all {found['users']:,} users / their expiry"
    yield Figure(name, ratio, 1, key="preview_ratio", unit="times")
    name = "its statements for 10,000 users"
    yield name, found["preview_statements_per_chunk"], 8, True
    for name, value in found["list_seconds"].items():
        yield f"seconds of the admin's list ({name}), for a million", value / share, 0.3, True
    yield "seconds of `status`, for a million", found["status_seconds"] / share, 0.3, True
    for name, value in found["report_rows"].items() if database == "postgresql" else ():
        yield f"rows a second of `report` ({name})", value, REPORT_ROWS[name], False
    for name, value in found["verbs"].items():
        yield f"seconds of `{name}`, for a million", value / share, 60, True
    yield "seconds of an expiry of all in a request", found["request_seconds"], 2, True


def _idle(found: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    rows = {row["name"]: row for row in found["requests"]}
    stranger, ours, django = found["strangers"][0], found["requests"][1], rows[LOGIN_REQUIRED]
    for name, row in rows.items():
        if "trouble" in row:
            yield Figure(f"{name}: {row['trouble']}", None, key="request_cpu", of=name)
            continue
        limited = row is ours
        for figure, unit, what, limit in (
            ("time", "times", "time of a request", 1.03),
            ("cpu", "times", "processor time of a request", 1.03),
            ("calls", "times", "function calls of a request", 1.013),
            ("calls_added", "", "function calls added to a request", None),
            ("added_us", "µs", "processor time added to a request", None),
            ("reads_added", "", "queries added to a request", 0),
            ("writes_added", "", "writes added to a request", 0),
        ):
            beside = (LOGIN_REQUIRED, django[figure]) if limited else None
            if figure == "added_us" and row["reads_added"] and "lookup_us" in found:
                beside = ("one index lookup by the ORM", found["lookup_us"])
            yield Figure(
                f"{what}: {name}",
                row[figure],
                limit if limited else None,
                key=f"request_{figure}",
                of=name,
                unit=unit,
                beside=beside,
            )
    for figure, what in (("calls_added", "function calls"), ("added_us", "µs")):
        if django[figure] > 0:  # else the noise of the run is larger than what is measured
            ratio = ours[figure] / django[figure]
            name = f"{what} that pwexpire adds / those of {LOGIN_REQUIRED}"
            yield Figure(name, ratio, 2, key=f"rival_{figure}", unit="times")
    name = "queries of an anonymous request"
    yield Figure(name, stranger["reads_added"], 0, key="anonymous_queries")
    yield "`Vary: Cookie` on it", float("Cookie" in stranger["vary"]), 0, True


def _feed(found: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    users = f"{found['users']:,} open demands"
    name, most = f"what a process keeps for {users}", most_mib(found["users"])
    yield Figure(name, found["view_mib"], most, key="feed_mib", unit="MiB")
    name = f"time in which a new process reads {users}"
    yield Figure(name, found["read_seconds"], 0.1, key="feed_seconds", unit="s")
    name = "share of the unexpired users with an older session who are asked for once"
    yield Figure(name, found["asked_share"], 0.01, key="feed_asked")


def most_mib(users: int) -> int:
    return 4 if users <= 1_000_000 else 20


def _flagging(found: dict[str, Any], least: float) -> Iterator[Figure]:
    count, loop = found["sessions"], found["seconds"]["loop"]
    for way in ("pwexpire", "expire_passwords", "floor", "loop"):
        name = f"seconds for {count:,} sessions: {way}"
        yield Figure(name, found["seconds"][way], key=f"{way}_seconds", of=count, unit="s")
    for way, name in (("flag", "`flag_sessions`"), ("expire", "`expire_passwords`")):
        start, beside = f"{name} of {count:,}", ("the loop, in s", loop)
        fast, near = found[f"{way}_faster_than_loop"], found[f"{way}_over_floor"]
        name = f"{start}, against a loop that loads and saves each"
        yield Figure(name, fast, least, False, f"{way}_faster", count, "times as fast", beside)
        name = f"{start} / the least work there is"
        yield Figure(name, near, 1.5, True, f"{way}_over_floor", count, "times")
    name = "the least work there is (read, decode, encode, one batched write), against that loop"
    value = found["floor_faster_than_loop"]
    yield Figure(name, value, key="floor_faster", of=count, unit="times as fast")


def _scale(found: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    if "one" in found:
        sizes, ratios = found["one"]["sizes"], found["one"]["ratios"]
        for size, taken in zip(sizes, found["one"]["seconds"], strict=True):
            name = f"expiring one user among {size:,} sessions"
            yield Figure(name, taken, key="one_seconds", of=size, unit="s")
        name = f"expiring one user among {sizes[-1]:,} sessions / among {sizes[0]:,}"
        yield Figure(name, ratios[-1], 3, key="one_ratio", unit="times")
    if "users" in found:
        users = found["users"]
        name = f"`expire_passwords` of {users['users']:,} users / one bare `UPDATE` of as many rows"
        bare = ("bare `UPDATE`, in s", users["seconds"]["bare"])
        yield Figure(name, users["ratio"], 3, key="users_ratio", unit="times", beside=bare)
        name = "memory that it adds to an idle process"
        yield Figure(name, users["added_mib"], 60, key="users_mib", unit="MiB")
    for verb, one in found.get("report", {}).get("verbs", {}).items():
        yield f"MiB that `{verb}` adds to an idle process", one["added_mib"], 60, True
    if "everyone" in found:
        every = found["everyone"]
        name = f"`expire_everyone` of {every['many']:,} users / of {every['few']:,}"
        yield Figure(name, every["ratio"], 1.5, key="everyone_ratio", unit="times")


def _reach(found: dict[str, Any]) -> Iterator[Figure]:
    poll, loop = found["poll_seconds"], found["loop_seconds"]
    name = f"the last request that still passed one of {found['servers']} server processes after it"
    name += f", polled every {poll:g} s"
    beside = ("the loop for as many sessions (extrapolated), in s", loop)
    late = found["last_let_through_seconds"]
    yield Figure(name, late, poll, key="late", unit="s", beside=beside)
    yield Figure("the loop for as many sessions (extrapolated)", loop, key="loop", unit="s")


def _workers(found: dict[str, Any], database: str) -> Iterator[Figure]:
    for number, taken in found["seconds"].items():
        name = f"a batch of {found['sessions']:,} sessions by {number}"
        yield Figure(name, taken, key="batch_seconds", of=int(number), unit="s")
    name = f"a batch of {found['sessions']:,} sessions by two processes, against one"
    least = None if database == "sqlite" else 1.7  # SQLite has one writer
    yield Figure(
        name, found["faster"], least, False, "workers_faster", found["sessions"], "times as fast"
    )

"""What is wanted of the figures, and whether they are it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

# How many times as fast as the naive loop: where a commit is dear, more is saved.
FASTER_THAN_LOOP = {"sqlite": 10, "postgresql": 20}

# What it is, the figure, its limit, whether that is the most (or the least) it may be.
Wanted = tuple[str, Any, float, bool]


def read_password_state(value: Any, limit: float, *, most: bool) -> tuple[float, str]:
    """The figure, and whether it is met; an interval on both sides of the limit decides nothing."""
    ends = (value.low, value.high) if hasattr(value, "median") else (value, value)
    met = {end <= limit if most else end >= limit for end in ends}
    answer = "too noisy to say" if len(met) == 2 else "yes" if met == {True} else "no"
    return getattr(value, "median", value), answer


def targets(found: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for name, value, limit, most in _wanted(found):
        figure, answer = read_password_state(value, limit, most=most)
        target = f"at {'most' if most else 'least'} {limit:g}"
        rows.append({"name": name, "value": figure, "target": target, "met": answer})
    return rows


def _wanted(found: dict[str, Any]) -> Iterator[Wanted]:
    if "idle" in found:
        yield from _idle(found["idle"])
    if "verdict" in found:
        row = found["verdict"][1]
        yield "statements of the verdict of one user", row["statements"], 1, True
        yield "ms of it in Python", row["python_ms"], 0.6, True
        yield "ms of it in all", row["ms"], 1.5, True
    for work, row in found.get("statements", {}).items():
        yield f"statements added to a {work}", row["added"], row["bound"], True
    for size in found.get("flagging", ()):
        yield from _flagging(size, FASTER_THAN_LOOP[found["database"]])
    if "memory" in found:
        memory = found["memory"]
        times = memory["many"] // memory["few"]
        yield f"memory of flagging {times} times as many sessions", memory["flag_ratio"], 1.2, True
    yield from _scale(found)
    if "reach" in found:
        late, poll = found["reach"]["last_let_through_seconds"], found["reach"]["poll_seconds"]
        yield "seconds after which a session still passed one of four servers", late, poll, True
    if "feed" in found:
        yield from _feed(found["feed"])
    if "waiting" in found:
        waiting = found["waiting"]
        name = f"a request beside {waiting['many']:,} waiting users / {waiting['few']:,}"
        yield name, waiting["ratio"], 1.05, True
        yield "queries that they add to it", max(waiting["queries_added"]), 0, True
    if "operators" in found:
        yield from _operators(found["operators"], found["database"])
    workers = found.get("workers", {})
    if "faster" in workers and found["database"] != "sqlite":
        yield "two workers, times as fast as one", workers["faster"], 1.7, False


# Rows a second that a report is to write, where the database answers from a server.
REPORT_ROWS = {"no policy": 40_000, "by group": 20_000}


def _operators(found: dict[str, Any], database: str) -> Iterator[Wanted]:
    share = found["users"] / 1_000_000
    ratio = found["preview_seconds"] / found["expire_seconds"]
    yield "`preview_expiry` of all / their expiry", ratio, 1, True
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


def _idle(found: dict[str, Any]) -> Iterator[Wanted]:
    row, stranger = found["requests"][1], found["strangers"][0]
    yield "an idle request takes, times", row["time"], 1.03, True
    yield "the same in CPU time", row["cpu"], 1.03, True
    yield "the same in function calls", row["calls"], 1.013, True
    django = next(one for one in found["requests"] if "LoginRequired" in one["name"])
    for unit, name in (("function calls", "calls_added"), ("µs", "added_us")):
        added = row[name] / django[name]
        yield f"{unit} that it adds / `LoginRequiredMiddleware`", added, 2, True
    yield "queries that it adds", row["reads_added"], 0, True
    yield "writes that it adds", row["writes_added"], 0, True
    yield "queries of an anonymous request", stranger["reads_added"], 0, True
    yield "`Vary: Cookie` on it", float("Cookie" in stranger["vary"]), 0, True


def _feed(found: dict[str, Any]) -> Iterator[Wanted]:
    users = f"{found['users']:,} open demands"
    yield f"MiB that a process keeps for {users}", found["view_mib"], most_mib(found["users"]), True
    yield f"seconds in which it reads {users}", found["read_seconds"], 0.1, True
    yield "share of the unexpired users who are asked for", found["asked_share"], 0.01, True


def most_mib(users: int) -> int:
    return 4 if users <= 1_000_000 else 20


def _flagging(found: dict[str, Any], least: float) -> Iterator[Wanted]:
    for way, name in (("flag", "`flag_sessions`"), ("expire", "`expire_passwords`")):
        start = f"{name} of {found['sessions']:,}"
        yield f"{start}, times as fast as the loop", found[f"{way}_faster_than_loop"], least, False
        yield f"{start} / floor", found[f"{way}_over_floor"], 1.5, True


def _scale(found: dict[str, Any]) -> Iterator[Wanted]:
    if "one" in found:
        one = found["one"]
        name = f"expiring one user among {one['sizes'][-1]:,} sessions / {one['sizes'][0]:,}"
        yield name, one["ratios"][-1], 3, True
    if "users" in found:
        users = found["users"]
        yield f"expiring {users['users']:,} users / one bare `UPDATE`", users["ratio"], 3, True
        yield "MiB that it adds to an idle process", users["added_mib"], 60, True
    for verb, one in found.get("report", {}).get("verbs", {}).items():
        yield f"MiB that `{verb}` adds to an idle process", one["added_mib"], 60, True
    if "everyone" in found:
        every = found["everyone"]
        name = f"`expire_everyone` of {every['many']:,} users / {every['few']:,}"
        yield name, every["ratio"], 1.5, True

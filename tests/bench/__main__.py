"""What pwexpire costs, as ratios within one run: ``python -m tests.bench [--quick] [--json FILE]``.

Two sides are measured in turns, in alternating order, and the ratios of the pairs are summed up by
their median and its 95 % interval: what else the machine does meets both sides.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

SETTINGS = "tests.bench.settings"


def find_troubles(peers: list[str]) -> dict[str, str]:
    """Why a peer is not measured. Asked in another process: one may break Django's setup."""
    troubles = {}
    for peer in peers:
        if find_spec(peer) is None:
            troubles[peer] = "not installed"
            continue
        environ = {**os.environ, "DJANGO_SETTINGS_MODULE": SETTINGS, "PWEXPIRE_BENCH_PEERS": peer}
        script = f"import django; django.setup(); import {peer}.middleware"
        asked = subprocess.run(
            [sys.executable, "-c", script], env=environ, capture_output=True, text=True
        )
        if asked.returncode:
            lines = asked.stderr.strip().splitlines() or ["no message"]
            troubles[peer] = f"does not work on this Django: {lines[-1]}"
    return troubles


def plain(value: object) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    raise TypeError(f"{value!r} is not for JSON")


def judge(value: Any, limit: float, *, most: bool) -> tuple[float, str]:
    """The figure, and whether it is met; an interval on both sides of the limit decides nothing."""
    ends = (value.low, value.high) if hasattr(value, "median") else (value, value)
    met = {end <= limit if most else end >= limit for end in ends}
    answer = "too noisy to say" if len(met) == 2 else "yes" if met == {True} else "no"
    return getattr(value, "median", value), answer


def targets(found: dict[str, Any]) -> list[dict[str, Any]]:
    idle, flagging, stranger = found["idle"][1], found["flagging"], found["strangers"][0]
    wanted = [
        ("an idle request takes, times", idle["time"], 1.03, True),
        ("the same in CPU time", idle["cpu"], 1.03, True),
        ("the same in function calls", idle["calls"], 1.03, True),
        ("queries that it adds", idle["reads_added"], 0, True),
        ("writes that it adds", idle["writes_added"], 0, True),
        ("queries of an anonymous request", stranger["reads_added"], 0, True),
        ("`Vary: Cookie` on it", float("Cookie" in stranger["vary"]), 0, True),
        ("flagging, times as fast as the loop", flagging["flag_faster_than_loop"], 8, False),
        ("peak memory of four times the sessions", found["memory"]["flag_ratio"], 1.2, True),
        ("`expire_everyone` of the many takes, times", found["everyone"]["ratio"], 5, True),
    ]
    rows = []
    for name, value, limit, most in wanted:
        figure, answer = judge(value, limit, most=most)
        target = f"{'at most' if most else 'at least'} {limit}"
        rows.append({"name": name, "value": figure, "target": target, "met": answer})
    return rows


def report(found: dict[str, Any]) -> str:
    from tests.bench.measure import table

    idle = []
    for row in found["idle"]:
        if "trouble" in row:
            idle.append([row["name"], row["trouble"], "", "", "", "", ""])
            continue
        cells = [row["time"].text(3), row["cpu"].text(3), f"{row['calls']:.3f}"]
        cells += [f"{row['added_us']:.1f}", f"{row['reads_added']:g}", f"{row['writes_added']:g}"]
        idle.append([row["name"], *cells])
    head = ["a logged-in request, with / without", "time", "CPU time", "calls", "µs added"]
    head += ["queries added", "writes added"]
    strangers = [
        [row["name"], f"{row['reads_added']:g}", f"{row['writes_added']:g}", row["vary"] or "none"]
        for row in found["strangers"]
    ]
    flagging, memory, everyone = found["flagging"], found["memory"], found["everyone"]
    bulk = [
        ["`flag_sessions`", flagging["flag_faster_than_loop"].text(1)],
        ["`flag_sessions`, building its index first", flagging["first_flag_faster_than_loop"]],
        ["`expire_passwords`, records and flags", flagging["expire_faster_than_loop"]],
        ["the floor: read, decode, encode, one write", flagging["floor_faster_than_loop"]],
    ]
    bulk = [[name, cell if isinstance(cell, str) else cell.text(1)] for name, cell in bulk]
    inside = flagging["flag_faster_than_loop_in_transaction"].text(1)
    goals = [
        [row["name"], f"{row['value']:.4g}", row["target"], row["met"]] for row in found["targets"]
    ]
    (one, four), (one_more, four_more) = memory["flag_mib"], memory["expire_mib"]
    few, many = everyone["statements"]
    parts = [
        f"{found['versions']}. Medians, in brackets their 95 % intervals, of interleaved pairs.",
        table(head, idle),
        "A view that does not read the session:",
        table(["request", "queries added", "writes added", "Vary"], strangers),
        f"{flagging['sessions']:,} stored sessions, against a loop that loads and saves each:",
        table(["way", "times as fast"], bulk),
        f"- `flag_sessions`, against that loop inside one transaction: {inside} times as fast\n"
        f"- `flag_sessions` / floor: {flagging['flag_over_floor'].text()}\n"
        f"- `expire_passwords` / floor: {flagging['expire_over_floor'].text()}\n"
        f"- decoding and encoding / floor: {flagging['codec_share_of_floor'].text()}\n"
        f"- statements for 1,000 sessions: {flagging['flag_statements_per_1000']:.1f}\n"
        f"- peak memory for {memory['few']:,} and {memory['many']:,} sessions: {one:.1f} and "
        f"{four:.1f} MiB (`flag_sessions`), {one_more:.1f} and {four_more:.1f} MiB "
        "(`expire_passwords`)\n"
        f"- `expire_everyone`, {everyone['many']:,} users / {everyone['few']:,} users: "
        f"{everyone['ratio'].text()}, with {few} and {many} statements",
        table(["target", "measured", "wanted", "met"], goals),
    ]
    return "\n\n".join(parts)


def run(quick: bool, troubles: dict[str, str]) -> dict[str, Any]:
    import django

    django.setup()
    from django.core.management import call_command

    from tests.bench import bulk, idle, measure

    call_command("migrate", verbosity=0)
    size = 2_000 if quick else 20_000
    kind = "quick run" if quick else "full run"
    found: dict[str, Any] = {
        "versions": f"Python {platform.python_version()}, Django {django.__version__}, SQLite, "
        f"{os.cpu_count()} cores, {kind}"
    }
    start = measure.snapshot("empty.sqlite3")
    found["idle"] = idle.measure_idle(40 if quick else 400, 50, troubles)
    found["strangers"] = idle.measure_strangers()
    found["flagging"] = bulk.measure_flagging(size, 3, start)
    found["memory"] = bulk.measure_memory(size // 4, size, start)
    found["everyone"] = bulk.measure_everyone(200, size * 10, 5 if quick else 9, start)
    found["targets"] = targets(found)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller numbers, a minute")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures there too")
    options = parser.parse_args()
    peers = ["password_policies", "password_rotate"]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PWEXPIRE_BENCH_FILE"] = str(Path(folder) / "bench.sqlite3")
        os.environ["DJANGO_SETTINGS_MODULE"] = SETTINGS
        troubles = find_troubles(peers)
        os.environ["PWEXPIRE_BENCH_PEERS"] = " ".join(p for p in peers if p not in troubles)
        found = run(options.quick, troubles)
        print(report(found))
        if options.json:
            options.json.write_text(json.dumps(found, indent=2, default=plain) + "\n")


if __name__ == "__main__":
    main()

"""What pwexpire costs, as ratios within one run: ``python -m tests.bench --help``.

Two sides are measured in turns, in alternating order, and the ratios of the pairs are summed up by
their median and its 95 % interval: what else the machine does meets both sides.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests import servers
from tests.bench.sections import NAMES, run

SETTINGS = "tests.bench.settings"
PEERS = ["password_policies", "password_rotate"]
DATABASES = ["sqlite", "postgresql"]


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


def arguments() -> argparse.Namespace:
    said = (__doc__ or "").partition("\n\n")[2]
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=said)
    add = parser.add_argument
    add("--quick", dest="size", action="store_const", const="quick", help="a few minutes")
    add("--huge", dest="size", action="store_const", const="huge", help="ten million users")
    parser.set_defaults(size="full")
    add("--on", nargs="+", choices=DATABASES, default=["sqlite"], help="one after the other")
    add("--only", nargs="+", choices=NAMES, default=[], metavar="NAME", help=", ".join(NAMES))
    add("--users", type=int, default=20_000, metavar="N", help="of the section operators")
    add("--json", type=Path, metavar="FILE", help="write the figures there too")
    add("--plot", type=Path, metavar="FILE.png", help="draw them (needs matplotlib)")
    add("--from", dest="given", nargs="+", type=Path, metavar="FILE", help="draw these, no run")
    options = parser.parse_args()
    if options.given and not options.plot:
        parser.error("--from needs --plot: it draws figures that were written by --json")
    if options.plot and find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib: pip install matplotlib")
    for name in options.on if not options.given else ():
        if name == "postgresql" and find_spec("psycopg") is None:
            parser.error('PostgreSQL needs its driver: pip install "psycopg[binary]"')
        if not servers.answers(name):
            parser.error(f"{name} does not answer at {servers.address(name)}")
    return options


def measure(on: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """In this process, which is a Django of its own."""
    from tests.bench.report import report

    name = f"pwexpire_bench_{os.getpid()}"
    os.environ["PWEXPIRE_BENCH_ON"] = on
    os.environ["PWEXPIRE_BENCH_NAME"] = str(folder / name) if on == "sqlite" else name
    os.environ["DJANGO_SETTINGS_MODULE"] = SETTINGS
    troubles = find_troubles(PEERS)
    os.environ["PWEXPIRE_BENCH_PEERS"] = " ".join(peer for peer in PEERS if peer not in troubles)
    found = run(on, options.only, troubles, size=options.size, users=options.users)
    print(report(found), flush=True)
    return found


def measure_apart(on: str, options: argparse.Namespace, folder: Path) -> list[Any]:
    """A Django knows one set of settings: with several databases, each has a process of its own."""
    kept = folder / f"{on}.json"
    command = [sys.executable, "-m", "tests.bench", "--on", on, "--json", str(kept)]
    command += [f"--{options.size}"] if options.size != "full" else []
    command += ["--users", str(options.users)]
    command += ["--only", *options.only] if options.only else []
    with subprocess.Popen(command) as child:
        try:
            code = child.wait()
        except BaseException:
            child.terminate()  # not killed: it drops what it made
            raise
    if code and not kept.exists():
        sys.exit(code)
    print(flush=True)
    return list(json.loads(kept.read_text()))


def main() -> None:
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("The benchmark was ended."))
    runs: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:
        for path in options.given or ():
            runs += json.loads(path.read_text())
        if not options.given and len(options.on) == 1:
            runs.append(measure(options.on[0], options, Path(folder)))
        elif not options.given:
            for on in options.on:
                runs += measure_apart(on, options, Path(folder))
    # The same, whether it was measured here or read: dictionaries and numbers.
    text = json.dumps(runs, indent=2, default=plain)
    if options.json:
        options.json.write_text(text + "\n")
    if options.plot:
        from tests.bench.plot import plot

        plot(json.loads(text), options.plot)
    if any(run.get("failed") for run in runs):
        sys.exit("Not everything could be measured: see above.")


if __name__ == "__main__":
    main()

"""What pwexpire costs, as ratios within one run: ``python -m tests.bench --help``.

Two sides are measured in turns, in alternating order, and the ratios of the pairs are summed up by
their median and its 95 % interval: what else the machine does meets both sides.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from tests import servers
from tests.bench import record
from tests.bench.readme import PICTURE, README, STORED, replaced
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
    add("--full", nargs="+", choices=NAMES, default=[], metavar="NAME", help="these are not quick")
    add("--json", type=Path, metavar="FILE", help="where the run is written; build/ by default")
    add("--plot", type=Path, metavar="FILE.png", help="draw it (needs matplotlib)")
    add("--from", dest="given", type=Path, metavar="FILE", help="no run: show that one")
    said = "no run: store that one, and write the README and its picture from it"
    add("--readme", type=Path, metavar="FILE", help=said)
    options = parser.parse_args()
    options.given = options.readme or options.given
    if (options.plot or options.readme) and find_spec("matplotlib") is None:
        parser.error("the picture needs matplotlib: pip install matplotlib")
    for name in options.on if not options.given else ():
        if name == "postgresql" and find_spec("psycopg") is None:
            parser.error('PostgreSQL needs its driver: pip install "psycopg[binary]"')
        if not servers.answers(name):
            parser.error(f"{name} does not answer at {servers.address(name)}")
    return options


def measure(on: str, options: argparse.Namespace, folder: Path) -> record.Run:
    """In this process, which is a Django of its own."""
    from tests.bench.report import report

    name = f"pwexpire_bench_{os.getpid()}"
    os.environ["PWEXPIRE_BENCH_ON"] = on
    os.environ["PWEXPIRE_BENCH_NAME"] = str(folder / name) if on == "sqlite" else name
    os.environ["DJANGO_SETTINGS_MODULE"] = SETTINGS
    troubles = find_troubles(PEERS)
    os.environ["PWEXPIRE_BENCH_PEERS"] = " ".join(peer for peer in PEERS if peer not in troubles)
    sizes = {"size": options.size, "full": options.full, "users": options.users}
    found = run(on, options.only, troubles, **sizes)
    print(report(found), flush=True)
    made = start(options)
    made["versions"].update([found["database_version"].split(" ", 1)])
    made["section_seconds"][on] = found["section_seconds"]
    made["figures"] = found["figures"]
    return made


# What a run was asked for.
RUN = ("on", "only", "size", "full", "users")


def start(options: argparse.Namespace) -> record.Run:
    return record.header({name: getattr(options, name) for name in RUN})


def measure_apart(on: str, options: argparse.Namespace, folder: Path) -> record.Run:
    """A Django knows one set of settings: with several databases, each has a process of its own."""
    kept = folder / f"{on}.json"
    command = [sys.executable, "-m", "tests.bench", "--on", on, "--json", str(kept)]
    command += [f"--{options.size}"] if options.size != "full" else []
    command += ["--users", str(options.users)]
    command += ["--only", *options.only] if options.only else []
    command += ["--full", *options.full] if options.full else []
    with subprocess.Popen(command) as child:
        try:
            code = child.wait()
        except BaseException:
            child.terminate()  # not killed: it drops what it made
            raise
    if code and not kept.exists():
        sys.exit(code)
    print(flush=True)
    return record.read(kept)


def measure_all(options: argparse.Namespace) -> record.Run:
    with tempfile.TemporaryDirectory() as folder:
        if len(options.on) == 1:
            return measure(options.on[0], options, Path(folder))
        made = start(options)
        for on in options.on:
            part = measure_apart(on, options, Path(folder))
            for name in ("versions", "section_seconds"):
                made[name].update(part[name])
            made["figures"] += part["figures"]
    return made


def main() -> None:
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("The benchmark was ended."))
    if options.given:
        made = record.read(options.given)
    else:
        made = measure_all(options)
        day = made["date"].replace(":", "").partition("+")[0]
        options.json = options.json or Path("build") / f"bench-{day}.json"
    # Everything below is made from the file, so that nothing can differ from it.
    if options.json:
        record.write(made, options.json)
    print(record.measured_wanted_met(made["figures"]))
    if options.readme:
        record.write(made, STORED)
        README.write_text(replaced(README.read_text(), made))
        options.plot = PICTURE
    if options.plot:
        from tests.bench.plot import plot

        plot(made, options.plot)
    # A peer that does not work on this Django is no failure of the run.
    if any(row["value"] is None and row["of"] is None for row in made["figures"]):
        sys.exit("Not everything could be measured: see above.")


if __name__ == "__main__":
    main()

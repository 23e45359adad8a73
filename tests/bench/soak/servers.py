"""The servers of the soak run, and the memory of their workers (Linux)."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.clusters import HOST, free_port

PATIENCE_SECONDS = 60
GUNICORN = ["gunicorn", "tests.bench.soak.app:application", "--log-level", "warning"]
GUNICORN += ["--graceful-timeout", "20", "--bind", "{host}:{port}", "--workers", "{workers}"]
UVICORN = ["uvicorn", "tests.bench.soak.app:asgi", "--log-level", "warning"]
SERVERS = {
    "gthread": [*GUNICORN, "--worker-class", "gthread", "--threads", "4", "--preload"],
    # Not loaded before the fork: the worker replaces the locks of the standard library.
    "gevent": [*GUNICORN, "--worker-class", "gevent"],
    "uvicorn": [*UVICORN, "--host", "{host}", "--port", "{port}", "--workers", "{workers}"],
}
# Connections that stay open belong to a thread; the others make one for each request.
KEEP = {"gthread": 600, "gevent": 0, "uvicorn": 0}


class Server:
    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self.port = port
        self.url = f"http://{HOST}:{port}"

    def send(self, number: signal.Signals) -> None:
        """To the parent: HUP replaces the workers, TTIN adds one, TTOU takes one away."""
        self.process.send_signal(number)

    def memory_mib(self) -> dict[int, float]:
        """Process id of each worker -> its resident memory."""
        found = {}
        for pid in _children(self.process.pid) or [self.process.pid]:
            with suppress(OSError, StopIteration):
                lines = Path(f"/proc/{pid}/status").read_text().splitlines()
                line = next(line for line in lines if line.startswith("VmRSS:"))
                found[pid] = int(line.split()[1]) / 1024
        return found


def _children(pid: int) -> list[int]:
    with suppress(OSError):
        pids = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(one) for one in pids if b"resource_tracker" not in _command(one)]
    return []


def _command(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b"resource_tracker"  # it has just ended


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection((HOST, port), timeout=1) as there:
        there.settimeout(10)
        there.sendall(b"GET /login/ HTTP/1.0\r\nHost: soak\r\n\r\n")
        return there.recv(4) == b"HTTP"
    return False


@contextmanager
def serving(name: str, workers: int, log: Path, *, ours: bool, warm: str) -> Iterator[Server]:
    """One server with so many workers, with the middleware or without; ended with the block."""
    port = free_port()
    words = [word.format(host=HOST, port=port, workers=workers) for word in SERVERS[name]]
    environ = {**os.environ, "PWEXPIRE_SOAK_WITH": "1" if ours else "0"}
    environ |= {
        "PWEXPIRE_SOAK_KEEP": str(KEEP[name]),
        "PWEXPIRE_SOAK_WARM": warm if "--preload" in words else "",
    }
    with open(log, "ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *words],
            env=environ,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        end = time.monotonic() + PATIENCE_SECONDS
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{name} does not answer: see {log}")
            time.sleep(0.1)
        yield Server(process, port)
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=25)
        with suppress(ProcessLookupError):  # of the workers that are left, if any
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

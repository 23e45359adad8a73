"""Processes of their own, on the database that is in use; none of them is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from tests.bench.databases import databases


class Child:
    """Lines in, lines out."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args!r} ended with {self.process.wait()}")
        return line.strip()


@contextmanager
def children(module: str, *arguments: str, count: int = 1) -> Iterator[list[Child]]:
    """``count`` processes that run ``python -m module``; they are ended with the block."""
    environ = {**os.environ, "PWEXPIRE_BENCH_NAME": databases().place(databases().now)}
    with ExitStack() as stack:
        started = []
        for _ in range(count):
            process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                env=environ,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(process)  # waits, and closes the pipes
            stack.callback(process.kill)
            started.append(Child(process))
        yield started

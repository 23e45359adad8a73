"""What the tour prints, and what it found not to be as it should."""

from __future__ import annotations

from collections.abc import Callable

INDENT = " " * 18


class Report:
    def __init__(self, write: Callable[[str], object], *, plain: bool) -> None:
        self.write = write
        self.yes, self.no = ("ok  ", "FAIL") if plain else ("✓", "✗")
        self.steps = 0
        self.expectations = 0
        self.failed: list[str] = []

    def step(self, title: str) -> None:
        self.steps += 1
        self.write(f"\n{self.steps}. {title}\n")

    def say(self, text: str) -> None:
        self.write(f"  {text}")

    def tell(self, who: str, sent: str, answer: list[str]) -> None:
        """One request and its answer."""
        self.write(f"  {who:<16}{sent}")
        for line in answer:
            self.write(f"{INDENT}{line}")

    def expect(self, true: object, text: str, found: object = "") -> bool:
        self.expectations += 1
        if true:
            self.write(f"  {self.yes} {text}")
            return True
        self.write(f"  {self.no} {text}" + (f" (found: {found})" if found != "" else ""))
        self.failed.append(f"step {self.steps}: {text}")
        return False

from __future__ import annotations

from collections.abc import Callable
from typing import Any

ALL: list[Callable[..., Any]] = []

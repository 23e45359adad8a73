from __future__ import annotations

from datetime import timedelta
from typing import Any

from pwexpire.policy import Policy


def strict(user: Any) -> Policy:
    return Policy(max_age=timedelta(days=30))

from __future__ import annotations

from datetime import timedelta
from typing import Any

from pwexpire.policy import Policy


def strict(user: Any) -> Policy:
    return Policy(max_age=timedelta(days=30))


def is_person(user: Any) -> bool:
    return user.username != "alice"


def is_bob(user: Any) -> bool:
    return user.username == "bob"

"""For the tests of projects that use pwexpire.

``TestCase`` and pytest-django's ``db`` fixture roll back and never commit, and what pwexpire does
at the commit does not happen there. ``committed()`` does it at the end of its block.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.test import TestCase

from pwexpire.feed import feed
from pwexpire.models import ExpiryBatch
from pwexpire.services import expire_passwords


def reset() -> None:
    """Forget what this process knows of expiries; call it between tests."""
    feed.reset()


@contextmanager
def committed() -> Iterator[None]:
    """Run what waits for the commit at the end of the block, inside ``TestCase``."""
    with TestCase.captureOnCommitCallbacks(using=feed.using, execute=True):
        yield
    feed.drop()


def expire(users: Any, **kwargs: Any) -> ExpiryBatch:
    """``expire_passwords``, in force at once, inside ``TestCase`` too."""
    with committed():
        batch = expire_passwords(users, **kwargs)
    return batch

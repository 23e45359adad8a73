"""For tests that start processes of their own: a database file, and the default interval."""

from __future__ import annotations

import os

from tests.settings import *  # noqa: F403
from tests.settings import SQLITE

DATABASES = {"default": {**SQLITE, "NAME": os.environ["PWEXPIRE_TEST_FILE"]}}
SESSION_ENGINE = os.environ["PWEXPIRE_TEST_ENGINE"]
SESSION_FILE_PATH = os.environ["PWEXPIRE_TEST_SESSIONS"]
PWEXPIRE_POLL_SECONDS = 1
CACHES = {
    "default": {
        "BACKEND": "django.core.cache.backends.filebased.FileBasedCache",
        "LOCATION": os.path.join(SESSION_FILE_PATH, "cache"),
    }
}

"""For tests that start processes of their own: a database that they share."""

from __future__ import annotations

import os

from tests import servers
from tests.settings import *  # noqa: F403
from tests.settings import DATABASE

DATABASES = {"default": servers.database(DATABASE, os.environ.get("PWEXPIRE_TEST_FILE", ""))}
SESSION_ENGINE = os.environ["PWEXPIRE_TEST_ENGINE"]
SESSION_FILE_PATH = os.environ["PWEXPIRE_TEST_SESSIONS"]
PWEXPIRE_POLL_SECONDS = 1
CACHES = {
    "default": {
        "BACKEND": "django.core.cache.backends.filebased.FileBasedCache",
        "LOCATION": os.path.join(SESSION_FILE_PATH, "cache"),
    }
}

"""A site whose database, isolation and session engine the environment chooses."""

from __future__ import annotations

import os

from tests import servers
from tests.settings import CACHE, DATABASE
from tests.settings_process import *  # noqa: F403
from tests.settings_process import DATABASES, SESSION_ENGINE

ROOT_URLCONF = "tests.races.urls"
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "pwexpire",
    "tests.testapp",
]
AUTHENTICATION_BACKENDS = ["django.contrib.auth.backends.ModelBackend"]
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
SESSION_COOKIE_AGE = 3600
LOGOUT_REDIRECT_URL = "/"
PWEXPIRE_POLL_SECONDS = 0
if SESSION_ENGINE.endswith("cached_db"):
    CACHES = {"default": servers.cache(CACHE)}

DATABASES["default"]["ATOMIC_REQUESTS"] = os.environ.get("PWEXPIRE_RACES_ATOMIC") == "1"
ISOLATION = os.environ.get("PWEXPIRE_RACES_ISOLATION", "")
if ISOLATION and DATABASE == "postgresql":
    from django.db.backends.postgresql.psycopg_any import IsolationLevel

    level = IsolationLevel[ISOLATION.upper().replace(" ", "_")]
    DATABASES["default"]["OPTIONS"] = {"isolation_level": level}
elif ISOLATION:
    DATABASES["default"]["OPTIONS"] = {"isolation_level": ISOLATION}

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from importlib.util import find_spec

from tests import servers

SECRET_KEY = "tests-" + "k" * 60
ALLOWED_HOSTS = ["*"]
USE_TZ = True
ROOT_URLCONF = "tests.urls"
# django-user-sessions 2.0 needs pkg_resources, which newer environments do not have.
USER_SESSIONS = bool(find_spec("user_sessions") and find_spec("pkg_resources"))
AXES = find_spec("axes") is not None and os.environ.get("PWEXPIRE_TEST_AXES") != "0"

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.flatpages",
    "django.contrib.messages",
    "django.contrib.redirects",
    "django.contrib.sessions",
    "django.contrib.sites",
    *(["axes"] if AXES else []),
    *(["hijack"] if find_spec("hijack") else []),
    *(["impersonate"] if find_spec("impersonate") else []),
    *(["qsessions"] if find_spec("qsessions") else []),
    *(["user_sessions"] if USER_SESSIONS else []),
    "pwexpire",
    "tests.testapp",
]
SITE_ID = 1
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "pwexpire.middleware.PasswordExpiryMiddleware",
]
MAILERS = {"default": {"BACKEND": "django.core.mail.backends.locmem.EmailBackend"}}
AUTHENTICATION_BACKENDS = ["django.contrib.auth.backends.ModelBackend"]
AXES_LOCKOUT_PARAMETERS = ["username"]
AXES_FAILURE_LIMIT = 3
AXES_ENABLED = True
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
DATABASE, CACHE = servers.chosen()
SQLITE = servers.database("sqlite")
DATABASES = {"default": servers.database(DATABASE)}
CACHES = {"default": servers.cache(CACHE)}
PASSWORD_HASHERS = [
    "django.contrib.auth.hashers.MD5PasswordHasher",
    "tests.testapp.hashers.QuickPBKDF2",
]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
STATIC_URL = "/static/"
LOGIN_URL = "/accounts/login/"
LOGIN_REDIRECT_URL = "/"
SESSION_FILE_PATH = os.environ.get("PWEXPIRE_TEST_SESSIONS", "")
if not SESSION_FILE_PATH:
    SESSION_FILE_PATH = tempfile.mkdtemp(prefix="pwexpire-sessions-")
    atexit.register(shutil.rmtree, SESSION_FILE_PATH, ignore_errors=True)
PLACE = servers.address("redis")
# A database that no cache is in: to clear a cache empties its database, sessions and all.
SESSION_REDIS = {"host": PLACE[0], "port": PLACE[1], "db": 11, "prefix": f"pwexpire-{os.getpid()}"}
PWEXPIRE_POLL_SECONDS = 0
# E304: both third-party session models want the same reverse name; the tests use neither.
SILENCED_SYSTEM_CHECKS = ["axes.W002", "axes.W003", "axes.W006", "fields.E304"]

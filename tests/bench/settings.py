from __future__ import annotations

import os
from importlib.util import find_spec

SECRET_KEY = "bench-" + "k" * 60
ALLOWED_HOSTS = ["*"]
USE_TZ = True
ROOT_URLCONF = "tests.bench.urls"
PEERS = [name for name in ("password_policies", "password_rotate") if find_spec(name)]
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "pwexpire",
    *PEERS,
]
BASE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
MIDDLEWARE = [*BASE, "pwexpire.middleware.PasswordExpiryMiddleware"]
DATABASES = {
    "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ["PWEXPIRE_BENCH_FILE"]}
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
LOGIN_URL = "/login/"

# What the peers want to be told.
PASSWORD_ROTATE_SECONDS = 90 * 24 * 3600
PASSWORD_ROTATE_WARN_SECONDS = 24 * 3600
PASSWORD_ROTATE_HISTORY_COUNT = 3
PASSWORD_ROTATE_MAX_SIMILARITY_RATIO = 0.6
PASSWORD_ROTATE_EXCLUDE_SUPERUSERS = False
SESSION_SERIALIZER = "django.contrib.sessions.serializers.JSONSerializer"

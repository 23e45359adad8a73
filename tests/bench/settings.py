"""A project as ``startproject`` makes it, without pwexpire's middleware, on the chosen database."""

from __future__ import annotations

import os

from tests import servers

SECRET_KEY = "bench-" + "k" * 60
ALLOWED_HOSTS = ["*"]
USE_TZ = True
TIME_ZONE = "UTC"
ROOT_URLCONF = "tests.bench.urls"
PEERS = os.environ.get("PWEXPIRE_BENCH_PEERS", "").split()
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "pwexpire",
    *PEERS,
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
DATABASES = {
    "default": {
        **servers.database(os.environ.get("PWEXPIRE_BENCH_ON", "sqlite")),
        "NAME": os.environ.get("PWEXPIRE_BENCH_NAME", ":memory:"),
        "CONN_MAX_AGE": None,  # a connection per request would hide what is measured
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
LOGIN_URL = "/login/"

# django-password-policies excludes whatever these match, and "/" matches all: it would be idle.
STATIC_URL = "/static/"
MEDIA_URL = "/media/"
SESSION_SERIALIZER = "django.contrib.sessions.serializers.JSONSerializer"
PASSWORD_ROTATE_SECONDS = 90 * 24 * 3600
PASSWORD_ROTATE_WARN_SECONDS = 24 * 3600
PASSWORD_ROTATE_HISTORY_COUNT = 3
PASSWORD_ROTATE_MAX_SIMILARITY_RATIO = 0.6
PASSWORD_ROTATE_EXCLUDE_SUPERUSERS = False

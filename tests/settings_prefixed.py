"""A user model whose primary key has another text in sessions."""

from __future__ import annotations

from tests.settings import *  # noqa: F403
from tests.settings import INSTALLED_APPS, SQLITE

DATABASES = {"default": SQLITE}
AUTH_USER_MODEL = "testapp.PrefixedUser"
INSTALLED_APPS = [
    name
    for name in INSTALLED_APPS
    if name not in ("django.contrib.admin", "axes", "qsessions", "user_sessions")
]
ROOT_URLCONF = "tests.testapp.urls_models"

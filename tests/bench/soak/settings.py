"""The site of the soak run; ``PWEXPIRE_SOAK_WITH`` says whether with pwexpire's middleware."""

from __future__ import annotations

import os

from tests.bench.settings import *  # noqa: F403
from tests.bench.settings import DATABASES, MIDDLEWARE

ROOT_URLCONF = "tests.bench.soak.urls"
LOGIN_REDIRECT_URL = "/"
if os.environ.get("PWEXPIRE_SOAK_WITH") == "1":
    MIDDLEWARE = [*MIDDLEWARE, "pwexpire.middleware.PasswordExpiryMiddleware"]
DATABASES["default"] |= {
    "CONN_MAX_AGE": int(os.environ.get("PWEXPIRE_SOAK_KEEP", "0")),
    "CONN_HEALTH_CHECKS": True,
}

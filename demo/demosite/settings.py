"""Settings of the demo. Not an example of how to secure a site: DEBUG is on, the key is public."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

from pwexpire.policy import Policy

BASE_DIR = Path(__file__).resolve().parent.parent

SECRET_KEY = "a public key, for the demo only"
DEBUG = True
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
ROOT_URLCONF = "demosite.urls"
USE_TZ = True
TIME_ZONE = "UTC"
STATIC_URL = "static/"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
# Mails are printed, or written into a folder where the tour reads them.
EMAIL_FILE_PATH = os.environ.get("DEMO_MAILS")
EMAIL_BACKEND = (
    f"django.core.mail.backends.{'filebased' if EMAIL_FILE_PATH else 'console'}.EmailBackend"
)

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "axes",
    "pwexpire",
    "shop",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "pwexpire.middleware.PasswordExpiryMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "axes.middleware.AxesMiddleware",
]

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "pwexpire.context_processors.password_expiry",
            ],
        },
    },
]

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("DEMO_DATABASE", str(BASE_DIR / "demo.sqlite3")),
        # Writers queue up instead of failing with "database is locked".
        "OPTIONS": {"transaction_mode": "IMMEDIATE", "timeout": 20},
    }
}

AUTHENTICATION_BACKENDS = [
    "axes.backends.AxesStandaloneBackend",
    "pwexpire.backends.PasswordExpiryBackend",  # refuses a password that was withdrawn
]
AUTH_PASSWORD_VALIDATORS = [
    *(
        {"NAME": f"django.contrib.auth.password_validation.{name}"}
        for name in (
            "UserAttributeSimilarityValidator",
            "MinimumLengthValidator",
            "CommonPasswordValidator",
            "NumericPasswordValidator",
        )
    ),
    {"NAME": "pwexpire.validators.PasswordHistoryValidator"},
]
LOGIN_REDIRECT_URL = "/"
LOGOUT_REDIRECT_URL = "/"

# Three wrong passwords lock the name, whatever address they come from ...
AXES_FAILURE_LIMIT = 3
AXES_LOCKOUT_PARAMETERS = ["username"]
AXES_RESET_ON_SUCCESS = True
AXES_COOLOFF_TIME = timedelta(minutes=15)
SILENCED_SYSTEM_CHECKS = ["axes.W006"]  # by name alone, so that the demo needs one address only

# ... and expire the password that somebody was guessing at. The tour switches this off in a second
# server, to compare what the guesser sees.
PWEXPIRE_EXPIRE_ON_LOCKOUT = os.environ.get("DEMO_EXPIRE_ON_LOCKOUT", "1") == "1"
PWEXPIRE_POLL_SECONDS = 1
PWEXPIRE_POLICY = Policy(
    max_age=timedelta(days=90),
    warn_before=[timedelta(days=14), timedelta(days=7), timedelta(days=1)],
    history=4,
)
PWEXPIRE_SITE_URL = "http://127.0.0.1:8000"

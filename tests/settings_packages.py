"""A site of other people's packages: their own log-out, change, reset and second-factor pages."""

from __future__ import annotations

from tests.settings import *  # noqa: F403
from tests.settings import INSTALLED_APPS, MIDDLEWARE, SQLITE

DATABASES = {"default": SQLITE}
INSTALLED_APPS = [
    *(name for name in INSTALLED_APPS if name not in ("axes", "qsessions", "user_sessions")),
    "allauth",
    "allauth.account",
    "rest_framework",
    "djoser",
    "django_otp",
    "django_otp.plugins.otp_static",
    "django_otp.plugins.otp_totp",
    "two_factor",
    "mozilla_django_oidc",
    "taggit",
    "modelcluster",
    "wagtail.users",
    "wagtail.images",
    "wagtail.documents",
    "wagtail.search",
    "wagtail.admin",
    "wagtail",
]
MIDDLEWARE = [
    *MIDDLEWARE,
    "django_otp.middleware.OTPMiddleware",
    "allauth.account.middleware.AccountMiddleware",
]
AUTHENTICATION_BACKENDS = [
    "django.contrib.auth.backends.ModelBackend",
    "allauth.account.auth_backends.AuthenticationBackend",
    "mozilla_django_oidc.auth.OIDCAuthenticationBackend",
]
ROOT_URLCONF = "tests.testapp.urls_packages"
LOGIN_URL = "/accounts/login/"
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["rest_framework.authentication.SessionAuthentication"]
}
DJOSER = {"TOKEN_MODEL": None, "PASSWORD_RESET_CONFIRM_URL": "reset/{uid}/{token}"}
OIDC_OP_TOKEN_ENDPOINT = OIDC_OP_USER_ENDPOINT = "https://sso.example.com/"
OIDC_OP_AUTHORIZATION_ENDPOINT = "https://sso.example.com/authorize"
OIDC_RP_CLIENT_ID = OIDC_RP_CLIENT_SECRET = "x"
OIDC_RP_SIGN_ALGO = "HS256"
ACCOUNT_RATE_LIMITS = False
WAGTAIL_SITE_NAME = "site"
WAGTAILADMIN_BASE_URL = "https://example.com"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]

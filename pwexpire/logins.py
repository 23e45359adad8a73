"""Which authentication backends check passwords, and which of them refuse a withdrawn one."""

from __future__ import annotations

from inspect import Parameter, signature

from django.contrib.auth.backends import BaseBackend

from pwexpire.loading import load_path

# They take any credentials and check no password; by the class that has the method.
CHECK_NO_PASSWORD = frozenset(
    {
        "axes.backends.AxesStandaloneBackend",
        "mozilla_django_oidc.auth.OIDCAuthenticationBackend",
        "social_core.backends.base.BaseAuth",
    }
)


def refuses_logins(path: str) -> bool:
    return bool(getattr(load_path(path), "refuses_expired_passwords", False))


def is_lax(path: str) -> bool:
    """Whether a withdrawn password would be good for a login; unknown backends are none."""
    backend = load_path(path)
    return isinstance(backend, type) and not refuses_logins(path) and _checks_passwords(backend)


def _checks_passwords(backend: type) -> bool:
    """Whether a login with a password may succeed through ``backend``.

    Django asks the signature of ``authenticate()`` in async code as well, and calls
    ``aauthenticate()`` then, which may come from another class.
    """
    authenticate = getattr(backend, "authenticate", None)
    taken = signature(authenticate).parameters.values() if authenticate else ()
    if not any(one.name == "password" or one.kind is Parameter.VAR_KEYWORD for one in taken):
        return False
    return any(_is_own(backend, name) for name in ("authenticate", "aauthenticate"))


def _is_own(backend: type, method: str) -> bool:
    """Whether ``method`` is there, and of a class that may check a password."""
    owner = next((one for one in backend.__mro__ if method in vars(one)), BaseBackend)
    path = f"{owner.__module__}.{owner.__qualname__}"
    return owner is not BaseBackend and path not in CHECK_NO_PASSWORD

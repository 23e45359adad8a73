"""Logins: refused where the old password is withdrawn, looked at where it may be weak."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from inspect import signature
from typing import Any

from asgiref.sync import sync_to_async
from django.contrib.auth.backends import BaseBackend, ModelBackend
from django.contrib.auth.password_validation import get_password_validators, validate_password
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import Error as DatabaseFault
from django.http import HttpRequest
from django.views.decorators.debug import sensitive_variables

from pwexpire.conf import conf
from pwexpire.feed import feed
from pwexpire.models import ExpiryBatch, Reason
from pwexpire.retries import is_missing_table, retried, savepoint
from pwexpire.services.batches import expire_passwords
from pwexpire.services.lockouts import can_be_expired
from pwexpire.services.password_state import PasswordState
from pwexpire.services.status import read_password_state

logger = logging.getLogger("pwexpire")
BREACHED = "password_breached"
CODE_LENGTH_MAX = 50


class PasswordExpiryMixin:
    """Before a backend that checks passwords: ``class Ours(PasswordExpiryMixin, LDAPBackend)``.

    A right password that was withdrawn (``Require.RESET``, ``Require.DENY``) is
    refused as a wrong one is: no other backend is asked, and ``user_login_failed`` is sent once.
    ``request.pwexpire_refused`` then says which of the two it was. Override ``should_refuse`` for a
    site's own rules.
    """

    refuses_expired_passwords = True

    def should_refuse(
        self, request: HttpRequest | None, user: Any, password_state: PasswordState
    ) -> bool:
        """Whether the right password of ``user`` is refused; called where it was withdrawn."""
        return True

    @sensitive_variables()
    def authenticate(self, request: HttpRequest | None, *args: Any, **credentials: Any) -> Any:
        inner = super().authenticate  # type: ignore[misc]
        if not _takes(inner, request, args, credentials):
            return None
        user = inner(request, *args, **credentials)
        if user is not None and _is_asked():
            self._admit(request, user, _password(inner, request, args, credentials))
        return user

    @sensitive_variables()
    async def aauthenticate(
        self, request: HttpRequest | None, *args: Any, **credentials: Any
    ) -> Any:
        inner = super().aauthenticate  # type: ignore[misc]
        if getattr(inner, "__func__", None) is BaseBackend.aauthenticate:
            return await inner(request, *args, **credentials)  # which calls authenticate()
        if not _takes(inner, request, args, credentials):
            return None
        user = await inner(request, *args, **credentials)
        if user is not None and _is_asked():
            password = _password(inner, request, args, credentials)
            await sync_to_async(self._admit)(request, user, password)
        return user

    @sensitive_variables()
    def _admit(self, request: HttpRequest | None, user: Any, password: Any) -> None:
        """Raise ``PermissionDenied`` if the password, though right, is withdrawn."""
        password_state = _judge_login(user)
        if password_state is None:
            return
        if (
            conf.enforce
            and password_state.withdrawn
            and self.should_refuse(request, user, password_state)
        ):
            if request is not None:
                request.pwexpire_refused = str(password_state.require)  # type: ignore[attr-defined]
            raise PermissionDenied
        if (
            conf.login_validators is not None
            and not password_state.demand
            and isinstance(password, str)
        ):
            expire_if_weak(user, password)


class PasswordExpiryBackend(PasswordExpiryMixin, ModelBackend):
    """In ``AUTHENTICATION_BACKENDS`` in place of Django's ``ModelBackend``."""


def _judge_login(user: Any) -> PasswordState | None:
    """What is demanded of ``user``; ``None`` if it cannot be asked, and the login goes on."""
    try:
        with savepoint(using=feed.using):
            return retried(partial(read_password_state, user), using=feed.using)
    except DatabaseFault as error:
        logger.error("Whether a login is refused could not be asked: %s", error)
        if conf.enforce and conf.fail_closed and not is_missing_table(error):
            raise PermissionDenied from None
        return None


def _is_asked() -> bool:
    return conf.enforce or conf.report_only


@sensitive_variables()
def _takes(inner: Any, request: Any, args: Any, credentials: Any) -> bool:
    """Django asks the same of a backend; behind this mixin it cannot see the answer."""
    try:
        signature(inner).bind(request, *args, **credentials)
    except TypeError:
        return False
    return True


@sensitive_variables()
def _password(inner: Any, request: Any, args: Any, credentials: Any) -> Any:
    given = signature(inner).bind(request, *args, **credentials).arguments
    return given.get("password", credentials.get("password"))


@sensitive_variables()
def expire_if_weak(user: Any, password: str) -> ExpiryBatch | None:
    """Expire ``user`` if ``PWEXPIRE_LOGIN_VALIDATORS`` refuse their ``password``.

    The note of the batch has the codes of their errors. Returns the batch, or ``None`` if nobody
    was expired. Whatever fails in here is logged by its type alone, and keeps nobody out.
    """
    try:
        if not can_be_expired(user):
            return None
        codes = _refusals(user, password)
        if not codes:
            return None
        reason = Reason.COMPROMISED if BREACHED in codes else Reason.POLICY
        with savepoint(using=feed.using):
            return expire_passwords(user, reason=reason, note=", ".join(codes))
    except Exception as error:
        logger.error("A weak password could not be followed up: %s", type(error).__name__)
        return None


@sensitive_variables()
def _refusals(user: Any, password: str) -> list[str]:
    """The codes of the errors, each once. One validator that fails does not keep the others."""
    codes: dict[str, None] = {}
    for validator in _login_validators():
        try:
            validate_password(password, user, [validator])
        except ValidationError as refused:
            codes |= {
                str(one.code or "invalid")[:CODE_LENGTH_MAX]: None for one in refused.error_list
            }
        except Exception as error:
            said = "A password could not be looked at by %s at a login: %s"
            logger.error(said, type(validator).__name__, type(error).__name__)
    return list(codes)


_loaded: tuple[Any, list[Any]] = (None, [])


def _login_validators() -> list[Any]:
    """Made once, as Django makes its own: some read a file. Not those that look at a change."""
    global _loaded
    config: Sequence[Mapping[str, Any]] | None = conf.login_validators
    known, validators = _loaded
    if known != config:
        made = get_password_validators(config or ())
        validators = [one for one in made if getattr(one, "at_login", True)]
        _loaded = ([dict(one) for one in config or ()], validators)
    return validators

"""The settings: their types, their names, and what one of them needs of another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.apps import apps
from django.conf import settings
from django.contrib.auth.password_validation import get_password_validators
from django.core.checks import Error, Warning

from pwexpire.checks.shape import Messages, check, is_right, suggest
from pwexpire.compat import find_tasks
from pwexpire.conf import SETTINGS, conf
from pwexpire.exceptions import TasksUnavailable
from pwexpire.logins import refuses_logins


@check
def check_settings() -> Messages:
    for name, setting in SETTINGS.items():
        if not is_right(name):
            yield Error(
                f"PWEXPIRE_{name} = {setting.read(name)!r} is not {setting.wants}.",
                hint=f"Set PWEXPIRE_{name} to {setting.wants}.",
                id="pwexpire.E006",
            )
    known = [f"PWEXPIRE_{name}" for name in SETTINGS]
    for name in dir(settings):
        if name.startswith("PWEXPIRE_") and name not in known:
            yield Warning(
                f"{name} is not a setting of pwexpire.",
                hint=suggest(name, known, "Remove it, or see the README."),
                id="pwexpire.W007",
            )


@check
def check_backends() -> Messages:
    known = list(settings.AUTHENTICATION_BACKENDS)
    for name in sorted(conf.exempt_backends.difference(known)):
        yield Warning(
            f"PWEXPIRE_EXEMPT_BACKENDS names {name!r}, which is not in AUTHENTICATION_BACKENDS.",
            hint=suggest(name, known, "Give the path of the backend as it stands there."),
            id="pwexpire.W020",
        )
    refusing = any(map(refuses_logins, known))
    if conf.lax_backends and refusing:
        yield Error(
            f"{', '.join(conf.lax_backends)} would accept a withdrawn password that the other "
            "backends refuse, so Require.RESET and Require.DENY cannot be used.",
            hint="Put pwexpire.backends.PasswordExpiryMixin before its class, leave it out, or "
            "set refuses_expired_passwords = True on it if it checks no passwords.",
            id="pwexpire.E025",
        )
    if is_right("LOGIN_VALIDATORS") and conf.login_validators is not None:
        yield from _check_login_validators(conf.login_validators, refusing)


def _check_login_validators(validators: Any, refusing: bool) -> Messages:
    if not refusing:
        yield Error(
            "PWEXPIRE_LOGIN_VALIDATORS is set, but no backend looks at passwords at a login.",
            hint="Put pwexpire.backends.PasswordExpiryBackend in place of Django's "
            "ModelBackend in AUTHENTICATION_BACKENDS.",
            id="pwexpire.E021",
        )
    try:
        get_password_validators(validators)
    except Exception as error:  # of Django at an entry that is none, or of a validator
        yield Error(
            f"PWEXPIRE_LOGIN_VALIDATORS cannot be loaded: {type(error).__name__}: {error}",
            hint="Write it as AUTH_PASSWORD_VALIDATORS: a list of NAME and OPTIONS.",
            id="pwexpire.E022",
        )


@check
def check_lockout_hook() -> Messages:
    if not (conf.expire_on_lockout or conf.expire_on_success):
        return
    if not apps.is_installed("axes"):
        yield Error(
            "PWEXPIRE_EXPIRE_ON_LOCKOUT is on, but django-axes is not installed.",
            hint='Install pwexpire[axes] and add "axes" to INSTALLED_APPS, or switch it off.',
            id="pwexpire.E009",
        )
        return
    parameters = getattr(settings, "AXES_LOCKOUT_PARAMETERS", ["ip_address"])
    if isinstance(parameters, (list, tuple)) and not all(
        "username" in _flatten([parameter]) for parameter in parameters
    ):
        yield Warning(
            "PWEXPIRE_EXPIRE_ON_LOCKOUT is on, but AXES_LOCKOUT_PARAMETERS also locks without "
            "the username: from then on one bad login per name expires everybody.",
            hint='Let each entry of AXES_LOCKOUT_PARAMETERS be "username" or a list with it.',
            id="pwexpire.W010",
        )


def _flatten(values: Any) -> Iterator[str]:
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _flatten(value)
        else:
            yield value


@check
def check_enforced() -> Messages:
    if conf.report_only:
        yield Warning(
            'PWEXPIRE_ENFORCE is "report": nobody is held, it is only counted.',
            hint="Set it to True when the counts are as you expect.",
            id="pwexpire.W023",
        )
    elif not conf.enforce:
        yield Warning(
            "PWEXPIRE_ENFORCE is False: nobody is held.",
            hint="Remove the setting when the emergency is over.",
            id="pwexpire.W012",
        )


@check
def check_tasks() -> Messages:
    if find_tasks() is None:
        if conf.enqueue_above is not None:
            yield Error(
                "PWEXPIRE_ENQUEUE_ABOVE is set, but there is no Tasks framework.",
                hint="Use Django 6.0, or install pwexpire[tasks], or remove the setting.",
                id="pwexpire.E014",
            )
        return
    # A site that sets none of them may have queues of its own and leave nothing to tasks.
    asked = ("ENQUEUE_ABOVE", "TASK_BACKEND", "TASK_QUEUE")
    if not any(hasattr(settings, f"PWEXPIRE_{name}") for name in asked):
        return
    from pwexpire.tasks import as_task, work_at_expiry  # not before there is a Tasks framework

    try:
        as_task(work_at_expiry)
    except TasksUnavailable as error:
        yield Error(
            str(error),
            hint="Set PWEXPIRE_TASK_BACKEND to an alias in TASKS, and PWEXPIRE_TASK_QUEUE to one "
            "of the QUEUES of that backend.",
            id="pwexpire.E035",
        )

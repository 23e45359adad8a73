"""The settings: their types, their names, and what one of them needs of another."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

from django.apps import apps
from django.conf import settings
from django.contrib.auth.password_validation import get_password_validators
from django.core.checks import CheckMessage, Error, Warning
from django.core.exceptions import ImproperlyConfigured

from pwexpire.compat import find_tasks
from pwexpire.conf import SETTINGS, conf
from pwexpire.loading import load_path
from pwexpire.logins import refuses_logins
from pwexpire.policy import PRESETS, Policy

ROLES = ("staff", "superuser", "default")


def check_settings(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    found: list[CheckMessage] = []
    for name, setting in SETTINGS.items():
        if not is_right(name):
            value = getattr(settings, f"PWEXPIRE_{name}", setting.default)
            found.append(
                Error(
                    f"PWEXPIRE_{name} = {value!r} is not {setting.wants}.",
                    hint=f"Set PWEXPIRE_{name} to {setting.wants}.",
                    id="pwexpire.E006",
                )
            )
    known = [f"PWEXPIRE_{name}" for name in SETTINGS]
    for name in dir(settings):
        if name.startswith("PWEXPIRE_") and name not in known:
            near = get_close_matches(name, known, n=1)
            found.append(
                Warning(
                    f"{name} is not a setting of pwexpire.",
                    hint=f"Did you mean {near[0]}?" if near else "Remove it, or see the README.",
                    id="pwexpire.W007",
                )
            )
    return found


def is_right(name: str) -> bool:
    setting = SETTINGS[name]
    value = getattr(settings, f"PWEXPIRE_{name}", setting.default)
    return setting.accepts(value) and bool(_is_meant(name, value))


def _is_meant(name: str, value: Any) -> Any:
    if name in ("LOCKOUT_THRESHOLD", "CHANGE_ATTEMPTS", "TASKS_PER_BATCH"):
        return bool(value >= 1)
    if name == "ASSUME_CHANGED":
        return value in ("now", "joined")
    if name == "EXEMPT_VIEWS":
        return all(isinstance(view, str) for view in value)
    if name == "REASONS":
        return all(isinstance(slug, str) and 0 < len(slug) <= 40 for slug in value)
    if name == "POLICY":
        return value is None or _is_policy(value) or (isinstance(value, dict) and _are_rules(value))
    if name in ("SECOND_FACTOR", "APPLIES_TO"):
        return (
            value is None
            or callable(value)
            or (isinstance(value, str) and callable(load_path(value)))
        )
    if name == "EXPIRE_ON_LOCKOUT":
        return isinstance(value, bool) or value == "success"
    if name == "ENFORCE":
        return isinstance(value, bool) or value == "report"
    if name == "SITE_URL":
        return bool(value == "" or value.startswith(("https://", "http://")))
    return True


def _are_rules(rules: dict[Any, Any]) -> bool:
    return all(
        isinstance(rule, str)
        and (rule in ROLES or (rule.startswith("group:") and rule != "group:"))
        and isinstance(PRESETS[one].policy if one in PRESETS else _loaded(one), Policy)
        for rule, one in rules.items()
    )


def _is_policy(value: Any) -> bool:
    if isinstance(value, dict):
        return False
    value = _loaded(value)
    return isinstance(value, Policy) or callable(value)


def _loaded(value: Any) -> Any:
    if isinstance(value, str):
        return PRESETS[value].policy if value in PRESETS else load_path(value)
    return value


def check_backends(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    known = list(settings.AUTHENTICATION_BACKENDS)
    found: list[CheckMessage] = [
        Warning(
            f"PWEXPIRE_EXEMPT_BACKENDS names {name!r}, which is not in AUTHENTICATION_BACKENDS.",
            hint=f"Did you mean {near[0]!r}?"
            if (near := get_close_matches(str(name), known, n=1))
            else "Give the path of the backend as it stands there.",
            id="pwexpire.W020",
        )
        for name in sorted(conf.exempt_backends)
        if name not in known
    ]
    if conf.lax_backends and any(map(refuses_logins, known)):
        found.append(
            Error(
                f"{', '.join(conf.lax_backends)} would accept a withdrawn password that the other "
                "backends refuse, so Require.RESET and Require.DENY cannot be used.",
                hint="Put pwexpire.backends.PasswordExpiryMixin before its class, leave it out, or "
                "set refuses_expired_passwords = True on it if it checks no passwords.",
                id="pwexpire.E025",
            )
        )
    if not is_right("LOGIN_VALIDATORS") or conf.login_validators is None:
        return found
    if not any(map(refuses_logins, known)):
        found.append(
            Error(
                "PWEXPIRE_LOGIN_VALIDATORS is set, but no backend looks at passwords at a login.",
                hint="Put pwexpire.backends.PasswordExpiryBackend in place of Django's "
                "ModelBackend in AUTHENTICATION_BACKENDS.",
                id="pwexpire.E021",
            )
        )
    try:
        get_password_validators(conf.login_validators)
    except (ImproperlyConfigured, TypeError, KeyError, ValueError) as error:
        found.append(
            Error(
                f"PWEXPIRE_LOGIN_VALIDATORS cannot be loaded: {error}",
                hint="Write it as AUTH_PASSWORD_VALIDATORS: a list of NAME and OPTIONS.",
                id="pwexpire.E022",
            )
        )
    return found


def check_lockout_hook(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    if not (conf.expire_on_lockout or conf.expire_on_success):
        return []
    if not apps.is_installed("axes"):
        return [
            Error(
                "PWEXPIRE_EXPIRE_ON_LOCKOUT is on, but django-axes is not installed.",
                hint='Install pwexpire[axes] and add "axes" to INSTALLED_APPS, or switch it off.',
                id="pwexpire.E009",
            )
        ]
    parameters = getattr(settings, "AXES_LOCKOUT_PARAMETERS", ["ip_address"])
    by_name = not isinstance(parameters, (list, tuple)) or all(
        "username" in _flat([parameter]) for parameter in parameters
    )
    if not by_name:
        return [
            Warning(
                "PWEXPIRE_EXPIRE_ON_LOCKOUT is on, but AXES_LOCKOUT_PARAMETERS also locks without "
                "the username: from then on one bad login per name expires everybody.",
                hint='Let each entry of AXES_LOCKOUT_PARAMETERS be "username" or a list with it.',
                id="pwexpire.W010",
            )
        ]
    return []


def _flat(values: Any) -> Iterator[str]:
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _flat(value)
        else:
            yield value


def check_enforced(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    if conf.enforce:
        return []
    if conf.report_only:
        return [
            Warning(
                'PWEXPIRE_ENFORCE is "report": nobody is held, it is only counted.',
                hint="Set it to True when the counts are as you expect.",
                id="pwexpire.W023",
            )
        ]
    return [
        Warning(
            "PWEXPIRE_ENFORCE is False: nobody is held.",
            hint="Remove the setting when the emergency is over.",
            id="pwexpire.W012",
        )
    ]


def check_tasks(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    if conf.enqueue_above is None or find_tasks() is not None:
        return []
    return [
        Error(
            "PWEXPIRE_ENQUEUE_ABOVE is set, but there is no Tasks framework.",
            hint="Use Django 6.0, or install pwexpire[tasks], or remove the setting.",
            id="pwexpire.E014",
        )
    ]

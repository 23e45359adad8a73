"""What a policy needs of the rest of the site, and policies that contradict each other."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.password_validation import (
    MinimumLengthValidator,
    get_default_password_validators,
)
from django.core.checks import CheckMessage, Error, Info, Warning
from django.core.exceptions import ImproperlyConfigured

from pwexpire.checks.configuration import is_right
from pwexpire.conf import conf
from pwexpire.policy import PRESETS, Policy
from pwexpire.services.history import KeepsHistory

LONG_ENOUGH = 12


def _rules() -> dict[str, Policy]:
    """What is configured, if that can be read at all."""
    return (conf.rules or {}) if is_right("POLICY") else {}


def _validators() -> list[Any]:
    try:
        return get_default_password_validators()
    except ImproperlyConfigured:  # Django says so itself
        return []


def check_contradictions(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    periodic = {
        f"{preset.source}, {preset.periodic}"
        for policy in _rules().values()
        if (preset := PRESETS.get(policy.name)) and preset.wants_periodic
    }
    found: list[CheckMessage] = []
    for rule, policy in _rules().items():
        preset = PRESETS.get(policy.name)
        if preset is None or preset.wants_periodic or not preset.periodic:
            continue
        against = f"{preset.source}, {preset.periodic}"
        where = f" for {rule!r}" if rule else ""
        if policy.max_age is not None:
            message = (
                f"The policy{where} has a max_age, and is named after {against}, which wants none."
            )
            hint = "Leave max_age out, or give the policy a name of its own."
        elif periodic:
            message = (
                f"{against}, which is against changes at intervals, is in use{where} beside "
                f"{' and '.join(sorted(periodic))}, which wants them."
            )
            hint = "Decide with your auditors which one counts for whom; SILENCED_SYSTEM_CHECKS."
        else:
            continue
        found.append(Warning(message, hint=hint, id="pwexpire.W015"))
    return found


def check_validators(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    asked = [
        name
        for name in ("history", "min_age")
        if any(getattr(policy, name) for policy in _rules().values())
    ]
    if not asked or any(isinstance(one, KeepsHistory) for one in _validators()):
        return []
    return [
        Warning(
            f"PWEXPIRE_POLICY has {' and '.join(asked)}, but nothing looks at it.",
            hint='Add {"NAME": "pwexpire.validators.PasswordHistoryValidator"} to '
            "AUTH_PASSWORD_VALIDATORS.",
            id="pwexpire.W016",
        )
    ]


def check_refusing(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    strict = [
        policy
        for policy in _rules().values()
        if policy.require in ("reset", "deny") or policy.temporary_for is not None
    ]
    if not strict or conf.refuses_logins:
        return []
    return [
        Error(
            "PWEXPIRE_POLICY makes passwords worth nothing (require or temporary_for), but no "
            "backend refuses the login with them.",
            hint="Put pwexpire.backends.PasswordExpiryBackend in place of Django's ModelBackend in "
            "AUTHENTICATION_BACKENDS.",
            id="pwexpire.E017",
        )
    ]


def check_length(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    if not any(policy.name == "pci-dss" for policy in _rules().values()):
        return []
    lengths = [one.min_length for one in _validators() if isinstance(one, MinimumLengthValidator)]
    if max(lengths, default=0) >= LONG_ENOUGH:
        return []
    return [
        Warning(
            f"PCI DSS v4.0.1, 8.3.6, wants passwords of at least {LONG_ENOUGH} characters.",
            hint='Set {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", '
            f'"OPTIONS": {{"min_length": {LONG_ENOUGH}}}}} in AUTH_PASSWORD_VALIDATORS.',
            id="pwexpire.W018",
        )
    ]


def check_second_factor(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    asked = any(policy.single_factor_only for policy in _rules().values())
    if not asked or not is_right("SECOND_FACTOR") or conf.second_factor is not None:
        return []
    return [
        Info(
            "A policy spares users who have a second factor, and PWEXPIRE_SECOND_FACTOR does not "
            "say who that is: it spares nobody.",
            hint="Set PWEXPIRE_SECOND_FACTOR to a callable that takes a user.",
            id="pwexpire.I019",
        )
    ]

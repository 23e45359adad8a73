"""What a policy needs of the rest of the site, and policies that contradict each other."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.password_validation import (
    MinimumLengthValidator,
    get_default_password_validators,
)
from django.core.checks import Error, Info, Warning

from pwexpire.checks.shape import Messages, check, is_right
from pwexpire.conf import ASKED, SETTINGS, conf
from pwexpire.constants import LOCKING
from pwexpire.loading import explain_answer
from pwexpire.policy import PRESETS, Policy, Preset
from pwexpire.services.history import KeepsHistory

LONG_ENOUGH = 12


def _rules() -> dict[str, Policy]:
    """Return the configured rules; none if the setting is not valid."""
    return (conf.rules or {}) if is_right("POLICY") else {}


def _validators() -> list[Any]:
    try:
        return get_default_password_validators()
    except Exception:  # Django says so itself, where a password is validated
        return []


def _name_source(preset: Preset) -> str:
    return f"{preset.source}, {preset.periodic}"


@check
def check_contradictions() -> Messages:
    named = [
        (rule, policy, PRESETS[policy.name])
        for rule, policy in _rules().items()
        if policy.name in PRESETS and PRESETS[policy.name].periodic
    ]
    periodic = sorted({_name_source(preset) for *_, preset in named if preset.wants_periodic})
    for rule, policy, preset in named:
        if preset.wants_periodic:
            continue
        where = f" for {rule}" if rule else ""
        found = _explain_contradiction(policy, _name_source(preset), where, periodic)
        if found is not None:
            message, hint = found
            yield Warning(message, hint=hint, id="pwexpire.W015")


def _explain_contradiction(
    policy: Policy, source: str, where: str, periodic: list[str]
) -> tuple[str, str] | None:
    if policy.max_age is not None:
        return (
            f"The policy{where} has a max_age, and is named after {source}, which wants none.",
            "Leave max_age out, or give the policy a name of its own.",
        )
    if periodic:
        return (
            f"{source}, which is against changes at intervals, is in use{where} beside "
            f"{' and '.join(periodic)}, which wants them.",
            "Decide with your auditors which one counts for whom; SILENCED_SYSTEM_CHECKS.",
        )
    return None


@check
def check_validators() -> Messages:
    asked = [
        name
        for name in ("history", "min_age")
        if any(getattr(policy, name) for policy in _rules().values())
    ]
    if asked and not any(isinstance(one, KeepsHistory) for one in _validators()):
        yield Warning(
            f"PWEXPIRE_POLICY has {' and '.join(asked)}, but nothing looks at it.",
            hint='Add {"NAME": "pwexpire.validators.PasswordHistoryValidator"} to '
            "AUTH_PASSWORD_VALIDATORS.",
            id="pwexpire.W016",
        )


@check
def check_refusing() -> Messages:
    withdraws = any(
        policy.require in LOCKING or policy.temporary_for is not None
        for policy in _rules().values()
    )
    if withdraws and not conf.refuses_logins:
        yield Error(
            "PWEXPIRE_POLICY withdraws passwords (require or temporary_for), but no backend "
            "refuses the login with them.",
            hint="Put pwexpire.backends.PasswordExpiryBackend in place of Django's ModelBackend in "
            "AUTHENTICATION_BACKENDS.",
            id="pwexpire.E017",
        )


@check
def check_length() -> Messages:
    if not any(policy.name == "pci-dss" for policy in _rules().values()):
        return
    lengths = [one.min_length for one in _validators() if isinstance(one, MinimumLengthValidator)]
    if max(lengths, default=0) < LONG_ENOUGH:
        yield Warning(
            f"PCI DSS v4.0.1, 8.3.6, wants passwords of at least {LONG_ENOUGH} characters.",
            hint='Set {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", '
            f'"OPTIONS": {{"min_length": {LONG_ENOUGH}}}}} in AUTH_PASSWORD_VALIDATORS.',
            id="pwexpire.W018",
        )


@check
def check_second_factor() -> Messages:
    asked = any(policy.single_factor_only for policy in _rules().values())
    if asked and is_right("SECOND_FACTOR") and conf.second_factor is None:
        yield Info(
            "A policy spares users who have a second factor, and PWEXPIRE_SECOND_FACTOR does not "
            "say who that is: it spares nobody.",
            hint="Set PWEXPIRE_SECOND_FACTOR to a callable that takes a user.",
            id="pwexpire.I019",
        )


@check
def check_answers() -> Messages:
    """Ask the site's callables about a user who is not saved; pwexpire check asks about others."""
    # Not at the top: it loads Django's test client, which no server needs.
    from pwexpire.management.probe import probe_user

    for name in ASKED:
        wrong = explain_answer(name, SETTINGS[name].read(name), probe_user())
        if wrong is not None:
            yield Error(
                f"PWEXPIRE_{name} {wrong} when it was asked about a user who is not saved.",
                hint="Let it answer for every user; manage.py pwexpire check asks it about users "
                "of the site.",
                id="pwexpire.E037",
            )

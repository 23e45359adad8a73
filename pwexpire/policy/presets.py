"""Policies by the rules of others, each with the clauses that it is made of."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from pwexpire.policy.rules import Policy

WARNINGS = (timedelta(days=14), timedelta(days=7), timedelta(days=1))


@dataclass(frozen=True, kw_only=True)
class Clause:
    """``says``: in our words. ``met_by``: what of the policy or of the site satisfies it."""

    number: str
    says: str
    met_by: str


@dataclass(frozen=True, kw_only=True)
class Preset:
    """``read``: from which text the clauses were taken. ``periodic``: the number of the clause that
    is about changes at intervals, ``wants_periodic``: whether it wants them or is against them.
    """

    source: str
    read: str
    policy: Policy
    clauses: tuple[Clause, ...]
    periodic: str
    wants_periodic: bool = False


PRESETS: dict[str, Preset] = {
    "nist": Preset(
        source="NIST SP 800-63B-4",
        read="not read in the final text of 2025; its draft and what others print of it agree",
        policy=Policy(name="nist"),
        clauses=(
            Clause(
                number="3.1.1.2",
                says="No change at intervals; a change is forced when there is evidence that the "
                "password was compromised.",
                met_by="no max_age; expire with the reason compromised, by hand or at login with "
                "PWEXPIRE_LOGIN_VALIDATORS",
            ),
            Clause(
                number="3.1.1.2",
                says="New passwords are compared with a list of common and breached ones.",
                met_by="CommonPasswordValidator, and HIBPValidator or "
                "BreachedPasswordListValidator of pwexpire.breached, in AUTH_PASSWORD_VALIDATORS",
            ),
        ),
        periodic="3.1.1.2",
    ),
    "pci-dss": Preset(
        source="PCI DSS v4.0.1",
        read="not read in the final text, which is behind a licence; from what others print of it",
        policy=Policy(
            name="pci-dss",
            max_age=timedelta(days=90),
            warn_before=WARNINGS,
            history=4,
            change_on_first_use=True,
            change_after_admin_reset=True,
            single_factor_only=True,
        ),
        clauses=(
            Clause(
                number="8.3.5",
                says="First passwords and reset ones are unique, and are changed at first use.",
                met_by="change_on_first_use, change_after_admin_reset; the site has to choose "
                "unique ones",
            ),
            Clause(
                number="8.3.6",
                says="At least 12 characters (8 where the system cannot do more), with digits and "
                "letters.",
                met_by="MinimumLengthValidator with min_length 12, and a validator of the site's",
            ),
            Clause(
                number="8.3.7",
                says="A new password is none of the last four.",
                met_by="history=4 with PasswordHistoryValidator",
            ),
            Clause(
                number="8.3.9",
                says="Where the password is the only factor it is changed every 90 days, or the "
                "security posture of the account is analysed all the time.",
                met_by="max_age of 90 days, single_factor_only with PWEXPIRE_SECOND_FACTOR",
            ),
        ),
        periodic="8.3.9",
        wants_periodic=True,
    ),
    "asvs-5": Preset(
        source="OWASP ASVS 5.0",
        read="read in its public repository, in a text of about the release",
        policy=Policy(
            name="asvs-5",
            change_on_first_use=True,
            change_after_admin_reset=True,
            temporary_for=timedelta(days=3),
        ),
        clauses=(
            Clause(
                number="6.2.10",
                says="A password is valid until it is known to be compromised or its user changes "
                "it; no change at intervals.",
                met_by="no max_age; expire with the reason compromised",
            ),
            Clause(
                number="6.4.1",
                says="First passwords that the system makes are random, die after a short time or "
                "at first use, and do not stay.",
                met_by="change_on_first_use, temporary_for of 3 days",
            ),
            Clause(
                number="6.4.5",
                says="Users are reminded in time to renew what expires.",
                met_by="warn_before and manage.py pwexpire notify, where anything expires",
            ),
            Clause(
                number="6.4.6",
                says="An administrator can begin the reset of a password, and never chooses it.",
                met_by="expire with require reset; take the password form out of the user admin",
            ),
            Clause(
                number="7.4.3",
                says="After a change all other sessions can be ended.",
                met_by="Django ends them at a change of the password; end_sessions()",
            ),
            Clause(
                number="7.4.5",
                says="Administrators can end the sessions of one user or of all.",
                met_by="end_sessions(), expire with sessions end",
            ),
        ),
        periodic="6.2.10",
    ),
    "iso-27002": Preset(
        source="ISO/IEC 27002:2022",
        read="not read in the final text, which is sold; from what others print of it",
        policy=Policy(
            name="iso-27002",
            history=5,
            change_on_first_use=True,
            change_after_admin_reset=True,
            temporary_for=timedelta(days=3),
        ),
        clauses=(
            Clause(
                number="5.17",
                says="Temporary passwords are unique and are changed at first use.",
                met_by="change_on_first_use, change_after_admin_reset, temporary_for",
            ),
            Clause(
                number="5.17",
                says="A password is changed when it may have been compromised.",
                met_by="expire with the reason compromised or incident",
            ),
            Clause(
                number="5.17",
                says="Earlier passwords are not used again.",
                met_by="history=5 (the standard names no number) with PasswordHistoryValidator",
            ),
        ),
        periodic="",
    ),
    "cis": Preset(
        source="CIS Password Policy Guide v21.12",
        read="not read in the final text; from what others print of it",
        policy=Policy(
            name="cis",
            max_age=timedelta(days=365),
            warn_before=WARNINGS,
            min_age=timedelta(days=1),
            history=5,
        ),
        clauses=(
            Clause(
                number="5.1.3",
                says="A change on events, and once a year as a backstop.",
                met_by="max_age of 365 days; expire with the reason compromised or incident",
            ),
            Clause(
                number="5.1.4",
                says="Not one of the last five, a day between two changes, no common password.",
                met_by="history=5, min_age of one day with PasswordHistoryValidator; "
                "CommonPasswordValidator",
            ),
            Clause(
                number="5.1.1",
                says="At least 14 characters, or 8 where there is a second factor.",
                met_by="MinimumLengthValidator with min_length 14",
            ),
        ),
        periodic="5.1.3",
        wants_periodic=True,
    ),
}

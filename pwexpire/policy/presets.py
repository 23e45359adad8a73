"""Policies by the rules of others, each with the clauses that it is made of."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from pwexpire.policy.rules import Policy


@dataclass(frozen=True, kw_only=True)
class Clause:
    """``says``: in our words. ``met_by``: the part of the policy, or what the site has to do."""

    number: str
    says: str
    met_by: str


@dataclass(frozen=True, kw_only=True)
class Preset:
    """``forbids_periodic``, ``wants_periodic``: where two of them contradict each other."""

    source: str
    policy: Policy
    clauses: tuple[Clause, ...]
    read_in_final_text: bool
    forbids_periodic: bool = False
    wants_periodic: bool = False


PRESETS: dict[str, Preset] = {
    "nist": Preset(
        source="NIST SP 800-63B-4, August 2025",
        policy=Policy(name="nist"),
        clauses=(
            Clause(
                number="3.1.1.2",
                says="No periodic change; a forced change when there is evidence of compromise.",
                met_by="no max_age; expire with the reason compromised",
            ),
        ),
        read_in_final_text=True,
        forbids_periodic=True,
    ),
    "pci-dss": Preset(
        source="PCI DSS v4.0.1, June 2024",
        policy=Policy(
            name="pci-dss",
            max_age=timedelta(days=90),
            warn_before=(timedelta(days=14), timedelta(days=7), timedelta(days=1)),
            history=4,
            change_on_first_use=True,
            change_after_admin_reset=True,
            single_factor_only=True,
        ),
        clauses=(),
        read_in_final_text=False,
        wants_periodic=True,
    ),
}

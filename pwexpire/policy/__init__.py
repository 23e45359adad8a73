from __future__ import annotations

from pwexpire.policy.composing import Age, evaluate_age
from pwexpire.policy.matching import GROUP, Chosen, choose, choose_by_names, choose_for, strictness
from pwexpire.policy.presets import PRESETS, Clause, Preset
from pwexpire.policy.rules import HISTORY_MAX, UNREADABLE, Decision, Policy, decide

__all__ = [
    "GROUP",
    "HISTORY_MAX",
    "PRESETS",
    "UNREADABLE",
    "Age",
    "Chosen",
    "Clause",
    "Decision",
    "Policy",
    "Preset",
    "choose",
    "choose_by_names",
    "choose_for",
    "decide",
    "evaluate_age",
    "strictness",
]

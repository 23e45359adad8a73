"""Which policies there are, what they are made of, and which one is meant for a user."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, fields
from typing import Any

from django.core.management.base import CommandError

from pwexpire.conf import conf
from pwexpire.management.console import AddVerb, Console
from pwexpire.management.formats import show_plain
from pwexpire.management.selectors import find_user
from pwexpire.policy import PRESETS, Chosen, Policy, Preset

PLAIN = Policy()
DEMANDS = [one.name for one in fields(Policy) if one.name != "name"]
OF_THE_AGE = ("max_age", "warn_before", "grace_logins", "require", "single_factor_only")


def add(verb: AddVerb) -> None:
    policy = verb("policy", "The policies of this site, and the clauses behind them.")
    policy.add_argument("--explain", action="store_true", help="with the clauses")
    policy.add_argument("--preset", metavar="NAME", help="one that is not in use")
    policy.add_argument("--user", metavar="NAME", help="what they demand of a user")


def run(options: dict[str, Any], console: Console) -> Any:
    if options["user"]:
        return _describe_rules_of(options["user"])
    if options["preset"]:
        if options["preset"] not in PRESETS:
            known = ", ".join(PRESETS)
            raise CommandError(f"There is no preset {options['preset']}: use one of {known}.")
        return _describe_policy("", PRESETS[options["preset"]].policy, explain=True)
    return list(_list_configured(explain=options["explain"]))


def _list_configured(*, explain: bool) -> Iterator[dict[str, Any]]:
    rules = conf.rules
    if rules is None:
        by = conf.policy_key
        yield {"policy": by, "sentences": [f"{by} says of each user which policy is meant."]}
        return
    for rule, policy in rules.items():
        yield _describe_policy(rule, policy, explain=explain)


def _describe_rules_of(name: str) -> dict[str, Any]:
    user, chosen_for = find_user(name), conf.policy
    chosen = Chosen(Policy()) if chosen_for is None else chosen_for(user)
    answer = {"user": name, **_describe_policy(chosen.rule, chosen.policy, explain=False)}
    return answer if len(chosen.matched) < 2 else answer | _explain_rules(chosen)


def _explain_rules(chosen: Chosen) -> dict[str, Any]:
    """Explain, of several rules, which demand comes from which."""
    sources = {name: values for name in DEMANDS if (values := _find_sources(chosen, name))}
    sentences = [
        f"These rules match: {', '.join(chosen.matched)}. "
        "Each is weighed for itself, and the strictest of each demand counts:",
    ]
    for name, values in sources.items():
        sentences += [f"  {name}: {show_plain(value)} ({rule})" for rule, value in values.items()]
    also = [rule for rule in chosen.matched if rule != chosen.rule]
    shown = {
        name: {rule: _show(value) for rule, value in values.items()}
        for name, values in sources.items()
    }
    return {"also_matched": also, "from": shown, "sentences": sentences}


def _find_sources(chosen: Chosen, name: str) -> dict[str, Any]:
    """Rule -> what it demands. An age counts with what belongs to it, whichever rule it is of."""
    each = [(rule, policy, getattr(policy, name)) for rule, policy in chosen.each]
    if name in OF_THE_AGE:
        return {rule: value for rule, policy, value in each if policy.max_age and value}
    plain, strictest = getattr(PLAIN, name), getattr(chosen.policy, name)
    return {rule: value for rule, _, value in each if value == strictest and value != plain}


def _describe_policy(rule: str, policy: Policy, *, explain: bool) -> dict[str, Any]:
    demands = _list_demands(policy)
    title = policy.name or ("custom" if demands else "no policy")
    sentences = [f"{rule}: {title}" if rule else title]
    sentences += [f"  {name}: {show_plain(value)}" for name, value in demands.items()]
    if not demands:
        sentences.append("  no change at intervals; a change is demanded by an expiry only")
    shown = {name: _show(value) for name, value in demands.items()}
    answer: dict[str, Any] = {
        "rule": rule,
        "policy": title,
        "demands": shown,
        "sentences": sentences,
    }
    preset = PRESETS.get(policy.name) if explain else None
    if preset is not None:
        answer |= {"source": preset.source, "read": preset.read}
        answer["clauses"] = [asdict(clause) for clause in preset.clauses]
        sentences += _explain_clauses(preset)
    return answer


def _list_demands(policy: Policy) -> dict[str, Any]:
    values = {name: getattr(policy, name) for name in DEMANDS}
    return {name: value for name, value in values.items() if value != getattr(PLAIN, name)}


def _explain_clauses(preset: Preset) -> Iterator[str]:
    yield f"  {preset.source}, {preset.read}:"
    for clause in preset.clauses:
        yield f"  {clause.number}  {clause.says}"
        yield f"      {clause.met_by}"


def _show(value: Any) -> Any:
    if isinstance(value, (bool, int)):
        return value
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)

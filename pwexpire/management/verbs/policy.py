"""Which policies there are, what they are made of, and which one is meant for a user."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

from django.core.management.base import CommandError

from pwexpire.conf import conf
from pwexpire.management.selectors import find_user
from pwexpire.policy import PRESETS, Policy


def add(verb: Callable[[str, str], Any]) -> None:
    policy = verb("policy", "The policies of this site, and the clauses behind them.")
    policy.add_argument("--explain", action="store_true", help="with the clauses")
    policy.add_argument("--preset", metavar="NAME", help="one that is not in use")
    policy.add_argument("--user", metavar="NAME", help="which of them is meant for a user, and why")


def run(options: dict[str, Any], console: Any) -> Any:
    if options["user"]:
        return _of_user(options["user"])
    if options["preset"]:
        if options["preset"] not in PRESETS:
            known = ", ".join(PRESETS)
            raise CommandError(f"There is no preset {options['preset']!r}: use one of {known}.")
        return _told("", PRESETS[options["preset"]].policy, explain=True)
    return list(_configured(explain=options["explain"]))


def _configured(*, explain: bool) -> Iterator[dict[str, Any]]:
    rules = conf.rules
    if rules is None:
        by = conf.policy_key
        yield {"policy": by, "sentences": [f"{by} says of each user which policy is meant."]}
        return
    for rule, policy in rules.items():
        yield _told(rule, policy, explain=explain)


def _of_user(name: str) -> dict[str, Any]:
    user = find_user(name)
    chosen_for = conf.policy
    if chosen_for is None:
        return {"user": name, **_told("", Policy(), explain=False)}
    chosen = chosen_for(user)
    told = _told(chosen.rule, chosen.policy, explain=False)
    also = [rule for rule in chosen.matched if rule != chosen.rule]
    told["also_matched"] = also
    if also:
        told["sentences"].append(f"  the strictest; there also match: {', '.join(also)}")
    return {"user": name, **told}


def _told(rule: str, policy: Policy, *, explain: bool) -> dict[str, Any]:
    plain = Policy()
    demands = {
        one.name: _shown(getattr(policy, one.name))
        for one in fields(policy)
        if one.name != "name" and getattr(policy, one.name) != getattr(plain, one.name)
    }
    title = policy.name or ("custom" if demands else "no policy")
    sentences: list[str] = [f"{rule}: {title}" if rule else title]
    sentences += [f"  {name}: {value}" for name, value in demands.items()]
    if not demands:
        sentences.append("  no change at intervals; a change is demanded by an expiry only")
    told: dict[str, Any] = {"rule": rule, "policy": title}
    told |= {"demands": demands, "sentences": sentences}
    preset = PRESETS.get(policy.name)
    if explain and preset is not None:
        told["source"], told["read"] = preset.source, preset.read
        told["clauses"] = [
            {"number": clause.number, "says": clause.says, "met_by": clause.met_by}
            for clause in preset.clauses
        ]
        sentences.append(f"  {preset.source}, {preset.read}:")
        for clause in preset.clauses:
            sentences += [f"  {clause.number}  {clause.says}", f"      {clause.met_by}"]
    return told


def _shown(value: Any) -> Any:
    if isinstance(value, (bool, int)):
        return value
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)

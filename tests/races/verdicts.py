"""What the logs of a run and what is left of it prove. Times of one machine can be compared."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Event = dict[str, Any]

CHANGES = ("change", "set_password")
RELEASES = (*CHANGES, "cancel")
COOKIE_AGE = 3600
CLOCK_SECONDS = 0.01
# After one of these, a session that was found by then carries the flag.
FLAG_FAILURES = {"failed", "conflict", "unsupported"}


@dataclass
class Verdict:
    """``violations`` by law, and how many cases there were that could have been one."""

    violations: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    decisive: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)

    def case(self, law: str, kept: bool, *what: object) -> None:
        self.decisive[law] += 1
        if not kept:
            self.violations[law].append(" | ".join(map(str, what)))


def read(place: Path) -> tuple[list[Event], dict[str, Any]]:
    events: list[Event] = []
    for file in sorted(place.glob("actor-*.jsonl")):
        events += map(json.loads, file.read_text().splitlines())
    return sorted(events, key=lambda event: event["t0"]), json.loads(
        (place / "left.json").read_text()
    )


def judge(events: list[Event], left: dict[str, Any]) -> Verdict:
    verdict = Verdict()
    for event in events:
        name = f"{event['kind']} {event.get('outcome')}"
        verdict.outcomes[f"{name} {event['side']}" if "side" in event else name] += 1
    of_user: dict[int, list[Event]] = defaultdict(list)
    for event in events:
        for user in event.get("users", [event["user"]] if "user" in event else []):
            of_user[user].append(event)
    for own in of_user.values():
        _holds(verdict, own)
        _flags(verdict, own)
    sessions = defaultdict(list)
    for event in events:
        if "session" in event:
            sessions[event["session"]].append(event)
            if event["kind"] in ("cart", "look") and event["new_session"] != event["session"]:
                sessions[event["new_session"]].append(event)
    for name, own in sessions.items():
        _cart(verdict, name, own, left["sessions"])
    _gone(verdict, events, of_user, left["sessions"])
    _expiry_dates(verdict, events, left["sessions"])
    _failures(verdict, events)
    return verdict


def _of(events: Iterable[Event], *kinds: str) -> list[Event]:
    return [event for event in events if event["kind"] in kinds]


def _asked(own: list[Event]) -> list[Event]:
    """Requests by a session of this user, by what the one who sent it knows."""
    return [one for one in _of(own, "cart", "look") if one["logged_in"] and one["outcome"]]


def _meets(event: Event, begin: float, end: float) -> bool:
    return bool(event["t1"] >= begin and event["t0"] <= end)


def _may_release(event: Event, expiry: Event, end: float) -> bool:
    """A change whose password is on its way to the database meets no demand that is new then."""
    last = event["t1"]
    if expiry["all_new"]:
        last = event.get("written") or last
    return bool(last >= expiry["t0"] and event["t0"] <= end)


def _holds(verdict: Verdict, own: list[Event]) -> None:
    expiries, releases = _of(own, "expire"), _of(own, *RELEASES)
    holding, changes = _of(own, "expire", "flag"), _of(own, *CHANGES)
    for asked in _asked(own):
        if asked["outcome"] not in ("passed", "held"):
            continue
        begin, end = asked["t0"], asked["t1"]
        before = [one for one in expiries if one["t1"] < begin and one["outcome"] == "ok"]
        if before:
            last = max(before, key=lambda one: one["t0"])
            if not any(_may_release(one, last, end) for one in releases):
                verdict.case("held", asked["outcome"] == "held", asked, last)
        done = [one for one in changes if one["t1"] < begin and one["outcome"] == "ok"]
        if done:
            last = max(done, key=lambda one: one["t0"])
            if not any(_meets(one, last["t0"], end) for one in holding):
                verdict.case("released", asked["outcome"] == "passed", asked, last)


def _flags(verdict: Verdict, own: list[Event]) -> None:
    """A flag by hand that nothing of the site wrote over holds its session."""
    asked_all, releases = _asked(own), _of(own, *RELEASES)
    writers = _of(own, "cart", "look", "change", "login", "logout")
    born = {one["new_key"]: one["t1"] for one in _of(own, "login") if one["outcome"] == "ok"}
    for flag in _of(own, "flag"):
        if flag["outcome"] != "ok" or FLAG_FAILURES & flag["outcomes"].keys():
            continue
        for asked in asked_all:
            if asked["t0"] <= flag["t1"] or asked["outcome"] not in ("passed", "held"):
                continue
            key = asked["key"]
            if born.get(key, flag["t0"]) >= flag["t0"]:
                continue
            if any(_meets(one, flag["t0"], asked["t1"]) for one in releases):
                continue
            busy = [one for one in writers if key in (one["key"], one["new_key"])]
            if not any(_meets(one, flag["t0"], flag["t1"]) for one in busy):
                verdict.case("flagged", asked["outcome"] == "held", asked, flag)


def _cart(verdict: Verdict, name: str, own: list[Event], rows: dict[str, Any]) -> None:
    kept: list[str] = []
    key = None
    for event in own:
        if event["kind"] in ("change", "login"):
            key = event["new_key"] if event["outcome"] == "ok" else key
        if event["kind"] not in ("cart", "look") or "cart" not in event:
            continue
        if event["new_session"] != name:
            continue
        lost = set(kept) - set(event["cart"])
        verdict.case("cart", not lost, lost, event)
        if event["kind"] == "cart":
            kept.append(event["item"])
            key = event["new_key"]
    if kept and key in rows:
        for where in ("row", "loaded"):
            there = rows[key][where].get("cart", [])
            there = [item for item in there if item in set(kept)]
            verdict.case("cart at the end", there == kept, where, name, key, kept, there)


def _gone(
    verdict: Verdict,
    events: list[Event],
    of_user: dict[int, list[Event]],
    rows: dict[str, Any],
) -> None:
    for event in _of(events, "logout"):
        if event["outcome"] == "ok" and event["key"]:
            verdict.case("logged out", event["key"] not in rows, event)
    dead: dict[str, float] = {}
    for event in events:
        if event.get("key") and (event["kind"] == "logout" or event["new_key"] != event["key"]):
            dead[event["key"]] = event["t0"]
    for own in of_user.values():
        births = _of(own, "login", "change")
        asked_all = _asked(own)
        for end in own:
            if not end.get("ends") or end["outcome"] != "ok":
                continue
            for birth in births:
                if birth["outcome"] != "ok" or birth["t1"] >= end["t0"]:
                    continue
                key = birth["new_key"]
                if dead.get(key, end["t1"]) < end["t1"]:
                    continue
                # A change or cancel meanwhile leaves the row to its number.
                if not any(_meets(one, end["t0"], end["t1"]) for one in _of(own, *RELEASES)):
                    verdict.case("ended row", key not in rows, birth, end)
                for asked in asked_all:
                    if asked["key"] == key and asked["t0"] > end["t1"]:
                        into = asked["outcome"] in ("passed", "held") and asked["new_key"] == key
                        verdict.case("ended", not into, asked, end)


def _expiry_dates(verdict: Verdict, events: list[Event], rows: dict[str, Any]) -> None:
    """Only a request of the site prolongs a session; one that is held or reads does not."""
    latest: dict[str, float] = {}
    for event in _of(events, "cart", "login", "change"):
        if event.get("outcome") != "held" and event.get("new_key"):
            latest[event["new_key"]] = max(latest.get(event["new_key"], 0), event["wall"])
    for key, row in rows.items():
        if key in latest:
            bound = latest[key] + COOKIE_AGE + CLOCK_SECONDS
            verdict.case("expiry date", row["expires"] <= bound, key, row["expires"] - bound)


def _failures(verdict: Verdict, events: list[Event]) -> None:
    acts: dict[int, list[Event]] = defaultdict(list)
    for event in events:
        if event["kind"] != "log":
            acts[event["actor"]].append(event)
    for event in events:
        if event.get("outcome") == "error":
            verdict.case("no error of ours", event["side"] != "ours", event["error"])
        elif event["kind"] == "log" and event["outcome"] in ("ERROR", "CRITICAL"):
            during = next(one for one in acts[event["actor"]] if _meets(one, *[event["t0"]] * 2))
            # What the site's own transaction lost, nobody was told to be done.
            kept = during["outcome"] in ("error", "interrupted") and during.get("side") != "ours"
            verdict.case("no fault of ours", kept, event["error"], during)
        elif event["kind"] == "expire" and event["outcome"] == "ok":
            verdict.case("in force", event["state"] in ("active", "done"), event)

"""Turn a max_age on in an old site without a morning on which everybody is locked out."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

from django.core.management.base import CommandError

from pwexpire.conf import conf
from pwexpire.management.bars import bars
from pwexpire.management.console import AddVerb, Console
from pwexpire.management.selectors import add_selectors, choose_users
from pwexpire.services.backfill import Forecast, Terms, backfill, forecast

UNITS = {"h": "hours", "d": "days", "w": "weeks"}
# Beyond that many days the forecast is by the week.
BY_DAY_MAX = 62
AT_ONCE = "at once"
NOTHING_AGES = "No policy has a max_age, so no password ages out: nothing was done."
SEEN = (
    "A change that was seen is evidence, and is not overwritten: give the users grace_logins, or "
    "begin with a longer max_age."
)


def add(verb: AddVerb) -> None:
    parser = verb("backfill", "Assume a change where nobody saw one, spread over an interval.")
    add_selectors(parser)
    parser.add_argument("--spread", default="30d", metavar="30d", help="12h, 30d or 2w")
    parser.add_argument("--assume", choices=["joined", "now"], help="from when an age is counted")
    parser.add_argument("--dry-run", action="store_true", help="who ages out when; writes nothing")
    parser.add_argument("--max-age", metavar="90d", help="try one out, with --dry-run")
    parser.add_argument("--seen", action="store_true", help="refused, and says why")


def run(options: dict[str, Any], console: Console) -> Any:
    if options["seen"]:
        raise CommandError(SEEN)
    given = options["max_age"]
    if given and not options["dry_run"]:
        raise CommandError("--max-age goes with --dry-run only: set the max_age of the policy.")
    joined = conf.assume_joined if options["assume"] is None else options["assume"] == "joined"
    terms = Terms(
        spread=parse_duration("--spread", options["spread"]),
        joined=joined,
        max_age=parse_duration("--max-age", given) if given else None,
    )
    chosen = choose_users(options, console.notice)
    if not given and not _may_age():
        return {"users": 0, "written": 0, "sentences": [NOTHING_AGES]}
    if not options["dry_run"]:
        return backfill(chosen, terms)
    answer = _describe_forecast(*forecast(chosen, terms))
    return {"sentences": _draw_forecast(answer)} if options["format"] == "text" else answer


def parse_duration(option: str, text: str) -> timedelta:
    match = re.fullmatch(r"(\d{1,5})([hdw])", text)
    length = timedelta(**{UNITS[match[2]]: int(match[1])}) if match else timedelta(0)
    if not length:
        raise CommandError(f"{option} {text} is no duration: write 12h, 30d or 2w.")
    return length


def _may_age() -> bool:
    """A callable alone knows what it says, of each user."""
    known = conf.policies
    return conf.policy is not None and (not known or any(one.max_age for one in known))


def _describe_forecast(without: Forecast, filled: Forecast) -> dict[str, Any]:
    days = sorted({*without.days, *filled.days})
    by_day = not days or (days[-1] - days[0]).days <= BY_DAY_MAX
    unit = "day" if by_day else "week"
    columns = {"without": _count_from(without, by_day), "with": _count_from(filled, by_day)}
    starts = sorted({*columns["without"], *columns["with"]}, key=lambda one: (one != AT_ONCE, one))
    return {
        "unit": unit,
        "forecast": [
            {"from": start, **{name: counts.get(start, 0) for name, counts in columns.items()}}
            for start in starts
        ],
    }


def _draw_forecast(answer: dict[str, Any]) -> list[str]:
    lines = []
    for name in ("without", "with"):
        lines.append(f"Passwords that age out, {name} the backfill, by the {answer['unit']}:")
        lines += bars({row["from"]: row[name] for row in answer["forecast"]})
    return lines


def _count_from(found: Forecast, by_day: bool) -> dict[str, int]:
    counts = {AT_ONCE: found.held} if found.held else {}
    for day, count in found.days.items():
        monday = day - timedelta(days=day.weekday())
        start = (day if by_day else monday).isoformat()
        counts[start] = counts.get(start, 0) + count
    return counts

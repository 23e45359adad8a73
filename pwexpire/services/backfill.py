"""Ages for passwords whose last change nobody saw, so that they do not all age out on one morning.

Every such password has a slot of its own, that comes again with every interval: a hash of the
user's primary key. No two runs and no two machines disagree about it, and a password that is at
its slot stays there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import partial
from hashlib import sha256
from typing import Any

from django.db import connections
from django.db.models import Q
from django.utils import timezone

from pwexpire.feed import feed
from pwexpire.keys import key_text
from pwexpire.models import PasswordRecord
from pwexpire.retries import in_transaction, retried
from pwexpire.services.password_state import Rules
from pwexpire.services.selection import Selection, list_with_records
from pwexpire.services.status import read_records, read_rules, rules_of_page

# Users of one transaction, and of one UPDATE: three parameters each.
PAGE = 500
MICROSECOND = timedelta(microseconds=1)
UNSEEN = Q(changed_at__isnull=True) | Q(assumed=True)
COUNTS = ("users", "written", "assumed_before", "seen", "without_age")


@dataclass(frozen=True, kw_only=True)
class Terms:
    """``spread``: the interval in which everybody has a slot. ``joined``: count from that day,
    else from now. ``max_age``: instead of the policies' own, to try one out.
    """

    spread: timedelta
    joined: bool
    max_age: timedelta | None = None


@dataclass(frozen=True, kw_only=True)
class Aging:
    """The times at which a password ages out, without and with a backfill, which is ``assumed``."""

    before: datetime
    after: datetime
    assumed: datetime | None = None


def backfill(selection: Selection, terms: Terms) -> dict[str, int]:
    """Assume a change for each selected user whose last one nobody saw. Counts, by ``COUNTS``.

    A change that was seen is never touched, also if it is made meanwhile. An interrupted run is
    finished by the next one. Nobody is freed of a demand.
    """
    counts: Counter[str] = Counter(dict.fromkeys(COUNTS, 0))
    after = ""
    while part := selection.part(after, PAGE):
        users, after = part
        counts += in_transaction(partial(_write_page, users, terms), using=feed.using)
    return {name: counts[name] for name in COUNTS}


def _write_page(users: Any, terms: Terms) -> Counter[str]:
    page = list_with_records(users)
    rules, records = rules_of_page(page, read_rules()), read_records(page)
    counts = Counter(users=len(page))
    known: dict[Any, datetime] = {}
    new: list[PasswordRecord] = []
    for user in page:
        record = records.get(user.pk)
        aging = age_out(rules, user, record, terms)
        if aging is None:
            counts["without_age"] += 1
        elif aging.assumed is None:
            counts["assumed_before" if record is not None and record.assumed else "seen"] += 1
        elif record is None:
            new.append(PasswordRecord(user_id=user.pk, changed_at=aging.assumed, assumed=True))
        else:
            known[user.pk] = aging.assumed
    counts["written"] = len(new) + _update_records(known)
    # A record that is there by now was written by a change meanwhile, and the change counts.
    PasswordRecord.objects.using(feed.using).bulk_create(new, ignore_conflicts=True)
    return counts


def _update_records(known: dict[Any, datetime]) -> int:
    if not known:
        return 0
    connection, fields = connections[feed.using], PasswordRecord._meta
    quote, adapt = connection.ops.quote_name, connection.ops.adapt_datetimefield_value
    columns = {field.name: quote(str(field.column)) for field in fields.concrete_fields}
    key, changed_at, assumed = (columns[name] for name in ("user", "changed_at", "assumed"))
    # The ORM would compile an expression for each user. Whether the change was seen is asked again:
    # one that was made meanwhile is not overwritten.
    sql = (
        f"UPDATE {quote(fields.db_table)} SET {changed_at} = CASE {key} "
        f"{'WHEN %s THEN %s ' * len(known)}END, {assumed} = %s "
        f"WHERE {key} IN ({', '.join(['%s'] * len(known))}) AND ({changed_at} IS NULL OR {assumed})"
    )
    pks = [fields.pk.get_db_prep_value(pk, connection) for pk in known]
    moments = [adapt(moment) for moment in known.values()]
    cases = [value for case in zip(pks, moments, strict=True) for value in case]
    with connection.cursor() as cursor:
        cursor.execute(sql, [*cases, True, *pks])
        return int(cursor.rowcount)


def age_out(rules: Rules, user: Any, record: PasswordRecord | None, terms: Terms) -> Aging | None:
    """Return when the password of ``user`` ages out, or ``None`` if it does not age."""
    max_age = _find_max_age(rules, user, terms)
    if max_age is None:
        return None
    known = record.changed_at if record is not None else None
    before = (known or rules.assumed_change(user)) + max_age
    if known is None:
        after = _assume_first(rules.now, user, max_age, terms)
    elif record is not None and record.assumed:
        after = _assume_again(rules.now, user, before, max_age, terms)
    else:
        after = before
    if known is not None and after == before:
        return Aging(before=before, after=after)
    return Aging(before=before, after=after, assumed=after - max_age)


def _find_max_age(rules: Rules, user: Any, terms: Terms) -> timedelta | None:
    if not rules.apply(user):
        return None
    policy = rules.choose(user).policy
    return None if rules.excuses(user, policy) else terms.max_age or policy.max_age


def _assume_first(now: datetime, user: Any, max_age: timedelta, terms: Terms) -> datetime:
    """On the day that follows from the user's own; where that is near or common, at their slot."""
    joined: datetime | None = getattr(user, "date_joined", None) if terms.joined else None
    due = (joined or now) + max_age
    if joined is not None and due >= now + terms.spread:
        return due
    return slot(user.pk, max(now + MICROSECOND, due), max_age=max_age, spread=terms.spread)


def _assume_again(
    now: datetime, user: Any, due: datetime, max_age: timedelta, terms: Terms
) -> datetime:
    """Keep what was assumed once, unless it was under other terms and has aged out by now."""
    find = partial(slot, user.pk, max_age=max_age, spread=terms.spread)
    return due if due > now or find(due) == due else find(now + MICROSECOND)


def slot(pk: Any, start: datetime, *, max_age: timedelta, spread: timedelta) -> datetime:
    """The first moment, from ``start`` on, at which it is this user's turn."""
    width = spread // MICROSECOND
    seed = f"{key_text(pk)}/{max_age // MICROSECOND}/{width}".encode()
    # Scaled and not modulo: every moment of the interval is as likely as any other.
    turn = int.from_bytes(sha256(seed).digest()[:8]) * width >> 64
    epoch = datetime(1970, 1, 1, tzinfo=UTC if timezone.is_aware(start) else None)
    return start + (turn - (start - epoch) // MICROSECOND) % width * MICROSECOND


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """``held``: how many passwords have aged out by now, ``days``: how many do on which day."""

    held: int
    days: dict[date, int]


def forecast(selection: Selection, terms: Terms) -> tuple[Forecast, Forecast]:
    """Count on which days the selected passwords age out, without and with the backfill."""
    without, filled = Counter[date | None](), Counter[date | None]()
    for users in selection.pages():
        one, other = retried(partial(_forecast_page, users, terms), using=feed.using)
        without.update(one)
        filled.update(other)
    return _count_days(without), _count_days(filled)


def _count_days(counts: Counter[date | None]) -> Forecast:
    days = {day: count for day, count in counts.items() if day is not None}
    return Forecast(held=counts[None], days=days)


def _forecast_page(
    users: Sequence[Any], terms: Terms
) -> tuple[Counter[date | None], Counter[date | None]]:
    rules, records = rules_of_page(users, read_rules()), read_records(users)
    found = [age_out(rules, user, records.get(user.pk), terms) for user in users]
    agings = [aging for aging in found if aging is not None]
    return (
        Counter(_find_day(aging.before, rules.now) for aging in agings),
        Counter(_find_day(aging.after, rules.now) for aging in agings),
    )


def _find_day(moment: datetime, now: datetime) -> date | None:
    if moment <= now:
        return None
    return (timezone.localtime(moment) if timezone.is_aware(moment) else moment).date()

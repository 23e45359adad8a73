"""Which users are meant. A ``QuerySet`` stays in the database; anything else is a set of keys."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from django.contrib.auth import get_user_model
from django.core.exceptions import EmptyResultSet, FullResultSet, ValidationError
from django.db import models
from django.db.models import QuerySet

from pwexpire.exceptions import InvalidRequest
from pwexpire.feed import feed
from pwexpire.keys import key_text
from pwexpire.services.demands import all_users
from pwexpire.services.status import check_saved

# Users whose keys are sent along with a statement, and users in one range of keys.
CHUNK = 2_000
RANGE = 10_000
# Users who are read at a time, where each is judged.
PAGE = 1_000
# How much of what was asked for is kept for the record, and of each value in it.
WORDS_MAX = 1_000
VALUE_MAX = 40
# A value of these types is nobody's name.
PLAIN = (int, float, Decimal, date, time, timedelta, UUID)
# A text in SQL, and what stands before a value that is compared with a column.
LITERAL = re.compile(r"'(?:[^']|'')*'")
COMPARED = re.compile(
    r'["`](\w+)["`]\.["`](\w+)["`](?:::\w+)?\s+'
    r"(?:=|<>|[<>]=?|LIKE(?: BINARY)?|IN|BETWEEN)\s*\(?$"
)


class Selection:
    def __init__(self, users: Any, *, exclude: Any = None) -> None:
        self.include = _query(users, "users")
        self.exclude = None if exclude is None else _query(exclude, "exclude")

    def in_words(self) -> str:
        """What was asked for, for the record; queries nothing."""
        said = _in_words(self.include)
        return said if self.exclude is None else f"{said} without {_in_words(self.exclude)}"

    def part(self, after: str, size: int | None = None) -> tuple[QuerySet[Any], str] | None:
        """The next users after this key, and the last key of them; ``None``: there are no more."""
        start = get_user_model()._meta.pk.to_python(after) if after else None
        if isinstance(self.include, QuerySet):
            return self._range(self.include, start, size or RANGE)
        pks = sorted(pk for pk in self.include if start is None or pk > start)[: size or CHUNK]
        if not pks:
            return None
        return self._without(all_users().filter(pk__in=pks), {}), key_text(pks[-1])

    def _range(
        self, include: QuerySet[Any], start: Any, size: int
    ) -> tuple[QuerySet[Any], str] | None:
        bounds: dict[str, Any] = {} if start is None else {"pk__gt": start}
        narrow = _can_be_narrowed(include)
        chosen = include if narrow else all_users().filter(pk__in=include.values("pk"))
        keys = chosen.filter(**bounds).order_by("pk").values_list("pk", flat=True)
        last = keys[size - 1 : size].first() or keys.reverse().first()
        if last is None:
            return None
        bounds["pk__lte"] = last
        if narrow and len(include.query.alias_map) < 2:  # no join: nobody is met twice
            chosen = include
        elif narrow:
            chosen = all_users().filter(pk__in=include.filter(**bounds).values("pk"))
        return self._without(chosen.filter(**bounds), bounds), key_text(last)

    def _without(self, users: QuerySet[Any], bounds: dict[str, Any]) -> QuerySet[Any]:
        out = self.exclude
        if out is None:
            return users
        if isinstance(out, QuerySet):
            if bounds and _can_be_narrowed(out):
                out = out.filter(**bounds)
            return users.exclude(pk__in=out.values("pk"))
        if len(out) > CHUNK:  # too many to send along
            pks = set(users.values_list("pk", flat=True)) - out
            return all_users().filter(pk__in=pks)
        return users.exclude(pk__in=out)

    def count(self) -> int:
        count, after = 0, ""
        while part := self.part(after):
            users, after = part
            count += users.count()
        return count

    def chunks(self, size: int = CHUNK) -> Iterator[list[Any]]:
        """Lists of primary keys, in their order."""
        after = ""
        while part := self.part(after, size):
            users, after = part
            yield list(users.order_by("pk").values_list("pk", flat=True))

    def pages(self, size: int = PAGE) -> Iterator[list[Any]]:
        """Lists of users with their records, in the order of their keys."""
        after = ""
        while part := self.part(after, size):
            users, after = part
            yield list_with_records(users)

    def among(self, ids: Iterable[str]) -> set[Any]:
        """Which of these ids, as a session stores them, are meant."""
        to_python = get_user_model()._meta.pk.to_python
        pks = set()
        for value in ids:
            try:
                pks.add(to_python(value))
            except ValidationError:
                continue
        users = all_users().filter(pk__in=pks)
        if isinstance(self.include, QuerySet):
            users = users.filter(pk__in=self.include.values("pk"))
        else:
            users = all_users().filter(pk__in=pks & self.include)
        return set(self._without(users, {}).values_list("pk", flat=True)) if pks else set()


def list_with_records(users: QuerySet[Any]) -> list[Any]:
    """Return ``users`` in the order of their keys, with ``pwexpire_record`` read along."""
    # All columns: a QuerySet that defers some has no room for the record.
    return list(users.defer(None).select_related("pwexpire_record").order_by("pk"))


def _can_be_narrowed(users: QuerySet[Any]) -> bool:
    """Whether a range of keys may be asked of it without changing who else is in it."""
    query = users.query
    return not (query.distinct_fields or query.annotations or query.extra)


def _query(users: Any, name: str) -> QuerySet[Any] | set[Any]:
    model = get_user_model()
    if isinstance(users, QuerySet):
        if not issubclass(users.model, model):
            raise InvalidRequest(
                f"{name} is a QuerySet of {users.model.__name__}: pass one of {model.__name__}."
            )
        if users.query.is_sliced or users.query.combinator:
            return set(users.using(feed.using).values_list("pk", flat=True))
        return users.using(feed.using).order_by()
    if isinstance(users, model):
        users = [users]
    elif isinstance(users, (str, bytes)) or not isinstance(users, Iterable):
        raise InvalidRequest(f"{name} must be a user, an iterable of users or a QuerySet of users.")
    pks = set()
    for user in users:
        check_saved(user)
        pks.add(user.pk)
    return pks


def _in_words(users: QuerySet[Any] | set[Any]) -> str:
    if not isinstance(users, QuerySet):
        return f"user {key_text(*users)}" if len(users) == 1 else f"{len(users)} given users"
    try:
        compiler = users.query.get_compiler(feed.using)
        condition, values = compiler.compile(users.query.where)
        # A text that stands in the SQL itself (``extra``, ``RawSQL``).
        said = LITERAL.sub(lambda text: text[0] if len(text[0]) < 4 else "'…'", str(condition))
        return said % tuple(_hide_names(said, list(values)))
    except EmptyResultSet:
        return "nobody"
    except FullResultSet:
        return "all users"
    except Exception:  # whatever an expression of the site's does, nobody stays unexpired by it
        return "users by a query"


def _hide_names(condition: str, values: list[Any]) -> list[str]:
    """The values of a condition in words, without what may be a text of a user.

    A name, an address or a part of one outlives its user in a batch. Readable is what is compared
    with a column that holds none: of a group's name, or of the users themselves and no text.
    """
    said, readable = [], False
    for before, value in zip(condition.split("%s"), values, strict=False):
        compared = COMPARED.search(before)
        # The values of a list follow one another, with no column between them.
        if compared is not None:
            readable = _holds_no_name(*compared.groups())
        elif before.strip() != ",":
            readable = False
        if readable or value is None or isinstance(value, PLAIN):
            said.append(_value_in_words(value))
        else:
            local, at, domain = str(value).rpartition("@")
            hidden = (local if local in ("", "%") else "…") + at + domain if at else "…"
            said.append(_value_in_words(hidden))
    return said


def _holds_no_name(table: str, column: str) -> bool:
    if (table, column) == ("auth_group", "name"):
        return True
    meta, texts = get_user_model()._meta, (models.CharField, models.TextField)
    plain = {field.column for field in meta.concrete_fields if not isinstance(field, texts)}
    return table == meta.db_table and column in plain


def _value_in_words(value: Any) -> str:
    if not isinstance(value, str):
        return shorten(str(value), VALUE_MAX)
    return f"'{shorten(hide_addresses(value), VALUE_MAX)}'"


def for_the_record(said: str) -> str:
    return shorten(hide_addresses(said), WORDS_MAX)


def hide_addresses(text: str) -> str:
    """Whose an e-mail address is, is nobody's business; the domain may be what was asked for."""
    return re.sub(r"[^\s@%'\"(),=<>]+@", "…@", text)


def shorten(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"

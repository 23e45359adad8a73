"""Which users are meant. Whatever was given, they are read in chunks, keyed by primary key."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.hashers import is_password_usable
from django.core.exceptions import ValidationError
from django.db.models import QuerySet

from pwexpire.exceptions import InvalidRequest
from pwexpire.feed import feed
from pwexpire.models import ExpiryBatch
from pwexpire.services.status import check_saved

CHUNK = 500


class Selection:
    def __init__(self, users: Any, *, exclude: Any = None) -> None:
        self.include = _query(users, "users")
        self.exclude = None if exclude is None else _query(exclude, "exclude")

    def _read(self, pks: Collection[Any] | None, after: Any = None) -> list[tuple[Any, bool]]:
        users = get_user_model()._base_manager.using(feed.using)
        if isinstance(self.include, QuerySet):
            users = users.filter(pk__in=self.include)
        if pks is not None:
            users = users.filter(pk__in=pks)
        if after is not None:
            users = users.filter(pk__gt=after)
        rows = users.order_by("pk").values_list("pk", "password")
        found = rows if pks is not None else rows[:CHUNK]
        return [(pk, is_password_usable(password)) for pk, password in found]

    def _excluded(self, pks: list[Any]) -> set[Any]:
        if self.exclude is None:
            return set()
        if isinstance(self.exclude, QuerySet):
            users = get_user_model()._base_manager.using(feed.using)
            return set(
                users.filter(pk__in=self.exclude).filter(pk__in=pks).values_list("pk", flat=True)
            )
        return self.exclude.intersection(pks)

    def chunks(self, after: str = "") -> Iterator[list[tuple[Any, bool]]]:
        """Lists of (primary key, usable password), in the order of the keys."""
        start = get_user_model()._meta.pk.to_python(after) if after else None
        if isinstance(self.include, QuerySet):
            while rows := self._read(None, start):
                start = rows[-1][0]
                yield self._keep(rows)
            return
        pks = sorted(pk for pk in self.include if start is None or pk > start)
        for at in range(0, len(pks), CHUNK):
            yield self._keep(self._read(pks[at : at + CHUNK]))

    def _keep(self, rows: list[tuple[Any, bool]]) -> list[tuple[Any, bool]]:
        out = self._excluded([pk for pk, _ in rows])
        return [row for row in rows if row[0] not in out]

    def among(self, ids: Iterable[str]) -> set[Any]:
        """Which of these ids, as a session stores them, are meant."""
        to_python = get_user_model()._meta.pk.to_python
        pks = set()
        for value in ids:
            try:
                pks.add(to_python(value))
            except ValidationError:
                continue
        if not isinstance(self.include, QuerySet):
            pks &= self.include
        return {pk for pk, _ in self._keep(self._read(pks))} if pks else set()


def _query(users: Any, name: str) -> QuerySet[Any] | set[Any]:
    model = get_user_model()
    if isinstance(users, QuerySet):
        if not issubclass(users.model, model):
            raise InvalidRequest(
                f"{name} is a QuerySet of {users.model.__name__}: pass one of {model.__name__}."
            )
        if users.query.is_sliced or users.query.combinator:
            return set(users.using(feed.using).values_list("pk", flat=True))
        return users.using(feed.using).order_by().values("pk")
    if isinstance(users, model):
        users = [users]
    elif isinstance(users, (str, bytes)) or not isinstance(users, Iterable):
        raise InvalidRequest(f"{name} must be a user, an iterable of users or a QuerySet of users.")
    pks = set()
    for user in users:
        check_saved(user)
        pks.add(user.pk)
    return pks


def members(batch: ExpiryBatch) -> QuerySet[Any]:
    """The users whom a batch that is not on everyone still wants."""
    users = get_user_model()._base_manager.using(feed.using)
    return users.filter(pwexpire_demands__batch=batch)

"""Statements that are asked often: the ORM compiles each of them once, and a value is put in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.contrib.auth import get_user_model
from django.core.exceptions import EmptyResultSet
from django.db import connections
from django.db.models import Expression, Manager, QuerySet


class Asked(Expression):
    """Stands in a query for the primary key of the user whom it will be asked about."""

    def as_sql(self, compiler: Any, connection: Any) -> tuple[str, Any]:
        return "%s", [self]


ASKED = Asked()


@dataclass(frozen=True)
class Statement:
    sql: str
    params: tuple[Any, ...]
    columns: tuple[Any, ...]


class Compiled:
    """A query of one user, or of none. ``build``: makes it, with ``ASKED`` in place of the user.

    To compile it takes ten times as long as to ask it. The text depends on the database and on the
    user model, so there is one for each of them.
    """

    def __init__(self, build: Callable[[], QuerySet[Any, Any]]) -> None:
        self._build = build
        self._statements: dict[tuple[Any, ...], Statement] = {}

    def rows(self, using: str, pk: Any = None) -> list[tuple[Any, ...]]:
        connection, model = connections[using], get_user_model()
        kind = using, type(connection), model
        statement = self._statements.get(kind)
        if statement is None:
            try:
                statement = self._compile(using)
            except EmptyResultSet:  # the manager shows nobody
                return []
            # A manager of the site's own may ask for something else each time.
            if type(model._base_manager) is Manager:
                self._statements[kind] = statement
        field, key = model._meta.pk, None
        if pk is not None:  # as in a lookup: unlike in an INSERT, MySQL takes 0 for a key
            key = field.get_db_prep_value(field.get_prep_value(pk), connection, prepared=True)
        params = [key if isinstance(one, Asked) else one for one in statement.params]
        with connection.cursor() as cursor:
            cursor.execute(statement.sql, params)
            found = cursor.fetchall()
        return [_convert(row, statement.columns, connection) for row in found]

    def _compile(self, using: str) -> Statement:
        compiler = self._build().query.get_compiler(using)
        sql, params = compiler.as_sql()
        return Statement(sql, tuple(params), tuple(column for column, *_ in compiler.select))


def _convert(row: Any, columns: tuple[Any, ...], connection: Any) -> tuple[Any, ...]:
    """From what the driver returns, as the ORM does: SQLite, say, knows no dates."""
    values = []
    for value, column in zip(row, columns, strict=True):
        # Of this thread's connection, so they are not kept.
        for convert in (
            *connection.ops.get_db_converters(column),
            *column.get_db_converters(connection),
        ):
            value = convert(value, column, connection)
        values.append(value)
    return tuple(values)

"""The primary key of a user as sessions name it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from django.contrib.auth import get_user_model


def key_text(pk: Any) -> str:
    """A primary key as ``login()`` writes it into a session, and as it is kept in a cursor."""
    if type(pk) is int or type(pk) is str:
        return str(pk)
    field = get_user_model()._meta.pk
    return str(field.value_to_string(SimpleNamespace(**{field.attname: pk})))  # type: ignore[arg-type]

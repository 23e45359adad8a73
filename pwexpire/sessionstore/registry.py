from __future__ import annotations

import sys
from functools import cache
from importlib import import_module
from typing import Any

from django.conf import settings
from django.contrib.sessions.backends import cache as cache_engine
from django.contrib.sessions.backends import db, file, signed_cookies
from django.contrib.sessions.backends.base import SessionBase
from django.contrib.sessions.base_session import AbstractBaseSession

from pwexpire.sessionstore.base import SessionAdapter
from pwexpire.sessionstore.rows import CachedRowAdapter, RowAdapter
from pwexpire.sessionstore.stores import CacheAdapter, CookieAdapter, FileAdapter


def get_adapter() -> SessionAdapter:
    """The adapter of the site's session engine, known by its class, whatever its name."""
    return _make_adapter(import_module(settings.SESSION_ENGINE).SessionStore)


@cache
def _make_adapter(store_class: type[SessionBase]) -> SessionAdapter:
    model = _find_model(store_class)
    if model is not None:
        cached = hasattr(store_class, "cache_key_prefix")
        return (CachedRowAdapter if cached else RowAdapter)(store_class, model)
    # Subclasses count; a store of none of these classes is asked through Django's own API.
    if issubclass(store_class, signed_cookies.SessionStore):
        return CookieAdapter(store_class)
    if issubclass(store_class, file.SessionStore):
        return FileAdapter(store_class)
    if issubclass(store_class, cache_engine.SessionStore):
        return CacheAdapter(store_class)
    return SessionAdapter(store_class)


def _find_model(store_class: type[SessionBase]) -> Any:
    if issubclass(store_class, db.SessionStore):
        return store_class.get_model_class()
    # django-user-sessions keeps its model beside a store of its own.
    model = getattr(sys.modules[store_class.__module__], "Session", None)
    if isinstance(model, type) and issubclass(model, AbstractBaseSession):
        return model
    fields = {field.name for field in getattr(getattr(model, "_meta", None), "fields", ())}
    return model if {"session_key", "session_data", "expire_date"} <= fields else None

"""The servers that the tests may use: which are chosen, where they are, whether they answer."""

from __future__ import annotations

import os
import socket
from importlib.util import find_spec
from urllib.parse import urlsplit

DATABASES = ("sqlite", "postgresql", "mariadb")
CACHES = ("locmem", "redis", "django-redis", "memcached")
REDIS = os.environ.get("PWEXPIRE_TEST_REDIS", "redis://127.0.0.1:6379/9")
MEMCACHED = os.environ.get("PWEXPIRE_TEST_MEMCACHED", "127.0.0.1:11211")
HOST = os.environ.get("PWEXPIRE_TEST_HOST", "127.0.0.1")
PORTS = {"postgresql": 5432, "mariadb": 3306}
DRIVERS = {
    "postgresql": "psycopg",
    "mariadb": "pymysql",
    "redis": "redis",
    "django-redis": "django_redis",
    "memcached": "pymemcache",
}
USERS = {"postgresql": "postgres", "mariadb": "root"}


def chosen() -> tuple[str, str]:
    """A database and a cache, out of ``PWEXPIRE_TEST_ON``: ``postgresql+redis``, say."""
    database, cache = DATABASES[0], CACHES[0]
    for word in filter(None, os.environ.get("PWEXPIRE_TEST_ON", "").split("+")):
        if word in DATABASES:
            database = word
        elif word in CACHES:
            cache = word
        else:
            known = ", ".join((*DATABASES, *CACHES))
            raise ValueError(f"PWEXPIRE_TEST_ON names {word!r}: use {known}, joined by a plus.")
    return database, cache


def address(name: str) -> tuple[str, int] | None:
    """Where the server is; ``None`` for what needs none."""
    if name in PORTS:
        return HOST, int(os.environ.get("PWEXPIRE_TEST_PORT") or PORTS[name])
    if name in ("redis", "django-redis"):
        parts = urlsplit(REDIS)
        return parts.hostname or "127.0.0.1", parts.port or 6379
    if name == "memcached":
        host, _, port = MEMCACHED.partition(":")
        return host, int(port or 11211)
    return None


def answers(name: str) -> bool:
    """Whether the server is there, and the package that talks to it."""
    place = address(name)
    if place is None:
        return True
    if find_spec(DRIVERS[name]) is None:
        return False
    try:
        socket.create_connection(place, timeout=2).close()
    except OSError:
        return False
    return True


def database(name: str, file: str = ":memory:") -> dict[str, object]:
    """An entry of ``DATABASES``."""
    if name == "sqlite":
        return {"ENGINE": "django.db.backends.sqlite3", "NAME": file}
    host, port = address(name)
    entry = {
        "NAME": os.environ.get("PWEXPIRE_TEST_NAME", "pwexpire"),
        "HOST": host,
        "PORT": port,
        "USER": os.environ.get("PWEXPIRE_TEST_USER", USERS[name]),
        "PASSWORD": os.environ.get("PWEXPIRE_TEST_PASSWORD", ""),
    }
    if name == "postgresql":
        return {**entry, "ENGINE": "django.db.backends.postgresql"}
    # PyMySQL instead of mysqlclient: no compiler needed.
    import pymysql

    pymysql.version_info = (2, 2, 1, "final", 0)
    pymysql.install_as_MySQLdb()
    return {**entry, "ENGINE": "django.db.backends.mysql", "TEST": {"CHARSET": "utf8mb4"}}


def cache(name: str) -> dict[str, object]:
    """An entry of ``CACHES``; its keys are those of this process alone."""
    if name == "locmem":
        return {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}
    prefix = os.environ.get("PWEXPIRE_TEST_PREFIX", f"pwexpire-{os.getpid()}")
    if name == "redis":
        backend, where = "django.core.cache.backends.redis.RedisCache", REDIS
    elif name == "django-redis":
        backend, where = "django_redis.cache.RedisCache", REDIS
    else:
        backend, where = "django.core.cache.backends.memcached.PyMemcacheCache", MEMCACHED
    return {"BACKEND": backend, "LOCATION": where, "KEY_PREFIX": prefix}

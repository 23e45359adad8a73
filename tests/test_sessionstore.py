from __future__ import annotations

import os
from importlib import import_module
from unittest import mock

import pytest
from django.apps import apps
from django.contrib.auth import SESSION_KEY
from django.db import OperationalError
from django.utils import timezone

from pwexpire.sessionstore import rows
from pwexpire.sessionstore.base import Outcome, SessionAdapter, StoredSession
from pwexpire.sessionstore.registry import get_adapter
from pwexpire.sessionstore.rows import RowAdapter

pytestmark = pytest.mark.django_db(transaction=True)
BACKENDS = "django.contrib.sessions.backends."
ROWS = [BACKENDS + "db", BACKENDS + "cached_db", "tests.testapp.sessions_sub"]
COLUMNS = ["tests.testapp.sessions_db", "qsessions.backends.db", "qsessions.backends.cached_db"]
COLUMNS += ["user_sessions.backends.db"]


def use(settings, name):
    app = name.split(".")[0]
    if app in ("qsessions", "user_sessions") and not apps.is_installed(app):
        pytest.skip(f"{app} is not installed")
    settings.SESSION_ENGINE = name
    return get_adapter()


def make(user_id, **data):
    store = import_module(settings_engine()).SessionStore()
    store[SESSION_KEY] = str(user_id)
    for name, value in data.items():
        store[name] = value
    store.save()
    return store


def settings_engine():
    from django.conf import settings

    return settings.SESSION_ENGINE


def reload(store):
    return dict(type(store)(store.session_key).items())


@pytest.mark.parametrize("name", ROWS + COLUMNS)
def test_flag_clear_end_and_list(settings, alice, bob, name):
    adapter = use(settings, name)
    first, second = make(alice.pk, cart=["pen"]), make(bob.pk)
    key, owner = first.session_key, str(alice.pk)
    expires = {row.key: row.expires for row in adapter.sessions()}
    assert adapter.flag({key: (owner, 7)}) == {Outcome.FLAGGED: 1, Outcome.GONE: 0}
    data = reload(first)
    assert (data["password_expired"], data["_password_expired_demand"]) == (True, 7)
    assert data["cart"] == ["pen"]
    assert {row.key: row.expires for row in adapter.sessions()} == expires
    assert {row.key: row.flagged for row in adapter.sessions(chunk=1)} == {
        key: True,
        second.session_key: False,
    }
    assert +adapter.flag({key: (owner, 7)}) == {Outcome.ALREADY: 1}
    assert +adapter.flag({key: (owner, None)}) == {Outcome.ALREADY: 1}
    assert +adapter.flag({key: (owner, 8)}) == {Outcome.FLAGGED: 1}
    assert +adapter.flag({key: (str(bob.pk), 9)}) == {Outcome.GONE: 1}
    assert +adapter.clear({key: (owner, 7)}) == {Outcome.CONFLICT: 1}
    assert +adapter.clear({key: (owner, 8)}) == {Outcome.CLEARED: 1}
    assert +adapter.clear({key: (owner, 8)}) == {Outcome.ALREADY: 1}
    assert "password_expired" not in reload(first)
    assert adapter.alive([key, "dead"]) == {key}
    assert +adapter.end({key: str(bob.pk)}) == {Outcome.GONE: 1}
    assert +adapter.end({key: owner, "dead": owner}) == {Outcome.ENDED: 1, Outcome.GONE: 1}
    assert not type(first)().exists(key)
    assert +adapter.flag({key: (owner, 7)}) == {Outcome.GONE: 1}
    assert not type(first)().exists(key)


@pytest.mark.parametrize("name", COLUMNS)
def test_a_user_column_is_asked(settings, alice, bob, name):
    adapter = use(settings, name)
    store = make(alice.pk)
    make(bob.pk)
    assert adapter.supports_user_lookup and not adapter.supports_index
    assert list(adapter.keys_of([alice.pk])) == [(store.session_key, str(alice.pk))]


@pytest.mark.parametrize("name", COLUMNS)
def test_services_find_sessions_by_the_column(settings, alice, client, name):
    from pwexpire import services

    use(settings, name)
    if name.startswith("user_sessions"):
        pytest.skip("needs a middleware of its own to log in")
    client.force_login(alice)
    assert services.expire_passwords(alice).sessions_flagged == 1
    assert client.session["password_expired"] is True


@pytest.mark.parametrize("name", ROWS)
def test_a_concurrent_write_wins(settings, alice, name):
    adapter = use(settings, name)
    store = make(alice.pk)
    real, turns = RowAdapter._write, []

    def slow(self, swaps):
        if len(turns) < rows.TRIES + 2:
            turns.append(1)
            other = type(store)(store.session_key)
            other["cart"] = [len(turns)]
            other.save()
        return real(self, swaps)

    with mock.patch.object(RowAdapter, "_write", slow):
        outcome = adapter.flag({store.session_key: (str(alice.pk), 7)})
        assert +outcome == {Outcome.CONFLICT: 1}
        assert reload(store)["cart"] == [rows.TRIES]
        turns.extend([1])
        assert +adapter.flag({store.session_key: (str(alice.pk), 7)}) == {Outcome.FLAGGED: 1}
    assert reload(store)["password_expired"] is True


def test_a_bad_signature_is_never_signed_again(settings, alice):
    adapter = use(settings, ROWS[0])
    store = make(alice.pk)
    adapter.model.objects.update(session_data="forged:data")
    assert +adapter.flag({store.session_key: (str(alice.pk), 7)}) == {Outcome.GONE: 1}
    assert adapter.model.objects.get().session_data == "forged:data"


def test_a_database_fault_is_counted(settings, alice, caplog):
    adapter = use(settings, ROWS[0])
    store = make(alice.pk)
    with mock.patch.object(RowAdapter, "_write", side_effect=OperationalError("locked")):
        assert adapter.flag({store.session_key: (str(alice.pk), 7)})[Outcome.FAILED] == 1
    assert store.session_key not in caplog.text and "locked" in caplog.text


def test_expired_sessions_are_not_live(settings, alice):
    adapter = use(settings, ROWS[0])
    store = make(alice.pk)
    adapter.model.objects.update(expire_date=timezone.now())
    assert list(adapter.sessions()) == [] and len(list(adapter.sessions(live_only=False))) == 1
    assert adapter.alive([store.session_key]) == set()


def test_cached_rows_are_dropped_from_the_cache(settings, alice):
    adapter = use(settings, BACKENDS + "cached_db")
    store = make(alice.pk)
    assert store.cache_key in store._cache
    adapter.flag({store.session_key: (str(alice.pk), 7)})
    assert store.cache_key not in store._cache


@pytest.mark.parametrize("name", ["cache", "file"])
def test_engines_without_rows(engine, alice, settings, name):
    adapter = use(settings, BACKENDS + name)
    store = make(alice.pk)
    owner = str(alice.pk)
    assert adapter.flag({store.session_key: (owner, 7)}) == {Outcome.UNSUPPORTED: 1}
    assert adapter.clear({store.session_key: (owner, 7)}) == {Outcome.UNSUPPORTED: 1}
    assert adapter.alive([store.session_key, "a" * 32]) == {store.session_key}
    assert adapter.end({store.session_key: "other", "a" * 32: owner}) == {Outcome.GONE: 2}
    assert adapter.end({store.session_key: owner}) == {Outcome.ENDED: 1}
    with mock.patch.object(adapter.store_class, "exists", side_effect=OSError("disk")):
        assert adapter.end({"b" * 32: owner}) == {Outcome.FAILED: 1}


def test_files_are_listed_without_being_touched(settings, tmp_path, alice, monkeypatch):
    from django.contrib.sessions.backends.file import SessionStore

    monkeypatch.setattr(SessionStore, "_storage_path", str(tmp_path), raising=False)
    adapter = use(settings, BACKENDS + "file")
    plain, timed, dated, dead = make(1), make(2), make(3), make(4)
    timed.set_expiry(120)
    timed.save()
    dated.set_expiry(timezone.now() + timezone.timedelta(hours=1))
    dated.save()
    dead.set_expiry(-5)
    dead.save()
    (tmp_path / "sessionidbroken").write_bytes(b"\xff")
    (tmp_path / "other").write_text("x")
    before = sorted((entry.name, entry.stat().st_mtime) for entry in os.scandir(tmp_path))
    listed = {row.key: row for row in adapter.sessions()}
    assert listed.keys() == {plain.session_key, timed.session_key, dated.session_key}
    assert all(row.expires > timezone.now() for row in listed.values())
    assert len(list(adapter.sessions(live_only=False))) == 4
    last = max(listed)
    assert last not in [row.key for row in adapter.sessions(after=last)]
    after = sorted((entry.name, entry.stat().st_mtime) for entry in os.scandir(tmp_path))
    assert after == before
    settings.USE_TZ = False
    assert len(list(adapter.sessions(live_only=False))) == 4


def test_cookies_can_do_nothing(settings):
    adapter = use(settings, BACKENDS + "signed_cookies")
    assert not adapter.supports_end and not adapter.supports_index
    assert adapter.end({"k": "1"}) == {Outcome.UNSUPPORTED: 1}
    assert adapter.alive(["k"]) == {"k"}


def test_an_unknown_engine_can_end_sessions(settings):
    adapter = use(settings, "pwexpire.management.probe")
    assert type(adapter) is SessionAdapter
    assert list(adapter.sessions()) == list(adapter.keys_of([1])) == []
    assert adapter.alive(["k"]) == {"k"}
    assert StoredSession.of("k", {}, None).user_id is None

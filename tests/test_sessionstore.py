from __future__ import annotations

import os
from importlib import import_module
from unittest import mock

import pytest
from django.apps import apps
from django.contrib.auth import SESSION_KEY, get_user_model
from django.contrib.sessions.backends import db, file
from django.contrib.sessions.backends.base import SessionBase
from django.contrib.sessions.base_session import AbstractBaseSession
from django.core.cache import caches
from django.db import OperationalError, connection, models
from django.test.utils import isolate_apps
from django.utils import timezone

from pwexpire.sessionstore import registry, rows
from pwexpire.sessionstore.base import (
    Outcome,
    SessionAdapter,
    StoredSession,
    drop_in_memory,
    peek,
    set_in_memory,
)
from pwexpire.sessionstore.registry import get_adapter
from pwexpire.sessionstore.rows import CachedRowAdapter, RowAdapter

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
    assert list(adapter.keys_of([alice.pk])) == [[(store.session_key, str(alice.pk))]]


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
    real, turns = RowAdapter._swap_rows, []

    def slow(self, swaps):
        if len(turns) < rows.TRIES + 2:
            turns.append(1)
            other = type(store)(store.session_key)
            other["cart"] = [len(turns)]
            other.save()
        return real(self, swaps)

    with mock.patch.object(RowAdapter, "_swap_rows", slow):
        outcome = adapter.flag({store.session_key: (str(alice.pk), 7)})
        assert +outcome == {Outcome.CONFLICT: 1}
        assert reload(store)["cart"] == [rows.TRIES]
        turns.extend([1])
        assert +adapter.flag({store.session_key: (str(alice.pk), 7)}) == {Outcome.FLAGGED: 1}
    assert reload(store)["password_expired"] is True


def test_many_rows_are_swapped_by_one_statement(settings, alice):
    """As PostgreSQL does; SQLite understands it too."""
    adapter = use(settings, ROWS[0])
    if connection.vendor == "mysql":
        pytest.skip("another dialect")
    stores = [make(alice.pk) for _ in range(3)]
    wanted = {store.session_key: (str(alice.pk), 7) for store in stores}
    real, turns = RowAdapter._swap_rows, []

    def slow(self, swaps):
        turns.append(1)
        stores[1]["cart"] = [*turns]
        stores[1].save()
        return real(self, swaps)

    with (
        mock.patch.object(connection, "vendor", "postgresql"),
        mock.patch.object(RowAdapter, "_swap_rows", slow),
    ):
        assert +adapter.flag(wanted) == {Outcome.FLAGGED: 2, Outcome.CONFLICT: 1}
    assert [bool(reload(store).get("password_expired")) for store in stores] == [True, False, True]
    assert reload(stores[1])["cart"] == [1] * rows.TRIES


def test_a_bad_signature_is_never_signed_again(settings, alice):
    adapter = use(settings, ROWS[0])
    store = make(alice.pk)
    adapter.model.objects.update(session_data="forged:data")
    assert +adapter.flag({store.session_key: (str(alice.pk), 7)}) == {Outcome.GONE: 1}
    assert adapter.model.objects.get().session_data == "forged:data"


def test_a_database_fault_is_counted(settings, alice, caplog):
    adapter = use(settings, ROWS[0])
    store = make(alice.pk)
    with mock.patch.object(RowAdapter, "_swap_rows", side_effect=OperationalError("down")):
        assert adapter.flag({store.session_key: (str(alice.pk), 7)})[Outcome.FAILED] == 1
    assert store.session_key not in caplog.text and "down" in caplog.text
    with mock.patch.object(RowAdapter, "_delete_rows", side_effect=OperationalError("down")):
        assert adapter.end({store.session_key: str(alice.pk)}) == {Outcome.FAILED: 1}
    assert store.session_key not in caplog.text and type(store)().exists(store.session_key)


@pytest.mark.parametrize("forbidden", [AssertionError, RuntimeError])
def test_a_forbidden_query_is_no_outage(settings, alice, forbidden):
    adapter = use(settings, ROWS[0])
    key, owner = make(alice.pk).session_key, str(alice.pk)
    with mock.patch.object(RowAdapter, "_find_rows", side_effect=forbidden("no queries here")):
        with pytest.raises(forbidden):
            adapter.flag({key: (owner, 7)})
        with pytest.raises(forbidden):
            adapter.end({key: owner})
    adapter = use(settings, BACKENDS + "cached_db")
    with mock.patch.object(
        type(caches["default"]), "delete_many", side_effect=forbidden("no queries here")
    ):
        with pytest.raises(forbidden):
            adapter.end({key: owner})
    adapter = use(settings, BACKENDS + "cache")
    with mock.patch.object(adapter.store_class, "exists", side_effect=forbidden("no")):
        with pytest.raises(forbidden):
            adapter.end({key: owner})


@pytest.mark.parametrize("name", ROWS + COLUMNS)
@pytest.mark.parametrize("expiry", [None, 0, 3600, timezone.timedelta(hours=2)])
def test_no_lifetime_is_touched(settings, alice, name, expiry):
    adapter = use(settings, name)
    store = make(alice.pk)
    store.set_expiry(expiry)
    store.save()
    rows_of = adapter.model._base_manager.exclude(session_data="").order_by("pk")
    columns = [f.attname for f in adapter.model._meta.fields if f.name != "session_data"]
    before, data = list(rows_of.values_list(*columns)), reload(store)
    wanted = {store.session_key: (str(alice.pk), 7)}
    assert +adapter.flag(wanted) == {Outcome.FLAGGED: 1}
    flags = {"password_expired": True, "_password_expired_demand": 7}
    assert reload(store) == {**data, **flags}
    assert list(rows_of.values_list(*columns)) == before
    assert +adapter.clear(wanted) == {Outcome.CLEARED: 1}
    assert reload(store) == data and list(rows_of.values_list(*columns)) == before


def test_an_unnumbered_flag_has_no_companion(settings, alice):
    adapter = use(settings, ROWS[0])
    store = make(alice.pk, password_expired=False, _password_expired_demand=3)
    wanted = {store.session_key: (str(alice.pk), None)}
    assert +adapter.flag(wanted) == {Outcome.FLAGGED: 1}
    assert reload(store)["password_expired"] is True
    assert "_password_expired_demand" not in reload(store)
    assert +adapter.flag({store.session_key: (str(alice.pk), 7)}) == {Outcome.ALREADY: 1}
    assert +adapter.clear({store.session_key: (str(alice.pk), 7)}) == {Outcome.CONFLICT: 1}
    assert +adapter.clear(wanted) == {Outcome.CLEARED: 1}


def test_only_sessions_are_counted_as_ended(settings, alice):
    adapter = use(settings, ROWS[0])
    store = make(alice.pk)
    label = adapter.model._meta.label
    cascade = (3, {label: 1, "shop.CartLine": 2})
    with mock.patch("django.db.models.query.QuerySet.delete", return_value=cascade):
        assert adapter.end({store.session_key: str(alice.pk)}) == {Outcome.ENDED: 1}


def test_more_sessions_than_a_chunk(settings, alice, bob):
    adapter = use(settings, ROWS[0])
    keys = sorted(make(alice.pk).session_key for _ in range(7))
    with mock.patch.object(rows, "CHUNK", 3):
        assert +adapter.flag({key: (str(alice.pk), 7) for key in keys}) == {Outcome.FLAGGED: 7}
        assert [row.key for row in adapter.sessions(chunk=2)] == keys
        assert [row.key for row in adapter.sessions(after=keys[4], chunk=1)] == keys[5:]
        assert adapter.end(dict.fromkeys(keys, str(alice.pk))) == {Outcome.ENDED: 7}


def test_expired_sessions_are_not_live(settings, alice):
    adapter = use(settings, ROWS[0])
    store = make(alice.pk)
    adapter.model.objects.update(expire_date=timezone.now())
    assert list(adapter.sessions()) == [] and adapter.model.objects.count() == 1
    assert adapter.alive([store.session_key]) == set()


def test_cached_rows_are_dropped_from_the_cache(settings, alice):
    adapter = use(settings, BACKENDS + "cached_db")
    store = make(alice.pk)
    assert store.cache_key in store._cache
    key, owner = store.session_key, str(alice.pk)
    adapter.flag({key: (owner, 7)})
    assert store.cache_key not in store._cache
    assert reload(store)["password_expired"] and store.cache_key in store._cache
    adapter.clear({key: (owner, 7)})
    assert store.cache_key not in store._cache
    assert "password_expired" not in reload(store) and store.cache_key in store._cache
    adapter.end({key: owner})
    assert store.cache_key not in store._cache and reload(store) == {}


def test_a_cache_that_is_down(settings, alice, caplog):
    adapter = use(settings, BACKENDS + "cached_db")
    store = make(alice.pk)
    key, owner = store.session_key, str(alice.pk)
    with mock.patch.object(
        type(caches["default"]), "delete_many", side_effect=ConnectionError(store.cache_key)
    ):
        assert +adapter.flag({key: (owner, 7)}) == {Outcome.FLAGGED: 1}
        # The copy would be served on, so nothing has ended yet.
        assert adapter.end({key: owner}) == {Outcome.FAILED: 1}
    assert key not in caplog.text and "ConnectionError" in caplog.text
    assert store.cache_key in store._cache
    assert adapter.end({key: owner}) == {Outcome.GONE: 1}
    assert store.cache_key not in store._cache


def test_rows_with_a_cache_are_known_by_their_prefix():
    class Store(db.SessionStore):
        cache_key_prefix = "x."

    assert type(registry._make_adapter(Store)) is CachedRowAdapter


@pytest.mark.parametrize("name", ["cache", "file"])
def test_engines_without_rows(engine, alice, settings, name):
    adapter = use(settings, BACKENDS + name)
    store = make(alice.pk)
    owner = str(alice.pk)
    assert adapter.flag({store.session_key: (owner, 7)}) == {Outcome.UNSUPPORTED: 1}
    assert adapter.clear({store.session_key: (owner, 7)}) == {Outcome.UNSUPPORTED: 1}
    assert adapter.alive([store.session_key, "a" * 32]) == {store.session_key}
    assert adapter.end({store.session_key: "other", "a" * 32: owner}) == {Outcome.GONE: 2}
    with mock.patch.object(adapter.store_class, "delete", side_effect=OSError("disk")):
        assert adapter.end({store.session_key: owner}) == {Outcome.FAILED: 1}
    assert adapter.end({store.session_key: owner}) == {Outcome.ENDED: 1}


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
    assert listed[timed.session_key].expires is None
    assert listed[plain.session_key].expires > timezone.now()
    assert listed[dated.session_key].expires > timezone.now()
    assert {row.key: row for row in adapter.sessions()} == listed
    last = max(listed)
    assert last not in [row.key for row in adapter.sessions(after=last)]
    after = sorted((entry.name, entry.stat().st_mtime) for entry in os.scandir(tmp_path))
    assert after == before
    settings.USE_TZ = False
    assert len(list(adapter.sessions())) == 3


@pytest.fixture
def files(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(file.SessionStore, "_storage_path", str(tmp_path), raising=False)
    return use(settings, BACKENDS + "file")


@pytest.mark.parametrize("expiry", [0, 120])
@pytest.mark.parametrize("use_tz", [True, False])
def test_files_that_django_still_serves_are_live(files, settings, expiry, use_tz):
    settings.USE_TZ = use_tz
    store = make(1)
    store.set_expiry(expiry)
    store.save()
    if expiry:  # load() does not look at the age of a file with a number of seconds
        os.utime(store._key_to_file(), (1e9, 1e9))
    assert reload(store)
    assert [row.key for row in files.sessions()] == [store.session_key]
    assert files.alive([store.session_key, "dead"]) == {store.session_key}


@pytest.mark.parametrize("spoil", [-5, "soon", -(10**15), "forged", "unreadable"])
def test_a_spoiled_file_becomes_no_other_session(files, tmp_path, spoil):
    store = make(1, _session_expiry=spoil)
    key, path = store.session_key, tmp_path / f"sessionid{store.session_key}"
    if spoil == "forged":
        path.write_text("forged:data")
    if spoil == "unreadable":
        path.write_bytes(b"\xff")
    # Whose end cannot be reckoned is listed rather than missed.
    live = set() if spoil in (-5, "unreadable") else {key}
    assert files.alive([key]) == live
    assert {row.key for row in files.sessions()} == live
    assert os.listdir(tmp_path) == [path.name]
    outcomes = {"forged": Outcome.GONE, "unreadable": Outcome.FAILED}
    assert files.end({key: "1"}) == {outcomes.get(spoil, Outcome.ENDED): 1}
    assert os.listdir(tmp_path) == ([path.name] if spoil in outcomes else [])


def test_a_fault_of_an_engine_shows_no_key(settings, caplog):
    adapter = use(settings, BACKENDS + "cache")
    key = "k" * 32
    with mock.patch.object(adapter.store_class, "exists", side_effect=OSError(f"{key} too long")):
        assert adapter.end({key: "1"}) == {Outcome.FAILED: 1}
    assert key not in caplog.text and "OSError" in caplog.text


def test_the_user_column():
    def column(**fields):
        meta = type("Meta", (), {"app_label": "testapp"})
        body = {"__module__": __name__, "Meta": meta, **fields}
        with isolate_apps("tests.testapp"):
            return rows._find_user_column(type("Row", (AbstractBaseSession,), body))

    def key(**options):
        user_model = get_user_model()
        return models.ForeignKey(user_model, models.CASCADE, related_name="+", **options)

    assert column() is None
    assert column(owner=key()) == "owner_id"
    assert column(impersonator=key(), user=key()) == "user_id"
    assert column(owner=key(to_field="username")) is None
    assert column(user=models.CharField(max_length=99, db_index=True)) is None
    assert column(user_id=models.IntegerField()) is None
    assert column(user_id=models.CharField(max_length=99, unique=True)) == "user_id"
    assert column(account_id=models.IntegerField(null=True, db_index=True)) == "account_id"
    assert column(account_id=models.DateField(db_index=True)) is None


def test_in_memory_only():
    session = db.SessionStore("k" * 32)
    assert peek(session) == {} and not hasattr(session, "_session_cache")
    session._session_cache = {"cart": 1}
    set_in_memory(session, "password_expired", True)
    assert peek(session) == {"cart": 1, "password_expired": True}
    drop_in_memory(session, "password_expired")
    drop_in_memory(session, "password_expired")
    assert peek(session) == {"cart": 1}
    assert not session.accessed and not session.modified


def test_a_model_beside_a_store_of_its_own(monkeypatch):
    from django.contrib.sessions.models import Session

    from pwexpire.management import probe

    assert registry._find_model(SessionBase) is None
    monkeypatch.setattr(probe, "Session", Session, raising=False)
    assert registry._find_model(probe.SessionStore) is Session


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


@pytest.mark.parametrize("name", ROWS)
def test_a_flag_set_by_hand_goes_over_one_that_was_lifted(settings, alice, client, name):
    """Else it would be taken for the lifted demand, and dropped."""
    from pwexpire import services

    use(settings, name)
    client.force_login(alice)
    services.expire_passwords(alice)
    services.cancel_expiry(alice)
    assert services.flag_sessions(alice).flagged == 1
    assert client.get("/").status_code == 302


def test_the_index_keeps_what_is_alive(settings, alice, client):
    from pwexpire.models import SessionEntry
    from pwexpire.services import index

    use(settings, ROWS[0])
    client.force_login(alice)
    key = client.session.session_key
    index.index_session("n" * 32, alice.pk, replaces=key)
    index.forget_session(key, if_dead=True)
    assert SessionEntry.objects.filter(pk=key).exists()
    client.session.flush()
    index.forget_session(key, if_dead=True)
    assert not SessionEntry.objects.filter(pk=key).exists()


@pytest.mark.needs("redis")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_django_redis_sessions(settings, alice, client):
    """An engine of its own, of which nothing is known but that it has keys."""
    pytest.importorskip("redis_sessions")
    from pwexpire import services

    use(settings, "redis_sessions.session")
    settings.PWEXPIRE_SESSION_INDEX = True
    client.force_login(alice)
    assert client.get("/").content == b"alice"
    assert services.expire_passwords(alice).sessions_flagged == 0
    assert client.get("/").status_code == 302
    services.cancel_expiry(alice)
    assert client.get("/").content == b"alice"
    assert services.end_sessions(alice).ended == 1
    assert client.get("/").content == b"anonymous"

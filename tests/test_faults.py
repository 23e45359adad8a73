"""What is left of the promise when servers, disks and processes fail under it."""

from __future__ import annotations

import http.client
import json
import os
import random
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests import servers
from tests.clusters import PostgresCluster, RedisServer, SmallDisk, until

ROOT = Path(__file__).resolve().parent.parent
ENGINES = "django.contrib.sessions.backends."
REDIS_CACHES = ["django.core.cache.backends.redis.RedisCache", "django_redis.cache.RedisCache"]
WORKER = [sys.executable, "-m", "tests.fault_worker"]
KILLS = 50
POLL = 1
A, B = "a" * 32, "b" * 32
SERVERS = [
    pytest.param("postgresql", marks=pytest.mark.needs("postgresql")),
    pytest.param("mariadb", marks=pytest.mark.needs("mariadb")),
]


class Site:
    """Processes of one project: one that does what it is told, and one that serves."""

    def __init__(self, directory, **given):
        self.environment = {
            **{name: os.environ[name] for name in os.environ if name != "PWEXPIRE_TEST_ON"},
            "DJANGO_SETTINGS_MODULE": "tests.settings_faults",
            "PWEXPIRE_TEST_AXES": "0",
            # Else each makes a directory that a killed process leaves behind.
            "PWEXPIRE_TEST_SESSIONS": str(directory),
            "PWEXPIRE_FAULTS": json.dumps({"SESSION_FILE_PATH": str(directory), **given}),
        }
        self.log = directory / "log"
        self.processes = []
        self.worker = self.start(*WORKER)
        self.port = None

    def start(self, *command):
        with self.log.open("a") as log:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.processes.append(process)
        return process

    def close(self):
        for process in self.processes:
            with process:
                process.kill()

    def send(self, verb, *args, **kwargs):
        self.worker.stdin.write(json.dumps([verb, args, kwargs]) + "\n")
        self.worker.stdin.flush()

    def receive(self):
        line = self.worker.stdout.readline()
        assert line, self.log.read_text()[-2000:]
        said = json.loads(line)
        assert "error" not in said, said["error"]
        return said["answer"]

    def __call__(self, verb, *args, **kwargs):
        self.send(verb, *args, **kwargs)
        return self.receive()

    def manage(self, *words):
        return subprocess.run(
            [sys.executable, "-m", "django", *words],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
        )

    def request(self, key, path="/", method="GET", **headers):
        """Status, place and body of what the serving process answers."""
        if self.port is None:
            self.port = int(self.start(*WORKER, "serve").stdout.readline())
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            client.request(method, path, headers={"Cookie": f"sessionid={key}", **headers})
            response = client.getresponse()
            body = response.read().decode()
        finally:
            client.close()
        return response.status, response.getheader("Location", ""), body

    def is_held(self, key, path="/"):
        status, place, _ = self.request(key, path)
        return status == 302 and place.startswith("/account/password-change/")

    def reaches(self, key, name, path="/"):
        return self.request(key, path) == (200, "", name)


@pytest.fixture
def make_site(tmp_path):
    with ExitStack() as stack:

        def make(database, engine="file", **given):
            given = {"DATABASES": {"default": database}, "PWEXPIRE_POLL_SECONDS": 0} | given
            site = Site(tmp_path, SESSION_ENGINE=ENGINES + engine, **given)
            stack.callback(site.close)
            return site

        yield make


def migrate(directory, database):
    site = Site(directory, DATABASES={"default": database})
    try:
        site("migrate")
    finally:
        site.close()


@pytest.fixture(scope="module")
def migrated(tmp_path_factory):
    directory = tmp_path_factory.mktemp("migrated")
    file = directory / "site.sqlite3"
    migrate(directory, servers.database("sqlite", str(file)))
    return file


@pytest.fixture
def sqlite(migrated, tmp_path):
    file = tmp_path / "site.sqlite3"
    shutil.copy(migrated, file)
    return servers.database("sqlite", str(file))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with PostgresCluster() as cluster:
        cluster.sql("CREATE DATABASE migrated")
        migrate(tmp_path_factory.mktemp("cluster"), cluster.entry("migrated"))
        yield cluster


@pytest.fixture
def postgres(cluster):
    """A database on a server that may be broken."""
    cluster.sql("CREATE DATABASE site TEMPLATE migrated")
    yield cluster.entry("site")
    if cluster.is_read_only():
        cluster.read_only(False)
    cluster.sql("DROP DATABASE site WITH (FORCE)")


@pytest.fixture
def redis():
    with RedisServer() as redis:
        yield redis


def on_redis(redis, backend=REDIS_CACHES[0]):
    # Without the client's own repetitions, which take many seconds.
    cache = {"BACKEND": backend, "LOCATION": redis.url, "OPTIONS": {"retry": None}}
    if backend.startswith("django_redis"):
        cache["OPTIONS"] = {"CONNECTION_POOL_KWARGS": {"retry": None}}
    return {"CACHES": {"default": cache}}


@contextmanager
def connection(name, database=None):
    """To a server that is shared, so that a database of the test's own can be made there."""
    entry = servers.database(name)
    if name == "postgresql":
        import psycopg

        given = {"dbname": database or "postgres", "autocommit": database is None}
    else:
        import pymysql

        given = {"database": database, "autocommit": database is None}
    given |= {key.lower(): entry[key] for key in ("HOST", "PORT", "USER", "PASSWORD")}
    opened = psycopg.connect(**given) if name == "postgresql" else pymysql.connect(**given)
    try:
        yield opened
    finally:
        opened.close()


def ask(opened, statement, *params):
    with opened.cursor() as cursor:
        cursor.execute(statement, params or None)
        return cursor.fetchall() if cursor.description else []


@pytest.fixture
def own_database(tmp_path):
    """A migrated database with a name of its own, on one of the servers."""
    with ExitStack() as stack:

        def make(name):
            mine = f"pwexpire_faults_{os.getpid()}"
            opened = stack.enter_context(connection(name))
            ask(opened, f"DROP DATABASE IF EXISTS {mine}")
            ask(opened, f"CREATE DATABASE {mine}")
            force = " WITH (FORCE)" if name == "postgresql" else ""
            stack.callback(ask, opened, f"DROP DATABASE {mine}{force}")
            entry = {**servers.database(name), "NAME": mine}
            migrate(tmp_path, entry)
            return entry

        yield make


# Processes.


@pytest.mark.parametrize("name", ["sqlite", *SERVERS])
def test_a_run_that_is_killed_leaves_all_or_nothing_and_is_resumed(
    name, make_site, own_database, request
):
    database = request.getfixturevalue("sqlite") if name == "sqlite" else own_database(name)
    site = make_site(database, "db")
    seed = random.SystemRandom().randrange(10**6)
    states = site("kill", seed, KILLS, users=400, stored=300, chunk=40)
    assert sum(states.values()) >= KILLS
    assert states["staging"] and states["active"], f"seed {seed}: {states}"


# The database.


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("engine", ["file", "cache"])
def test_with_the_database_down_the_flagged_stay_held(
    cluster, postgres, make_site, request, engine, closed
):
    cache = on_redis(request.getfixturevalue("redis")) if engine == "cache" else {}
    more = {"PWEXPIRE_FAIL_CLOSED": closed, "PWEXPIRE_POLL_SECONDS": POLL}
    site = make_site(postgres, engine, **more, **cache)
    site("create", "alice", "bob")
    site("expire", "alice")
    alice, bob = site("login", "alice"), site("login", "bob")
    assert site.is_held(alice) and site.reaches(bob, "bob")
    cluster.stop()
    try:
        end = time.monotonic() + 2 * POLL + 0.5
        while time.monotonic() < end:
            assert site.is_held(alice, "/plain/")
            assert site.request(bob, "/plain/")[0] in (200, 503 if closed else 200)
            time.sleep(0.1)
        for method, status in [("GET", 302), ("POST", 303)]:
            assert site.request(alice, "/plain/", method)[0] == status
            assert site.request(bob, "/plain/", method)[0] == (503 if closed else 200)
        assert site.request(alice, "/plain/", Accept="application/json")[0] == 403
        assert site.request("", "/plain/")[0] == 200
    finally:
        cluster.start()
    until(lambda: site.reaches(bob, "bob"), 10 * POLL)
    assert site.is_held(alice)
    site("expire", "bob")
    time.sleep(POLL)
    assert site.is_held(bob)
    for name in ("alice", "bob"):
        site("record_change", name)
    time.sleep(POLL)
    assert site.reaches(alice, "alice") and site.reaches(bob, "bob")


@pytest.mark.parametrize(
    "kept",
    [
        {"CONN_MAX_AGE": 0},
        {"CONN_MAX_AGE": None, "CONN_HEALTH_CHECKS": True},
        {"CONN_MAX_AGE": None},
    ],
    ids=["new", "checked", "kept"],
)
@pytest.mark.parametrize("engine", ["db", "file"])
def test_with_the_database_restarted_the_process_goes_on(
    cluster, postgres, make_site, engine, kept
):
    site = make_site({**postgres, **kept}, engine, PWEXPIRE_POLL_SECONDS=POLL)
    site("create", "alice", "bob")
    site("expire", "alice")
    alice, bob = site("login", "alice"), site("login", "bob")
    assert site.is_held(alice) and site.reaches(bob, "bob")
    cluster.restart()
    assert not site.reaches(alice, "alice")
    until(lambda: site.reaches(bob, "bob"), 10 * POLL)
    assert site.is_held(alice)
    site("expire", "bob")
    time.sleep(POLL)
    assert site.is_held(bob)


def test_with_the_database_read_only_nothing_new_is_half_in_force(cluster, postgres, make_site):
    site = make_site(postgres, "db", PWEXPIRE_POLICY="tests.settings_faults.QUARTERLY")
    site("create", "alice", "bob", "carol")
    site("expire", "alice")
    alice, bob = site("login", "alice"), site("login", "bob")
    site("age", "carol", 2)
    aged = time.monotonic() + 2
    carol = site("login", "carol")
    cluster.read_only(True)
    before = site("batches")
    time.sleep(max(0, aged - time.monotonic()) + 0.1)
    assert site.is_held(alice) and site.reaches(bob, "bob")
    assert site.is_held(carol) and site.is_held(carol)
    for words in (["--user", "bob"], ["--everyone", "--yes"]):
        run = site.manage("pwexpire", "expire", *words)
        assert run.returncode
        assert len(run.stderr.strip().splitlines()) == 1 and "read-only" in run.stderr
    site.send("expire", "bob")
    with pytest.raises(AssertionError, match="read-only"):
        site.receive()
    assert site("batches") == before and site("demands", "carol") == 0
    assert site.reaches(bob, "bob")
    cluster.read_only(False)
    assert site.manage("pwexpire", "expire", "--user", "bob").returncode == 0
    assert site.is_held(alice) and site.is_held(bob) and site.is_held(carol)
    assert site("demands", "carol") == 0  # an age is stored nowhere, then or now


def test_a_replica_that_lags_is_not_asked(cluster, postgres, make_site):
    make_site(postgres)("create", "alice", "bob")
    standby = cluster.standby(delay="1h")
    both = {"default": postgres, "replica": {**postgres, "PORT": standby.port}}
    site = make_site(
        postgres, DATABASES=both, DATABASE_ROUTERS=["tests.settings_faults.ReadElsewhere"]
    )
    site("create", "dave")
    alice, bob = site("login", "alice"), site("login", "bob")
    assert site.reaches(alice, "alice") and site.reaches(bob, "bob")
    assert site("expire", "alice", "dave")["users"] == 2
    assert site.is_held(alice) and site.reaches(bob, "bob")
    assert site("must_change", "alice") and site("must_change", "dave")
    assert site("demands", "alice") == 1 and site("demands", "alice", using="replica") == 0
    assert site("expire", "alice")["users"] == 0
    assert site("cancel", "dave") == 1 and not site("must_change", "dave")
    site("record_change", "alice")
    assert site.reaches(alice, "alice")
    site("expire", "bob")
    assert site("change", bob, "new-Password-2") == 302
    # The replica has the old hash, so the session may be over; it is not held.
    assert not site.is_held(bob) and not site("must_change", "bob")


@pytest.mark.parametrize("name", SERVERS)
def test_a_deadlock_is_tried_again(name, own_database, make_site):
    site = make_site(own_database(name), "db")
    mine = f"pwexpire_faults_{os.getpid()}"
    site("create", "alice", "bob")
    site("put", A, "alice")
    site("put", B, "bob")
    with connection(name, mine) as rival, connection(name) as onlooker:
        if name == "postgresql":
            ask(rival, "SET deadlock_timeout = '60s'")  # not the one who notices
            waits = "SELECT 1 FROM pg_stat_activity WHERE datname = %s AND wait_event_type = 'Lock'"
        else:
            waits = (
                "SELECT 1 FROM information_schema.innodb_trx"
                " JOIN information_schema.processlist ON id = trx_mysql_thread_id"
                " WHERE db = %s AND trx_state = 'LOCK WAIT'"
            )
            ask(rival, "CREATE TABLE ballast (n INT) ENGINE InnoDB")
            for n in range(500):  # who wrote less has to give way
                ask(rival, "INSERT INTO ballast VALUES (%s)", n)
        lock = "SELECT session_key FROM django_session WHERE session_key = %s FOR UPDATE"
        ask(rival, lock, B)
        site.send("flag", "alice", "bob")
        # InnoDB renews its answer only after a tenth of a second without a question.
        until(lambda: ask(onlooker, waits, mine), pause=0.2)
        ask(rival, lock, A)
        rival.rollback()
        said = site.receive()
    assert said["errors"] == ["40P01" if name == "postgresql" else 1213]
    assert said["outcomes"] == {"flagged": 2}
    assert site("store", A)["password_expired"] and site("store", B)["password_expired"]


@pytest.mark.parametrize("name", SERVERS[:1])
def test_a_serialization_failure_is_tried_again(name, own_database, make_site):
    database = {**own_database(name), "OPTIONS": {"isolation_level": 3}}
    site = make_site(database, "db")
    site("create", "alice", "bob")
    site("put", A, "alice")
    site("put", B, "bob")
    cart = site("encode", B, cart=[1])
    with connection(name, database["NAME"]) as rival, connection(name) as onlooker:
        ask(rival, "UPDATE django_session SET session_data = %s WHERE session_key = %s", cart, B)
        site.send("flag", "alice", "bob")
        waits = "SELECT 1 FROM pg_stat_activity WHERE datname = %s AND wait_event_type = 'Lock'"
        until(lambda: ask(onlooker, waits, database["NAME"]))
        rival.commit()
        said = site.receive()
    assert said["errors"] == ["40001"]
    assert said["outcomes"] == {"flagged": 2}
    assert site("store", A)["password_expired"] and site("store", B)["password_expired"]
    assert site("store", B)["cart"] == [1]


# The cache.


@pytest.mark.parametrize("backend", REDIS_CACHES)
@pytest.mark.parametrize("engine", ["cached_db", "cache"])
def test_with_the_cache_flushed_the_expired_stay_held(sqlite, redis, make_site, engine, backend):
    if backend.startswith("django_redis"):
        pytest.importorskip("django_redis")
    site = make_site(sqlite, engine, **on_redis(redis, backend))
    site("create", "alice", "bob")
    alice, bob = site("login", "alice"), site("login", "bob")
    site("expire", "alice")
    assert site.is_held(alice) and site.reaches(bob, "bob")
    redis.flush()
    if engine == "cached_db":
        assert site.is_held(alice) and site.reaches(bob, "bob")
        assert site("store", alice)["password_expired"]
    else:
        assert site.reaches(alice, "anonymous") and site.reaches(bob, "anonymous")
    assert site.is_held(site("login", "alice")) and site.reaches(site("login", "bob"), "bob")


@pytest.mark.parametrize("backend", REDIS_CACHES)
@pytest.mark.parametrize("engine", ["cached_db", "cache"])
@pytest.mark.parametrize("action", ["flag", "end"])
def test_with_the_cache_down_an_expiry_is_in_force(
    sqlite, redis, make_site, action, engine, backend
):
    if backend.startswith("django_redis"):
        pytest.importorskip("django_redis")
    site = make_site(sqlite, engine, **on_redis(redis, backend))
    site("create", "alice", "bob", "carol")
    alice, bob, carol = (site("login", name) for name in ("alice", "bob", "carol"))
    site("expire", "alice")
    assert site.is_held(alice) and site.reaches(bob, "bob") and site.reaches(carol, "carol")
    redis.stop()
    # Django itself may take the session for none, or answer 500.
    assert not site.reaches(alice, "alice")
    said = site("expire", "bob", sessions=action)
    assert said["number"] and said["users"] == 1 and site("must_change", "bob")
    assert said["ended"] == 0
    assert not site.reaches(alice, "alice") and not site.reaches(bob, "bob")
    redis.start()
    # What the cache has of bob is older than the expiry.
    assert site.is_held(alice)
    if action == "flag":
        assert site.is_held(bob)
    else:
        assert site.reaches(bob, "anonymous")
    assert site.is_held(site("login", "bob")) and site.reaches(carol, "carol")


# The disk.


@pytest.mark.parametrize("left", [0, 4096])  # so much that a write stops in the middle
def test_with_the_disk_full_no_session_file_is_damaged(sqlite, make_site, tmp_path, left):
    with SmallDisk(tmp_path / "small").mounted() as disk:
        site = make_site(sqlite, SESSION_FILE_PATH=str(disk.place))
        names = ("alice", "bob", "carol", "dave")
        site("create", *names)
        alice, bob, carol, dave = (site("login", name) for name in names)
        site("expire", "alice")
        assert site.is_held(alice) and site.reaches(bob, "bob")
        cart = random.randbytes(4_500).hex()
        site("keep", dave, cart=cart)
        disk.fill(leave=left)
        before = files(disk)
        site("expire", "bob")
        assert site.is_held(alice) and site.is_held(bob)
        assert site("flag", "bob", "dave")["outcomes"] == {"unsupported": 2}
        assert site.reaches(carol, "carol") and site.reaches(dave, "dave")
        assert files(disk) == before
        assert site("end", "carol") == {"ended": 1}
        assert files(disk) == {n: data for n, data in before.items() if not n.endswith(carol)}
        assert site.reaches(carol, "anonymous")
        disk.fill()
        assert site("change", alice, "new-Password-2") == 302
        disk.free()
        assert not site("must_change", "alice")
        assert site.reaches(site("login", "alice"), "alice")
        assert site.is_held(bob) and site.reaches(dave, "dave")
        assert site("store", dave)["cart"] == cart
        site("record_change", "bob")
        assert site.reaches(bob, "bob")


def files(disk):
    """What is in them, and when they were written: a session's age counts from there."""
    found = {
        path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in disk.place.iterdir()
    }
    del found["filler"]
    return found

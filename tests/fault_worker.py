"""A process with Django in it that does what a test says, a line of JSON at a time; or serves."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from datetime import timedelta
from importlib import import_module
from wsgiref.simple_server import WSGIRequestHandler, make_server

import django

django.setup()

from django.conf import settings  # noqa: E402
from django.contrib.auth import (  # noqa: E402
    BACKEND_SESSION_KEY,
    HASH_SESSION_KEY,
    SESSION_KEY,
    get_user_model,
)
from django.contrib.auth.hashers import make_password  # noqa: E402
from django.contrib.sessions.models import Session  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.db import connection, connections  # noqa: E402
from django.test import Client  # noqa: E402
from django.utils import timezone  # noqa: E402

from pwexpire import services  # noqa: E402
from pwexpire.constants import SESSION_DEMAND, SESSION_FLAG  # noqa: E402
from pwexpire.models import (  # noqa: E402
    BatchState,
    Demand,
    EnforcementState,
    ExpiryBatch,
    PasswordRecord,
    SessionEntry,
)
from pwexpire.services import projection, selection, sessions  # noqa: E402
from pwexpire.services.demands import highest_open as open_demands  # noqa: E402
from pwexpire.sessionstore import rows  # noqa: E402
from tests.support import OLD, change_password, is_held  # noqa: E402

User = get_user_model()
ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"


def find(name):
    return User.objects.using("default").get(username=name)


def migrate():
    call_command("migrate", verbosity=0)


def create(*names):
    for name in names:
        User.objects.create_user(name, password=OLD)


def login(name):
    client = Client()
    client.force_login(find(name), settings.AUTHENTICATION_BACKENDS[0])
    return client.cookies["sessionid"].value


def expire(*names, sessions="flag"):
    users = User.objects.using("default").filter(username__in=names)
    batch = services.expire_passwords(users, sessions=sessions)
    return {
        "number": batch.number,
        "users": batch.users_expired,
        "ended": batch.sessions_ended,
    }


def record_change(name):
    services.record_password_change(find(name))


def change(key, new):
    """Through the form, as whoever has this session; the status that it was answered with."""
    client = Client(raise_request_exception=False)
    client.cookies["sessionid"] = key
    return change_password(client, new=new).status_code


def age(name, seconds):
    """The password of ``name`` ages out so many seconds from now."""
    changed_at = timezone.now() - timedelta(days=90) + timedelta(seconds=seconds)
    PasswordRecord.objects.filter(user=find(name)).update(changed_at=changed_at)


def must_change(name):
    return services.password_status(find(name)).must_change


def demands(name, using="default"):
    return Demand.objects.using(using).filter(user__username=name).count()


def batches():
    return list(ExpiryBatch.objects.using("default").values_list("state", "number"))


def cancel(name):
    return services.cancel_expiry(find(name))


def end(*names):
    report = services.end_sessions(User.objects.filter(username__in=names))
    return +report.outcomes


def store(key):
    """What the engine has stored, without the engine's habit of replacing what is gone."""
    return dict(import_module(settings.SESSION_ENGINE).SessionStore(key).load())


def keep(key, **values):
    """As a view of the site would."""
    session = import_module(settings.SESSION_ENGINE).SessionStore(key)
    session.update(values)
    session.save()


def put(key, name):
    """A session with a key of the test's choice."""
    encoded = Session.get_session_store_class()().encode(session_data(find(name)))
    expire_date = timezone.now() + timedelta(hours=1)
    Session.objects.update_or_create(
        pk=key, defaults={"session_data": encoded, "expire_date": expire_date}
    )


def encode(key, **values):
    """The data of a stored session with something more in it."""
    return Session.get_session_store_class()().encode(store(key) | values)


def flag(*names):
    """What became of the sessions, and which errors the database gave meanwhile."""
    errors = []

    def watch(execute, *args):
        try:
            return execute(*args)
        except django.db.Error as error:
            code = error.args[0]
            errors.append(code if isinstance(code, int) else error.__cause__.sqlstate)
            raise

    with connection.execute_wrapper(watch):
        report = services.flag_sessions(User.objects.filter(username__in=names))
    return {"outcomes": +report.outcomes, "errors": errors}


# Bulk runs that are killed.


def session_data(user):
    return {
        SESSION_KEY: str(user.pk),
        BACKEND_SESSION_KEY: settings.AUTHENTICATION_BACKENDS[0],
        HASH_SESSION_KEY: user.get_session_auth_hash(),
    }


class Bulk:
    """Users, some of them wanted, their sessions, and runs over them that come to a sudden end."""

    def __init__(self, seed, users, stored, chunk):
        self.random = random.Random(seed)
        self.state = Counter()
        for module, name in [
            (selection, "CHUNK"),
            (selection, "RANGE"),
            (projection, "CHUNK"),
            (sessions, "CHUNK"),
            (rows, "CHUNK"),
        ]:
            setattr(module, name, chunk)
        usable = make_password(OLD)
        User.objects.bulk_create(
            User(
                username=f"user{n}",
                password=make_password(None) if n % 20 == 7 else usable,
                first_name="bystander" if n % 10 == 3 else "wanted",
            )
            for n in range(users)
        )
        people = list(User.objects.order_by("pk"))
        able = [user for user in people if user.has_usable_password()]
        self.wanted = [user for user in able if user.first_name == "wanted"]
        self.free = [user for user in able if user.first_name != "wanted"]
        self.pks = {user.pk for user in self.wanted}
        self.originals = [self._session(n, self.random.choice(people)) for n in range(stored)]
        now = timezone.now()
        self.live = {
            row.pk
            for row in self.originals
            if row.expire_date > now and int(self.data(row)[SESSION_KEY]) in self.pks
        }
        assert self.live and len(self.live) < stored

    def _session(self, n, user):
        data = session_data(user) | {"cart": [n, "é" * self.random.randrange(200)]}
        left = timedelta(hours=self.random.uniform(1, 300)) * (-1 if n % 8 == 5 else 1)
        return Session(
            session_key="".join(self.random.choices(ALPHABET, k=32)),
            session_data=Session.get_session_store_class()().encode(data),
            expire_date=timezone.now() + left,
        )

    @staticmethod
    def data(row):
        return row.get_decoded()

    @staticmethod
    def selected():
        return User.objects.filter(first_name="wanted")

    def begin(self, *, indexed):
        """All as it was before the first run, but for the counter."""
        for model in (Demand, projection.ExpiryChunk, ExpiryBatch, Session):
            model.objects.all()._raw_delete("default")
        Session.objects.bulk_create(self.originals)
        if not indexed:
            SessionEntry.objects.all().delete()
            EnforcementState.objects.update(index_complete=False)

    def run(self, steps=None, pause=0.0):
        """Expire in a child. Kill it after so many steps, or return when each step was made."""
        connections.close_all()
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            code = 1
            try:
                services.expire_passwords(
                    self.selected(), progress=lambda done, total: os.write(writing, b".")
                )
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(writing)
        times = [time.monotonic()]
        while (steps is None or len(times) <= steps) and os.read(reading, 1):
            times.append(time.monotonic())
        if steps is not None:
            time.sleep(pause)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        os.close(reading)
        assert os.WIFSIGNALED(status) or not os.WEXITSTATUS(status), "the run failed by itself"
        self._wait_for_the_server()
        return times, os.WIFSIGNALED(status)

    @staticmethod
    def _wait_for_the_server():
        """Until it has seen that its client is dead; what was sent to it may be done till then."""
        statements = {
            "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE backend_type ="
            " 'client backend' AND datname = current_database() AND pid <> pg_backend_pid()",
            "mysql": "SELECT count(*) FROM information_schema.processlist"
            " WHERE db = database() AND id <> connection_id()",
        }
        if connection.vendor not in statements:
            return
        for _ in range(500):
            with connection.cursor() as cursor:
                cursor.execute(statements[connection.vendor])
                if cursor.fetchone() == (0,):
                    return
            time.sleep(0.01)
        raise AssertionError("the server keeps the connection of a dead client")

    def check_sessions(self, number, *, all_flagged=False):
        """None is new, none is lost; but for the flag of this number all is as it was."""
        there = {row.pk: row for row in Session.objects.all()}
        assert there.keys() == {row.pk for row in self.originals}, "sessions came or went"
        flagged = set()
        for before in self.originals:
            row = there[before.pk]
            assert row.expire_date == before.expire_date, f"{row.pk}: another expiry date"
            if row.session_data == before.session_data:
                continue
            data = self.data(row)
            assert data.pop(SESSION_FLAG, None) is True, f"{row.pk}: written, not flagged"
            assert data.pop(SESSION_DEMAND, None) == number, f"{row.pk}: another number"
            assert data == self.data(before), f"{row.pk}: damaged"
            flagged.add(row.pk)
        assert flagged <= self.live, "a session was flagged that nobody meant"
        assert number is not None or not flagged, "flagged before it was in force"
        assert not all_flagged or flagged == self.live, f"{len(self.live - flagged)} not flagged"
        return flagged

    def check_users(self, *, held):
        """Either all who are meant or nobody, whoever is asked."""
        found = set(open_demands([user.pk for user in [*self.wanted, *self.free]]))
        assert found == (self.pks if held else set()), f"{len(found)} of {len(self.pks)} held"
        for user in self.random.sample(self.wanted, 5):
            assert services.password_status(user).must_change is held, user
        for key in self.random.sample(sorted(self.live), 3):
            browser = Client()
            browser.cookies["sessionid"] = key
            assert is_held(browser) is held, key
        assert not services.password_status(self.random.choice(self.free)).must_change

    def check(self):
        """What the kill left, then the second run."""
        batch = ExpiryBatch.objects.order_by("pk").last()
        assert ExpiryBatch.objects.count() <= 1
        self.state["none" if batch is None else batch.state] += 1
        number = None if batch is None else batch.number
        assert batch is None or (number is None) == (
            batch.state in (BatchState.STAGING, BatchState.STAGED)
        )
        flagged = self.check_sessions(number)
        self.check_users(held=number is not None)
        by_requests = self.check_sessions(number) - flagged
        if batch is None:
            batch = services.expire_passwords(self.selected())
        elif batch.state == BatchState.STAGING:
            services.resume_expiry(batch, self.selected())
        else:
            services.resume_expiry(batch)
        batch.refresh_from_db()
        assert batch.state == BatchState.DONE, batch.state
        assert number is None or batch.number == number, "another number"
        assert batch.users_expired == len(self.wanted), batch.users_expired
        assert batch.sessions_flagged == len(self.live) - len(by_requests), batch.sessions_flagged
        self.check_sessions(batch.number, all_flagged=True)
        self.check_users(held=True)
        self.check_again(batch)

    def check_again(self, batch):
        before = self.snapshot()
        services.resume_expiry(batch)
        again = services.expire_passwords(self.selected())
        assert again.users_expired == 0, again.users_expired
        assert self.snapshot() == before, "the second time changed something"

    @staticmethod
    def snapshot():
        stored = list(Session.objects.order_by("pk").values_list("pk", "session_data"))
        return stored, open_demands(list(User.objects.values_list("pk", flat=True)))

    def release(self):
        """Some of the users change their password."""
        for user in self.random.sample(self.wanted, 3):
            services.record_password_change(user)
            assert not services.password_status(user).must_change


def kill(seed, kills, users, stored, chunk):
    """How many of the runs were killed in which state."""
    bulk = Bulk(seed, users, stored, chunk)
    bulk.begin(indexed=False)
    times, _ = bulk.run()
    bulk.check_sessions(ExpiryBatch.objects.get().number, all_flagged=True)
    staged = -(-bulk.selected().count() // chunk)
    steps = len(times) - 1
    assert steps > staged + 2, f"{steps} steps: nothing to be killed in"
    step = (times[-1] - times[0]) / steps
    made = 0
    while made < kills:
        first, last = bulk.random.choice([(0, staged - 1), (staged, staged), (staged, steps - 1)])
        bulk.begin(indexed=made % 3 > 0)
        point = bulk.random.randint(first, last), bulk.random.uniform(0, 2 * step)
        _, was_killed = bulk.run(*point)
        try:
            bulk.check()
        except Exception as error:
            said = f"kill {made} after step {point[0]} of {steps} and {point[1]:.4f} s"
            raise AssertionError(f"{said} (seed {seed}): {error}") from error
        bulk.release()
        made += was_killed
    return bulk.state


VERBS = [
    age, batches, cancel, change, create, demands, encode, end, expire, flag, keep, kill, login,
    migrate, must_change, put, record_change, store,
]  # fmt: skip


class Handler(WSGIRequestHandler):
    def log_message(self, *args):
        pass


def serve():
    with make_server("127.0.0.1", 0, get_wsgi_application(), handler_class=Handler) as server:
        sys.stdout.write(f"{server.server_port}\n")
        sys.stdout.flush()
        server.serve_forever()


def obey():
    verbs = {verb.__name__: verb for verb in VERBS}
    for line in sys.stdin:
        name, args, kwargs = json.loads(line)
        try:
            answer = {"answer": verbs[name](*args, **kwargs)}
        except Exception:
            answer = {"error": traceback.format_exc()}
        finally:
            connections.close_all()
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve() if sys.argv[1:] == ["serve"] else obey()

"""Two real processes: one serves, the other expires."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def environment(tmp_path):
    return {
        **{name: os.environ[name] for name in os.environ if name != "PWEXPIRE_TEST_ON"},
        "DJANGO_SETTINGS_MODULE": "tests.settings_process",
        "PWEXPIRE_TEST_FILE": str(tmp_path / "site.sqlite3"),
        "PYTHONPATH": str(ROOT),
    }


def python(environment, code):
    return subprocess.run(
        [sys.executable, "-c", f"import django; django.setup()\n{code}"],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


class NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args):
        return None


def status(port, key):
    opener = urllib.request.build_opener(NoRedirect)
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/", headers={"Cookie": f"sessionid={key}"}
    )
    try:
        return opener.open(request, timeout=10).status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


@pytest.mark.parametrize("engine_name", ["db", "cached_db", "file"])
def test_held_within_the_interval(environment, engine_name, tmp_path):
    environment["PWEXPIRE_TEST_ENGINE"] = f"django.contrib.sessions.backends.{engine_name}"
    environment["PWEXPIRE_TEST_SESSIONS"] = str(tmp_path)
    run = [sys.executable, "-m", "django"]
    subprocess.run([*run, "migrate", "-v0"], env=environment, cwd=ROOT, check=True)
    key = python(
        environment,
        "from django.test import Client\n"
        "from django.contrib.auth import get_user_model\n"
        "user = get_user_model().objects.create_user('alice', password='x')\n"
        "client = Client(); client.force_login(user)\n"
        "print(client.cookies['sessionid'].value)",
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [*run, "runserver", "--noreload", "--skip-checks", str(port)],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(100):
            try:
                assert status(port, key) == 200
                break
            except urllib.error.URLError:
                time.sleep(0.1)
        else:
            pytest.fail("the server did not start")
        subprocess.run(
            [*run, "pwexpire", "expire", "--user", "alice"],
            env=environment,
            cwd=ROOT,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        time.sleep(1)
        assert status(port, key) == 302
    finally:
        server.kill()
        server.wait()

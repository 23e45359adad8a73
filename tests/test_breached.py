"""Passwords from breaches: the list on disk and the range API. Nothing here leaves the machine."""

from __future__ import annotations

import hashlib
import logging
import random
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest import mock

import pytest
from django.contrib.auth.password_validation import get_password_validators, validate_password
from django.core.exceptions import ImproperlyConfigured, ValidationError

from pwexpire import breached
from pwexpire.breached import BreachedPasswordListValidator, HIBPValidator

KNOWN = [f"secret-{number}" for number in range(300)]


def sha1(password):
    return hashlib.sha1(password.encode()).hexdigest().upper()


def refused(validator, password):
    try:
        validate_password(password, None, [validator])
    except ValidationError as error:
        assert [one.code for one in error.error_list] == ["password_breached"]
        assert password not in str(error)
        return True
    return False


@pytest.fixture
def written(tmp_path):
    def write(lines, end="\r\n", last="\r\n"):
        path = tmp_path / "list.txt"
        path.write_bytes((end.join(lines) + last).encode())
        return path

    return write


def counted(passwords):
    return sorted(f"{sha1(one)}:{number + 1}" for number, one in enumerate(passwords))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", ["", "\n", "\r\n\r\n"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 300])
def test_every_line_of_a_list_is_found_and_nothing_else(written, end, last, size):
    validator = BreachedPasswordListValidator(path=written(counted(KNOWN[:size]), end, last))
    assert all(refused(validator, one) for one in KNOWN[:size])
    assert not any(refused(validator, f"other-{number}") for number in range(300))


def test_lines_without_a_count_and_in_lower_case(written):
    path = written([sha1(one).lower() for one in sorted(KNOWN, key=sha1)], "\n")
    validator = BreachedPasswordListValidator(str(path))
    assert all(refused(validator, one) for one in KNOWN)
    assert not refused(validator, "other")


def test_the_threshold_of_a_list(written):
    validator = BreachedPasswordListValidator(written(counted(KNOWN)), threshold=10)
    assert not refused(validator, KNOWN[8]) and refused(validator, KNOWN[9])


def test_only_a_few_lines_are_read(written):
    path = written(counted(f"secret-{number}" for number in range(20_000)))
    validator = BreachedPasswordListValidator(path)
    with mock.patch.object(breached, "_line_after", wraps=breached._line_after) as read:
        assert refused(validator, "secret-7")
    assert read.call_count <= 25


def test_a_list_that_is_lost_lets_passwords_pass(written, caplog):
    path = written(counted(KNOWN))
    validator = BreachedPasswordListValidator(path)
    path.unlink()
    assert not refused(validator, KNOWN[0])
    assert "was not asked" in caplog.text and sha1(KNOWN[0]) not in caplog.text


def test_a_list_that_is_replaced_is_read_anew(written):
    validator = BreachedPasswordListValidator(written(counted(KNOWN[:5])))
    assert not refused(validator, KNOWN[9])
    written(counted(KNOWN[5:]))
    assert refused(validator, KNOWN[9])


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["password", "123456"],
        ["{" * 40],
        ["8846F7EAEE8FB117AD06BDD830B7586C:7"],
        sorted((sha1(one) for one in KNOWN), key=lambda line: line[7:]),
        ["A" * 10_000],
    ],
)
def test_what_is_no_such_list(written, lines):
    with pytest.raises(ImproperlyConfigured, match="ascending order"):
        BreachedPasswordListValidator(written(lines))


def test_a_list_that_is_not_there(tmp_path):
    with pytest.raises(ImproperlyConfigured, match="No such file"):
        BreachedPasswordListValidator(path=tmp_path / "nowhere")
    with pytest.raises(ImproperlyConfigured, match="Is a directory"):
        BreachedPasswordListValidator(path=tmp_path)


def test_a_long_line_does_not_fill_the_memory(written):
    path = written([*counted(KNOWN), "Z" * 5_000_000], "\n")
    with path.open("rb") as file:
        assert len(breached._line_after(file, path.stat().st_size - 4_000_000)[1]) <= 100
        assert breached._find_count(file, b"F" * 40) == 0


# The range API.


class Answers:
    """``lines``: after the prefix. Keeps what it was asked."""

    def __init__(self, text):
        self.text, self.asked = text, []

    def __call__(self, prefix, timeout):
        self.asked.append((prefix, timeout))
        return self.text


def padded(*lines):
    more = [f"{random.getrandbits(140):035X}:0" for _ in range(800)]
    return "\r\n".join(random.sample([*lines, *more], k=len(lines) + len(more)))


def test_five_digits_are_told(caplog):
    caplog.set_level(logging.DEBUG)
    client = Answers(padded(f"{sha1('secret')[5:]}:3"))
    assert refused(HIBPValidator(client=client, timeout=0.5), "secret")
    assert not refused(HIBPValidator(client=client), "other")
    assert client.asked == [(sha1("secret")[:5], 0.5), (sha1("other")[:5], 2.0)]
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("count", "threshold", "bad"), [(0, 1, False), (0, 0, False), (2, 3, False), (3, 3, True)]
)
def test_padding_and_the_threshold(count, threshold, bad):
    client = Answers(padded(f"{sha1('secret')[5:].lower()}:{count}"))
    assert refused(HIBPValidator(client, threshold=threshold), "secret") is bad


@pytest.mark.parametrize("answer", ["", "<html>", None, f"{sha1('secret')[5:]}:many"])
def test_an_answer_that_is_none(answer):
    assert not refused(HIBPValidator(Answers(answer)), "secret")


@pytest.mark.parametrize("error", [OSError, TimeoutError, ValueError, ZeroDivisionError])
def test_no_answer_lets_passwords_pass(caplog, error):
    def fails(prefix, timeout):
        raise error(f"https://example.com/range/{prefix}")

    assert not refused(HIBPValidator(fails), "secret")
    assert error.__name__ in caplog.text
    assert sha1("secret")[:5] not in caplog.text and "secret" not in caplog.text


def by_path(prefix, timeout):
    return f"{sha1('secret')[5:]}:1"


def test_a_client_by_its_path_in_the_settings():
    name = "pwexpire.breached.HIBPValidator"
    options = {"client": "tests.test_breached.by_path"}
    [validator] = get_password_validators([{"NAME": name, "OPTIONS": options}])
    assert refused(validator, "secret") and not refused(validator, "other")
    assert "breach" in validator.get_help_text()


def test_a_password_that_is_no_text():
    assert not refused(HIBPValidator(Answers("")), "\ud800")


class Range(BaseHTTPRequestHandler):
    """Plays the API; what the server is asked for decides how badly."""

    def do_GET(self):
        self.server.asked.append((self.path, dict(self.headers)))
        self.server.play(self)

    def log_message(self, *args):
        pass


def answer(handler, body, status=200, **headers):
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


@pytest.fixture
def api(monkeypatch):
    """A server on this machine in place of the real one, without TLS."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Range)
    server.asked = []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(breached, "RANGE_URL", f"http://127.0.0.1:{server.server_port}/range/")
    plain = [one for one in breached.HANDLERS if one is not urllib.request.ProxyHandler]
    monkeypatch.setattr(breached, "HANDLERS", (*plain, urllib.request.HTTPHandler))
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_what_is_sent(api):
    api.play = lambda handler: answer(handler, padded(f"{sha1('secret')[5:]}:9").encode())
    validator = HIBPValidator()
    assert refused(validator, "secret") and not refused(validator, "other")
    assert [path for path, _ in api.asked] == [
        f"/range/{sha1(one)[:5]}" for one in ("secret", "other")
    ]
    headers = api.asked[0][1]
    assert headers["Add-Padding"] == "true" and headers["User-Agent"] == "pwexpire"


@pytest.mark.parametrize("status", [301, 302, 307, 400, 403, 404, 429, 500, 503])
def test_another_status_is_no_answer(api, caplog, status):
    api.play = lambda handler: answer(
        handler, f"{sha1('secret')[5:]}:9".encode(), status, Location="/elsewhere"
    )
    assert not refused(HIBPValidator(), "secret")
    assert len(api.asked) == 1, "no redirect is followed"
    assert "HTTPError" in caplog.text and sha1("secret")[:5] not in caplog.text


def test_an_answer_without_end(api, caplog):
    def play(handler):
        handler.send_response(200)
        handler.end_headers()
        try:
            for _ in range(100):
                handler.wfile.write(b"A" * 100_000)
        except OSError:
            handler.close_connection = True

    api.play = play
    assert not refused(HIBPValidator(timeout=30), "secret")
    assert "OSError" in caplog.text


def test_an_answer_in_drops(api, caplog):
    gone = threading.Event()

    def play(handler):
        handler.send_response(200)
        handler.end_headers()
        try:
            while not gone.wait(0.02):
                handler.wfile.write(b"A" * 10)
        except OSError:
            gone.set()

    api.play = play
    try:
        assert not refused(HIBPValidator(timeout=0.2), "secret")
    finally:
        gone.set()
    assert "TimeoutError" in caplog.text


def test_bytes_that_are_no_text(api, caplog):
    api.play = lambda handler: answer(handler, b"\xff\xfe")
    assert not refused(HIBPValidator(), "secret")
    assert "UnicodeDecodeError" in caplog.text


def test_nobody_listens(api, monkeypatch, caplog):
    api.play = lambda handler: None
    monkeypatch.setattr(breached, "RANGE_URL", "http://127.0.0.1:9/range/")
    assert not refused(HIBPValidator(timeout=0.5), "secret")
    assert "URLError" in caplog.text


def test_without_tls_nothing_is_sent(api, monkeypatch, caplog):
    plain = [one for one in breached.HANDLERS if one is not urllib.request.HTTPHandler]
    monkeypatch.setattr(breached, "HANDLERS", tuple(plain))
    assert not refused(HIBPValidator(), "secret")
    assert api.asked == [] and "URLError" in caplog.text


def test_the_real_address_has_tls():
    assert breached.RANGE_URL == "https://api.pwnedpasswords.com/range/"
    assert urllib.request.HTTPHandler not in breached.HANDLERS
    assert urllib.request.HTTPRedirectHandler not in breached.HANDLERS

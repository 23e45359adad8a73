"""The command at a closed, full, broken or foreign terminal: a sentence, and no traceback."""

from __future__ import annotations

import io
import json
import os

import pytest
from django.contrib.auth import get_user_model
from django.core.management import CommandError, call_command

from pwexpire.models import ExpiryBatch
from tests.factories import UserFactory

pytestmark = pytest.mark.django_db(transaction=True)
HUGE = "99999999999999999999999999"


def run(*args, **streams):
    call_command("pwexpire", *args, **streams)


@pytest.fixture
def terminal(monkeypatch):
    stdin = io.StringIO("y\n")
    stdin.isatty = lambda: True
    monkeypatch.setattr("sys.stdin", stdin)


def test_a_question_that_nobody_can_read_is_not_asked(alice, terminal, monkeypatch):
    monkeypatch.setattr("sys.stderr", None)
    with pytest.raises(CommandError, match="confirm it with --yes"):
        run("expire", "--everyone", stdout=io.StringIO())
    assert not ExpiryBatch.objects.exists()


def test_without_standard_error_and_output_the_work_is_done(alice, monkeypatch):
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(f"sys.{name}", None)
    run("expire", "--user", "alice", "--changed-before", "0d")  # has a notice and an answer
    assert ExpiryBatch.objects.get().users_expired == 1


def test_names_from_a_closed_standard_input(alice, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(CommandError, match="- names nobody"):
        run("expire", "--users-from", "-")


def test_a_file_in_latin_1_is_named_with_its_line(alice, tmp_path):
    path = tmp_path / "names.txt"
    path.write_bytes("alice\n\nJosé\n".encode("latin-1"))
    with pytest.raises(CommandError, match=r"names\.txt cannot be read: line 3 is not UTF-8"):
        run("expire", "--users-from", str(path))


def test_standard_input_in_latin_1_is_named_with_its_line(alice, monkeypatch):
    source = io.BytesIO("José\n".encode("latin-1"))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(source, "utf-8"))
    with pytest.raises(CommandError, match="- cannot be read: line 1 is not UTF-8"):
        run("expire", "--users-from", "-")


@pytest.mark.parametrize("option", ["--note", "--group"])
def test_an_argument_that_is_not_utf_8(alice, option):
    with pytest.raises(CommandError, match=r"'Jos\\udce9' is not UTF-8, nothing was done"):
        run("expire", "--user", "alice", option, os.fsdecode("José".encode("latin-1")))
    assert not ExpiryBatch.objects.exists()


@pytest.mark.parametrize(
    ("call", "least"),
    [(["sessions", "--limit"], 0), (["notify", "--limit"], 1), (["prune", "--chunk"], 1)],
)
def test_a_number_that_no_database_takes(alice, call, least, capsys):
    with pytest.raises(CommandError, match=rf"^{call[1]} must be 1,000,000,000,000 or less"):
        run(*call, HUGE)
    with pytest.raises(CommandError, match=rf"^{call[1]} must be {least} or more"):
        run(*call, str(least - 1))
    run(*call, str(10**12))


@pytest.fixture
def left():
    """The end of a pipe whose reader has left."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        yield stream


@pytest.mark.parametrize("rows", [1, 300])
@pytest.mark.parametrize("form", ["text", "json", "csv"])
def test_a_reader_that_leaves_ends_a_report_quietly(db, left, rows, form):
    UserFactory.create_batch(rows)
    run("report", "--format", form, stdout=left)


def test_what_breaks_in_the_work_is_no_reader_that_left(alice, left, monkeypatch):
    def fail(*args, **kwargs):
        raise BrokenPipeError("of the mail server")

    monkeypatch.setattr("pwexpire.management.verbs.notify.notify_users", fail)
    with pytest.raises(BrokenPipeError, match="of the mail server"):
        run("notify", stdout=left)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_disk_is_a_sentence(alice):
    with (
        open("/dev/full", "w") as full,
        pytest.raises(CommandError, match="Standard output cannot be written: No space left"),
    ):
        run("report", stdout=full)


@pytest.mark.parametrize("form", ["text", "json", "csv"])
def test_a_terminal_in_ascii_gets_escapes(db, form):
    UserFactory(username="josé")
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, "ascii", newline="")
    run("report", "--format", form, stdout=stream)
    assert rb"jos\xe9" in written.getvalue().replace(rb"\u00e9", rb"\xe9")
    assert form != "json" or json.loads(written.getvalue())[0]["user"] == "josé"


def test_an_unknown_require_lists_what_can_be_typed(alice):
    with pytest.raises(CommandError, match=r"use one of warn, change, reset, deny\.$"):
        run("expire", "--user", "alice", "--require", "prayer")


@pytest.mark.parametrize("extra", [[], ["--dry-run"]])
def test_everyone_is_not_enqueued(alice, extra):
    with pytest.raises(CommandError, match="--enqueue goes with no --everyone, nothing was done"):
        run("expire", "--everyone", "--enqueue", "--yes", *extra)
    assert not ExpiryBatch.objects.exists() and get_user_model().objects.exists()

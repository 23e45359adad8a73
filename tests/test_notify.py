"""Mails before a password ages out and after an expiry: the right ones, and each at most once."""

from __future__ import annotations

import json
import threading
from datetime import timedelta
from io import StringIO
from smtplib import SMTPRecipientsRefused, SMTPServerDisconnected
from unittest import mock

import pytest
from django.contrib.auth import get_user_model
from django.core import mail
from django.core.mail.backends.locmem import EmailBackend
from django.core.management import CommandError, call_command
from django.db import connection, connections
from django.test.utils import override_settings
from django.utils import timezone

from pwexpire import services
from pwexpire.exceptions import InvalidRequest
from pwexpire.models import Notice, PasswordRecord
from pwexpire.policy import Policy
from pwexpire.services import mails, notices, pruning
from pwexpire.signals import password_about_to_expire

pytestmark = pytest.mark.django_db(transaction=True)
DAY = timedelta(days=1)
STEPS = Policy(max_age=90 * DAY, warn_before=[14 * DAY, 7 * DAY, DAY])


@pytest.fixture(autouse=True)
def site(settings):
    settings.PWEXPIRE_POLICY = STEPS
    settings.PWEXPIRE_SITE_URL = "https://example.com/"


class Failing:
    """A mail server that refuses, and goes away in the middle."""

    def open(self):
        """As if it were there."""

    def send_messages(self, messages):
        raise OSError("alice@example.com refused")

    def close(self):
        raise OSError("gone already")


@pytest.fixture
def failing():
    with mock.patch("pwexpire.services.mails.mail_connection", Failing):
        yield


def left(user, days):
    """So many days are left to the password."""
    then = timezone.now() - 90 * DAY + timedelta(days=days)
    PasswordRecord.objects.filter(pk=user.pk).update(changed_at=then)


def run(*args, **more):
    out = StringIO()
    call_command("pwexpire", "notify", *args, "--format", "json", stdout=out, **more)
    return json.loads(out.getvalue())


@pytest.mark.parametrize(
    "days, step",
    [(20, None), (14.1, None), (13.9, "14"), (7.5, "14"), (6.9, "7"), (0.5, "1"), (-0.1, None)],
)
def test_the_step_that_has_begun_is_told_once(alice, days, step):
    left(alice, days)
    assert run("--dry-run")["due"] == ({step: 1} if step else {})
    assert not mail.outbox and not Notice.objects.exists()
    for _ in range(2):
        run()
    assert len(mail.outbox) == (1 if step else 0)
    if step:
        assert Notice.objects.get().sent_at is not None


def test_what_is_in_the_mail(alice):
    left(alice, 6.5)
    run()
    (sent,) = mail.outbox
    assert sent.to == [alice.email] and sent.subject == "Your password expires in 7 days"
    assert "https://example.com/account/password-change/" in sent.body
    html, kind = sent.alternatives[0]
    assert kind == "text/html" and 'href="https://example.com/account' in html


def test_each_step_once_and_again_after_a_change(alice):
    for days in (13, 12, 6, 5, 0.9, 0.5):
        left(alice, days)
    left(alice, 13)
    changed_at = PasswordRecord.objects.get(pk=alice.pk).changed_at
    now = timezone.now()
    for later in range(13):
        with mock.patch.object(timezone, "now", return_value=now + later * DAY):
            run()
    assert [one.subject[-7:] for one in mail.outbox] == ["13 days", " 7 days", "n 1 day"]
    PasswordRecord.objects.filter(pk=alice.pk).update(changed_at=changed_at + DAY)
    run()
    assert len(mail.outbox) == 4


def test_who_gets_none(alice, bob, eve, root, settings):
    for user in (alice, bob, eve, root):
        left(user, 5)
    services.expire_passwords(alice)
    get_user_model().objects.filter(pk=bob.pk).update(is_active=False)
    eve.set_unusable_password()
    eve.save()
    settings.PWEXPIRE_APPLIES_TO = "tests.testapp.policies.is_bob"
    assert run("--dry-run")["due"] == {}
    settings.PWEXPIRE_APPLIES_TO = None
    assert run("--dry-run")["due"] == {"7": 1}
    settings.PWEXPIRE_POLICY = Policy(max_age=90 * DAY)
    assert run("--dry-run")["due"] == {}
    settings.PWEXPIRE_POLICY = STEPS
    assert run("--user", "bob")["due"] == {} and run("--exclude", "root")["due"] == {}


def test_users_that_pwexpire_has_never_seen(settings):
    model = get_user_model()
    model.objects.bulk_create([model(username="zoe", email="zoe@example.com", password="x")])
    settings.PWEXPIRE_POLICY = Policy(max_age=10 * DAY, warn_before=14 * DAY)
    assert run()["due"] == {"14": 1}


def test_without_an_address(alice):
    left(alice, 5)
    get_user_model().objects.update(email="")
    seen = []

    def tell(**kwargs):
        seen.append((kwargs["user"].pk, kwargs["step"]))

    password_about_to_expire.connect(tell)
    assert run()["without_address"] == 1 and run() == {
        "due": {},
        "known": 1,
        "sent": 0,
        "without_address": 0,
    }
    assert not mail.outbox and seen == [(alice.pk, 7 * DAY)]


def test_a_mail_that_cannot_be_sent_is_sent_by_the_next_run(alice, caplog):
    left(alice, 5)
    seen = []

    def tell(**kwargs):
        seen.append(kwargs["step"])

    password_about_to_expire.connect(tell)
    with mock.patch("pwexpire.services.mails.mail_connection", Failing):
        with pytest.raises(CommandError, match="1 mails could not be sent, 0 were"):
            run()
    assert not Notice.objects.exists() and "example.com" not in caplog.text and not seen
    assert run()["sent"] == 1 and seen == [7 * DAY]


def test_a_mail_server_that_is_down_is_not_asked_for_each(users, failing):
    for user in users(30):
        left(user, 5)
    with pytest.raises(CommandError, match="20 mails"):
        run()


def test_addresses_that_are_refused_keep_nobody_else_from_his_mail(users):
    people = users(30)
    for user in people:
        left(user, 5)

    class Picky(EmailBackend):
        def send_messages(self, messages):
            if messages[0].to[0] != people[-1].email:
                raise SMTPRecipientsRefused({messages[0].to[0]: (550, b"unknown")})
            return super().send_messages(messages)

    with mock.patch("pwexpire.services.mails.mail_connection", Picky):
        with pytest.raises(CommandError, match="29 mails could not be sent, 1 were"):
            run()


def test_a_server_that_hangs_up_is_called_again(users):
    people = users(6)
    for user in people:
        left(user, 5)
    opened = []

    class Short(EmailBackend):
        def open(self):
            opened.append(0)

        def send_messages(self, messages):
            opened[-1] += 1
            if opened[-1] > 2:
                raise SMTPServerDisconnected("so many and no more")
            return super().send_messages(messages)

    with mock.patch("pwexpire.services.mails.mail_connection", Short):
        with pytest.raises(CommandError, match="could not be sent"):
            run()
    assert len(mail.outbox) == 4 and opened == [3, 3]


def test_a_process_that_was_killed_sends_no_second_mail(alice, bob):
    left(bob, 5)
    assert run()["sent"] == 1
    left(alice, 5)
    with (
        mock.patch("pwexpire.services.mails._compose_mail", side_effect=KeyboardInterrupt),
        pytest.raises(CommandError, match="Interrupted"),
    ):
        run()
    assert run()["known"] == 2 and run("--retry-unsent")["known"] == 2
    Notice.objects.update(created_at=timezone.now() - timedelta(hours=2))
    assert run("--retry-unsent", "--dry-run")["known"] == 2
    assert run("--retry-unsent")["sent"] == 1
    assert [one.to for one in mail.outbox] == [[bob.email], [alice.email]]


def test_another_run_is_faster(alice):
    left(alice, 5)
    real = notices._drop_known

    def slow(due, report):
        found = real(due, report)
        for one in found:
            Notice.objects.create(user=one.user, key=one.key, created_at=timezone.now())
        return found

    with mock.patch("pwexpire.services.notices._drop_known", slow):
        assert run() == {"due": {}, "known": 1, "sent": 0, "without_address": 0}


def test_two_runs_at_the_same_time(users):
    if connection.vendor == "sqlite":
        pytest.skip("one writer at a time")
    people = users(40)
    for user in people:
        left(user, 5)

    def work():
        services.notify_users()
        connections.close_all()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(one.to[0] for one in mail.outbox) == sorted(user.email for user in people)


def test_limits_and_pages(users, monkeypatch):
    for user in users(5):
        left(user, 5)
    monkeypatch.setattr(notices, "PAGE", 2)
    seen = []
    assert run("--limit", "3")["sent"] == 3
    report = services.notify_users(progress=lambda done, total: seen.append(done))
    assert report.sent == 2 and seen == [2, 4, 5]
    with pytest.raises(CommandError, match="1 or more"):
        run("--limit", "0")


def test_a_run_that_is_out_of_time_goes_on_behind_its_cursor(users, monkeypatch):
    for user in users(5):
        left(user, 5)
    monkeypatch.setattr(notices, "PAGE", 2)
    first = services.notify_users(seconds=0)
    assert first.sent == 2 and first.cursor
    assert services.notify_users(after=first.cursor, seconds=60).sent == 3


def test_the_number_of_queries_is_bounded(users, django_assert_max_num_queries):
    people = users(300)
    PasswordRecord.objects.update(changed_at=timezone.now() - 80 * DAY)
    with django_assert_max_num_queries(30):
        assert services.notify_users(dry_run=True).steps == {"14": len(people)}


def test_languages_and_hostile_names(alice, settings):
    settings.LANGUAGE_CODE = "de"
    alice.username = "<b>alice</b>"
    alice.save()
    left(alice, 5)
    assert mails._find_language(alice) == "de"
    alice.language = "fr"
    assert mails._find_language(alice) == "fr"
    alice.language = "xx"
    alice.preferred_language = "es"
    assert mails._find_language(alice) == "es"
    run()
    (sent,) = mail.outbox
    assert "<b>alice</b>" in sent.body and "<b>" not in sent.alternatives[0][0]


def test_a_hostile_address_is_a_mail_that_cannot_be_sent(alice):
    left(alice, 5)
    get_user_model().objects.update(email="a@example.com\nBcc: b@example.com")
    with pytest.raises(CommandError, match="could not be sent"):
        run()
    assert not mail.outbox


@pytest.mark.parametrize(
    "site_url, change_url", [("", "password_change"), ("https://x", "nowhere")]
)
def test_a_site_that_does_not_say_where_it_is(alice, settings, site_url, change_url):
    settings.PWEXPIRE_SITE_URL, settings.PWEXPIRE_CHANGE_URL = site_url, change_url
    left(alice, 5)
    run()
    assert "after you have logged in" in mail.outbox[0].body and "http" not in mail.outbox[0].body


# An expiry that is announced.


def test_an_expiry_is_announced_once(alice, bob, eve):
    batch = services.expire_passwords([alice, bob], reason="compromised", note="ticket 4711")
    services.record_password_change(bob)
    assert run("--batch", str(batch.pk), "--dry-run")["due"] == {f"batch:{batch.pk}": 1}
    assert run("--batch", str(batch.pk))["sent"] == 1
    assert run("--batch", str(batch.pk))["known"] == 1
    (sent,) = mail.outbox
    assert sent.to == [alice.email] and "known to others" in sent.body
    assert "4711" not in sent.body and "/account/password-change/" in sent.body


@pytest.mark.parametrize("whom", [["--user", "alice"], ["--everyone", "--exclude", "bob"]])
def test_an_expiry_announces_itself(alice, bob, whom):
    out = StringIO()
    call = ["expire", *whom, "--reason", "policy", "--announce", "--yes", "--format", "json"]
    call_command("pwexpire", *call, stdout=out)
    told = json.loads(out.getvalue())
    assert (told["mails_sent"], told["mails_failed"]) == (1, 0)
    assert mail.outbox[0].to == [alice.email] and "rules have changed" in mail.outbox[0].body
    if "--everyone" not in whom:
        call_command("pwexpire", *call, stdout=out)  # meets nobody who is not expired already
        assert len(mail.outbox) == 1


def test_an_expiry_of_everyone_is_announced(alice, bob, eve):
    batch = services.expire_everyone(exclude=eve, require="warn")
    services.record_password_change(bob)
    assert services.announce_expiry(batch).sent == 1
    assert mail.outbox[0].subject == "Please change your password"


@pytest.mark.parametrize("require, words", [("reset", "reset link"), ("deny", "administrator")])
def test_what_helps_is_said(alice, settings, require, words):
    settings.AUTHENTICATION_BACKENDS = ["pwexpire.backends.PasswordExpiryBackend"]
    services.announce_expiry(services.expire_passwords(alice, require=require))
    (sent,) = mail.outbox
    assert words in sent.body and "password-change" not in sent.body


def test_what_cannot_be_announced(alice, bob):
    batch = services.expire_passwords(alice)
    services.cancel_expiry(batch)
    with pytest.raises(InvalidRequest, match="not in force"):
        services.announce_expiry(batch)
    with pytest.raises(CommandError, match="no batch 99"):
        run("--batch", "99")
    with pytest.raises(CommandError, match="no selector"):
        run("--batch", str(batch.pk), "--user", "alice")


def test_old_notices_are_pruned(alice, bob):
    for user in (alice, bob):
        Notice.objects.create(user=user, key="age", created_at=timezone.now())
    assert pruning.prune_notices() == 0
    Notice.objects.update(created_at=timezone.now() - timedelta(days=500))
    assert pruning.prune_notices(chunk=1) == 2


# As tasks.


@pytest.fixture
def tasks(settings):
    from pwexpire import tasks

    if tasks.framework is None:
        pytest.skip("there is no Tasks framework")
    from pwexpire.compat import find_tasks

    immediate = f"{find_tasks().__name__}.backends.immediate.ImmediateBackend"
    with override_settings(TASKS={"default": {"BACKEND": immediate}}):
        yield tasks


def test_notices_are_sent_by_tasks(users, tasks, monkeypatch):
    people = users(5)
    for user in people:
        left(user, 5)
    monkeypatch.setattr(notices, "PAGE", 2)
    monkeypatch.setattr(tasks, "TASK_SECONDS", 0)
    assert run("--enqueue") == {"enqueued": True}
    assert len(mail.outbox) == 5
    batch = services.expire_passwords(people)
    run("--enqueue", "--batch", str(batch.pk))
    assert len(mail.outbox) == 10
    services.cancel_expiry(batch)
    assert tasks.work_at_notices.call(batch.pk) == "gone"
    for more in (["--limit", "5"], ["--dry-run"], ["--retry-unsent"]):
        with pytest.raises(CommandError, match="goes with no"):
            run("--enqueue", *more)


def test_without_a_tasks_framework(alice, monkeypatch):
    from pwexpire import tasks
    from pwexpire.exceptions import TasksUnavailable

    monkeypatch.setattr(tasks, "framework", None)
    with pytest.raises(CommandError, match="no Tasks framework"):
        run("--enqueue")
    with pytest.raises(TasksUnavailable):
        tasks.enqueue_notices()


def test_whom_no_policy_warns_today_is_not_judged(alice, bob, settings, monkeypatch):
    settings.PWEXPIRE_POLICY = Policy(max_age=90 * DAY, warn_before=7 * DAY)
    PasswordRecord.objects.filter(pk=bob.pk).update(changed_at=timezone.now() - 85 * DAY)
    judged, real = [], notices.judge_users

    def judge(users, *given):
        judged.extend(users)
        return real(users, *given)

    monkeypatch.setattr(notices, "judge_users", judge)
    assert services.notify_users(dry_run=True).steps == {"7": 1}
    assert judged == [bob]


def test_a_policy_of_others_warns_nobody(alice, bob, settings):
    """The database passes over whom no policy warns; whom only that of others does is judged."""
    sooner = Policy(max_age=30 * DAY, warn_before=7 * DAY)
    settings.PWEXPIRE_POLICY = {"staff": sooner, "default": STEPS}
    PasswordRecord.objects.update(changed_at=timezone.now() - 25 * DAY)
    get_user_model().objects.filter(pk=bob.pk).update(is_staff=True)
    assert services.notify_users(dry_run=True).steps == {"7": 1}

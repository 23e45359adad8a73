"""E-mails before a password ages out, and to those whom an expiry meets; each at most once.

A row of ``Notice`` is written before its mail is sent, so that two runs do not send it twice. It is
taken back if the mail cannot be sent; if the process is killed in between, nobody gets a mail.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from smtplib import SMTPDataError, SMTPRecipientsRefused, SMTPSenderRefused
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.mail import EmailMultiAlternatives
from django.db import IntegrityError, transaction
from django.db.models import Q
from django.shortcuts import resolve_url
from django.template.loader import render_to_string
from django.urls import NoReverseMatch
from django.utils import timezone, translation
from django.utils.translation import gettext as _

from pwexpire.compat import mail_connection
from pwexpire.conf import conf
from pwexpire.exceptions import InvalidRequest
from pwexpire.feed import feed
from pwexpire.models import ExpiryBatch, Notice, PasswordRecord, Reason
from pwexpire.policy import Policy
from pwexpire.retries import in_transaction, retried
from pwexpire.services.evidence import look, records_of, wanted_by, with_groups
from pwexpire.services.selection import Selection, all_users, members
from pwexpire.services.staging import Progress
from pwexpire.services.status import read_rules
from pwexpire.signals import password_about_to_expire

logger = logging.getLogger("pwexpire")

PAGE = 500
DAY = timedelta(days=1)
# So many mails in a row that cannot be sent: the mail server is down.
FAILURES_MAX = 20
OF_ONE_MAIL = (SMTPRecipientsRefused, SMTPSenderRefused, SMTPDataError)
UNSENT_AFTER = timedelta(hours=1)
KEPT_FOR = timedelta(days=400)
LANGUAGE_FIELDS = ("language", "preferred_language")


@dataclass(kw_only=True)
class NoticeReport:
    """What a run came to. ``steps``: days of the step -> how many users were due.

    ``cursor``: behind which user a run that ran out of time goes on, ``""`` if it came to the end.
    ``stopped``: the mail server is down.
    """

    sent: int = 0
    known: int = 0
    without_address: int = 0
    failed: int = 0
    steps: Counter[str] = field(default_factory=Counter)
    cursor: str = ""
    stopped: bool = False


@dataclass(frozen=True)
class Due:
    """One mail: to whom, what is remembered of it, and what is in it."""

    user: Any
    key: str
    template: str
    context: dict[str, Any]
    expires_at: datetime | None = None
    step: timedelta | None = None


def notify_users(
    users: Any = None,
    *,
    exclude: Any = None,
    dry_run: bool = False,
    limit: int | None = None,
    progress: Progress | None = None,
    after: str = "",
    seconds: float | None = None,
) -> NoticeReport:
    """Tell ``users`` (default: all) whose password ages out soon, at the steps of their policy.

    One mail for each step of ``Policy.warn_before`` and date, to active users of whom nothing is
    demanded yet: the shortest step that has begun. ``dry_run``: count, and write nothing.
    ``limit``: of mails. ``after``: the ``cursor`` of an earlier run. ``seconds``: work for so long.
    ``progress(done, total)`` is called after each page, ``total`` is ``None``.
    Safe to run twice, and on two machines. Returns a ``NoticeReport``. Raises ``InvalidRequest``.
    """
    selection = Selection(all_users() if users is None else users, exclude=exclude)
    return _run(selection, _aging, dry_run, limit, progress, after, seconds)


def announce_expiry(
    batch: ExpiryBatch,
    *,
    dry_run: bool = False,
    limit: int | None = None,
    progress: Progress | None = None,
    after: str = "",
    seconds: float | None = None,
) -> NoticeReport:
    """Tell the users of a batch that is in force, and have not met it yet, what it wants and why.

    Arguments and guarantees as ``notify_users``. The note of the batch is not told.
    Raises ``InvalidRequest`` if the batch is not in force.
    """
    if batch.number is None or batch.cancelled_at is not None:
        raise InvalidRequest(f"Batch {batch.pk} is not in force: there is nothing to announce.")
    users = members(batch)
    if batch.everyone:
        users = all_users().exclude(pwexpire_record__satisfied__gte=batch.number)
        users = users.exclude(pwexpire_exclusions__batch=batch)
    find = partial(_announced, batch)
    return _run(Selection(users), find, dry_run, limit, progress, after, seconds)


def retry_unsent() -> int:
    """Forget notices that were begun an hour ago and not sent: a process was killed. How many."""
    old = Notice.objects.using(feed.using).filter(
        sent_at=None, created_at__lt=timezone.now() - UNSENT_AFTER
    )
    return int(in_transaction(old.delete, using=feed.using)[0])


def prune_notices(chunk: int = 1000) -> int:
    """Remove notices that nobody can be sent again, ``chunk`` at a time; how many went."""
    notices = Notice.objects.using(feed.using)
    old = notices.filter(created_at__lt=timezone.now() - KEPT_FOR).order_by("pk")
    removed = 0
    while pks := list(old.values_list("pk", flat=True)[:chunk]):
        removed += in_transaction(notices.filter(pk__in=pks).delete, using=feed.using)[0]
    return removed


def reason_label(reason: str | None) -> str:
    """In words, for users."""
    if reason is None:
        return ""
    own = conf.reasons.get(reason)
    if own is not None:
        return str(own)
    return str(Reason(reason).label) if reason in Reason.values else _("it was asked for")


def _run(
    selection: Selection,
    find: Any,
    dry_run: bool,
    limit: int | None,
    progress: Progress | None,
    after: str,
    seconds: float | None,
) -> NoticeReport:
    report, done = NoticeReport(), 0
    until = None if seconds is None else time.monotonic() + seconds
    while part := selection.part(after, PAGE):
        page, last = part
        users = list(page.order_by("pk"))
        due = [one for one in find(users) if getattr(one.user, "is_active", True)]
        finished = _page(report, _unknown(due, report), dry_run, limit)
        if not finished:
            return report
        after = last
        done += len(users)
        if progress is not None:
            progress(done, None)
        if until is not None and time.monotonic() >= until:
            report.cursor = after
            return report
    return report


def _aging(users: list[Any]) -> Iterable[Due]:
    with_groups(users)
    rules, records, wanted = read_rules(), records_of(users), wanted_by(users)
    for user in users:
        record = records.get(user.pk) or PasswordRecord()
        judged, _told = look(rules, user, record, wanted[user.pk])
        policy, expires_at = judged.chosen.policy, judged.expires_at
        if judged.held or expires_at is None or not policy.warn_steps:
            continue
        if rules.now < expires_at <= rules.now + policy.warn_steps[0]:
            yield _warning(user, policy, expires_at, expires_at - rules.now)


def _warning(user: Any, policy: Policy, expires_at: datetime, left: timedelta) -> Due:
    step = min(step for step in policy.warn_steps if step >= left)
    return Due(
        user=user,
        key=f"age:{expires_at:%Y%m%dT%H%M%S}:{int(step.total_seconds())}",
        template="expiry_warning",
        context={
            "days_left": math.ceil(left / DAY),
            "expires_at": expires_at,
            "policy": policy,
        },
        expires_at=expires_at,
        step=step,
    )


def _announced(batch: ExpiryBatch, users: list[Any]) -> Iterable[Due]:
    rules = read_rules()
    for user in users:
        if rules.apply(user):
            yield Due(
                user=user,
                key=f"batch:{batch.pk}",
                template="expired",
                context={"reason": batch.reason, "require": str(batch.require)},
            )


def _unknown(due: list[Due], report: NoticeReport) -> list[Due]:
    """Those of whom there is no notice yet."""
    asked = Q(user__in=[one.user.pk for one in due], key__in={one.key for one in due})
    rows = Notice.objects.using(feed.using).filter(asked).values_list("user_id", "key")
    there = set(rows)
    new = [one for one in due if (one.user.pk, one.key) not in there]
    report.known += len(due) - len(new)
    return new


def _page(report: NoticeReport, due: list[Due], dry_run: bool, limit: int | None) -> bool:
    """Send these; false if it had to stop before the last one."""
    with _Mailer() as mailer:
        for one in due:
            if limit is not None and report.sent >= limit:
                return False
            notice = None if dry_run else _claim(one)
            if notice is None and not dry_run:  # another run was faster
                report.known += 1
                continue
            report.steps[f"{one.step / DAY:g}" if one.step is not None else one.key] += 1
            if notice is None:
                continue
            address = getattr(one.user, get_user_model().get_email_field_name(), None)
            if address and not mailer.send(one, address):
                in_transaction(notice.delete, using=feed.using)
                report.failed += 1
                if mailer.failures == FAILURES_MAX:
                    report.stopped = True
                    return False
                continue
            report.sent += bool(address)
            report.without_address += not address
            _settle(notice, one)
    return True


class _Mailer:
    """One connection for a page of users, opened with the first mail."""

    def __enter__(self) -> _Mailer:
        self.connection: Any = None
        self.failures = 0  # of the server, in a row
        return self

    def __exit__(self, *raised: object) -> None:
        connection, self.connection = self.connection, None
        if connection is None:
            return
        try:
            connection.close()
        except Exception as error:  # what was sent is sent
            logger.warning("The mail server did not say goodbye: %s", type(error).__name__)

    def send(self, due: Due, address: str) -> bool:
        try:
            if self.connection is None:
                connection = mail_connection()
                connection.open()
                self.connection = connection
            self.connection.send_messages([_mail(due, address)])
        except Exception as error:  # whatever a mail backend raises; its text may have names
            logger.error("A notice to user %s was not sent: %s", due.user.pk, type(error).__name__)
            if isinstance(error, OSError) and not isinstance(error, OF_ONE_MAIL):
                self.failures += 1
            self.__exit__()  # the next one begins with a connection of its own
            return False
        self.failures = 0
        return True


def _claim(due: Due) -> Notice | None:
    """Write down that this mail is about to be sent; ``None`` if somebody else did."""
    notice = Notice(user_id=due.user.pk, key=due.key, created_at=timezone.now())

    def write() -> bool:
        try:
            with transaction.atomic(using=feed.using):
                notice.save(using=feed.using, force_insert=True)
        except IntegrityError:  # there is one: no conflict that another try would solve
            return False
        return True

    return notice if retried(write, using=feed.using) else None


def _settle(notice: Notice, due: Due) -> None:
    mine = Notice.objects.using(feed.using).filter(pk=notice.pk)
    retried(partial(mine.update, sent_at=timezone.now()), using=feed.using)
    if due.step is not None:
        tell = partial(
            password_about_to_expire.send_robust,
            sender=type(due.user),
            user=due.user,
            expires_at=due.expires_at,
            step=due.step,
        )
        transaction.on_commit(tell, using=feed.using)


def _mail(due: Due, address: str) -> EmailMultiAlternatives:
    with translation.override(_language(due.user)):
        context = {**due.context, "user": due.user, "change_url": _change_url()}
        if "reason" in context:
            context["reason"] = reason_label(context["reason"])
        where = f"pwexpire/mail/{due.template}"
        subject = " ".join(render_to_string(f"{where}_subject.txt", context).split())
        text = render_to_string(f"{where}_body.txt", context)
        mail = EmailMultiAlternatives(subject, text, to=[address])
        mail.attach_alternative(render_to_string(f"{where}_body.html", context), "text/html")
        return mail


def _language(user: Any) -> str:
    known = dict(settings.LANGUAGES)
    for name in LANGUAGE_FIELDS:
        found = getattr(user, name, None)
        if isinstance(found, str) and found in known:
            return found
    return str(settings.LANGUAGE_CODE)


def _change_url() -> str:
    """Absolute, or empty where the site does not say where it is."""
    if not conf.site_url:
        return ""
    try:
        return f"{conf.site_url}{resolve_url(conf.change_url)}"
    except NoReverseMatch:
        return ""

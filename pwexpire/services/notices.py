"""E-mails before a password ages out, and to those whom an expiry concerns; each at most once.

A row of ``Notice`` is written before its mail is sent, so that two runs do not send it twice. It is
taken back if the mail cannot be sent; if the process is killed in between, nobody gets a mail.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from django.contrib.auth import get_user_model
from django.db import IntegrityError, transaction
from django.db.models import Q
from django.utils import timezone

from pwexpire.exceptions import InvalidRequest
from pwexpire.feed import feed
from pwexpire.models import ExpiryBatch, Notice
from pwexpire.policy import Policy
from pwexpire.retries import in_transaction, retried
from pwexpire.services.demands import all_users, users_wanted_by
from pwexpire.services.expired import may_be_warned_of_age
from pwexpire.services.mails import Due, Mailer
from pwexpire.services.selection import Selection, list_with_records
from pwexpire.services.staging import Progress
from pwexpire.services.status import judge_users, read_rules
from pwexpire.signals import password_about_to_expire

# Users of one connection to the mail server.
PAGE = 500
DAY = timedelta(days=1)
# So many mails in a row that cannot be sent: the mail server is down.
FAILURES_MAX = 20
UNSENT_AFTER = timedelta(hours=1)


@dataclass(kw_only=True)
class NoticeReport:
    """The counts of a run. ``steps``: days of the step -> how many users were due.

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
    # The database passes over most users, whom no policy could warn today; the others are judged.
    possible = may_be_warned_of_age()
    run = _NoticeRun(_find_aging, dry_run, limit, progress, seconds, possible)
    return run.work(selection, after)


def announce_expiry(
    batch: ExpiryBatch,
    *,
    dry_run: bool = False,
    limit: int | None = None,
    progress: Progress | None = None,
    after: str = "",
    seconds: float | None = None,
) -> NoticeReport:
    """Tell the users of a batch in force who have not satisfied it what it wants, and why.

    Arguments and guarantees as ``notify_users``. The note of the batch is not in the mail.
    Raises ``InvalidRequest`` if the batch is not in force.
    """
    if batch.number is None or batch.cancelled_at is not None:
        raise InvalidRequest(f"Batch {batch.pk} is not in force: there is nothing to announce.")
    users = users_wanted_by(batch)
    find = partial(_list_announced, batch)
    return _NoticeRun(find, dry_run, limit, progress, seconds).work(Selection(users), after)


def retry_unsent() -> int:
    """Forget notices that were begun an hour ago and not sent: a process was killed. How many."""
    old = Notice.objects.using(feed.using).filter(
        sent_at=None, created_at__lt=timezone.now() - UNSENT_AFTER
    )
    return int(in_transaction(old.delete, using=feed.using)[0])


@dataclass
class _NoticeRun:
    """The mails of one run. ``find`` lists those of a page of users that are due.

    ``possible``: a condition on users that is true of all of these.
    """

    find: Callable[[list[Any]], Iterable[Due]]
    dry_run: bool
    limit: int | None
    progress: Progress | None
    seconds: float | None
    possible: Q = field(default_factory=Q)
    report: NoticeReport = field(default_factory=NoticeReport)

    def work(self, selection: Selection, after: str) -> NoticeReport:
        done, until = 0, None if self.seconds is None else time.monotonic() + self.seconds
        while part := selection.part(after, PAGE):
            page, after = part
            users = list_with_records(page.filter(self.possible))
            due = [one for one in self.find(users) if getattr(one.user, "is_active", True)]
            if not self._send_page(_drop_known(due, self.report)):
                return self.report
            done += len(users)
            if self.progress is not None:
                self.progress(done, None)
            if until is not None and time.monotonic() >= until:
                self.report.cursor = after
                return self.report
        return self.report

    def _send_page(self, due: list[Due]) -> bool:
        """Send these; false if it had to stop before the last one."""
        with Mailer() as mailer:
            for one in due:
                if self.limit is not None and self.report.sent >= self.limit:
                    return False
                self._send_notice(one, mailer)
                if mailer.failures >= FAILURES_MAX:
                    self.report.stopped = True
                    return False
        return True

    def _send_notice(self, due: Due, mailer: Mailer) -> None:
        # The row before the mail: the other way round, two runs would send it twice.
        notice = None if self.dry_run else _claim_notice(due)
        if notice is None and not self.dry_run:  # another run was faster
            self.report.known += 1
            return
        self.report.steps[due.key if due.step is None else f"{due.step / DAY:g}"] += 1
        if notice is None:
            return
        address = getattr(due.user, get_user_model().get_email_field_name(), None)
        if address and not mailer.send(due, address):
            in_transaction(notice.delete, using=feed.using)
            self.report.failed += 1
            return
        self.report.sent += bool(address)
        self.report.without_address += not address
        _mark_sent(notice, due)


def _find_aging(users: list[Any]) -> Iterable[Due]:
    rules = read_rules()
    now = rules.now
    for user, _, password_state, _ in judge_users(users, rules):
        policy, expires_at = password_state.chosen.policy, password_state.expires_at
        if password_state.held or expires_at is None or not policy.warn_steps:
            continue
        if now < expires_at <= now + policy.warn_steps[0]:
            yield _warn_of(user, policy, expires_at, expires_at - now)


def _warn_of(user: Any, policy: Policy, expires_at: datetime, left: timedelta) -> Due:
    step = min(step for step in policy.warn_steps if step >= left)
    return Due(
        user=user,
        key=f"age:{expires_at:%Y%m%dT%H%M%S}:{int(step.total_seconds())}",
        template="expiry_warning",
        context={"days_left": math.ceil(left / DAY), "expires_at": expires_at, "policy": policy},
        expires_at=expires_at,
        step=step,
    )


def _list_announced(batch: ExpiryBatch, users: list[Any]) -> Iterable[Due]:
    context = {"reason": batch.reason, "require": str(batch.require)}
    for user in filter(read_rules().apply, users):
        yield Due(user=user, key=f"batch:{batch.pk}", template="expired", context=context)


def _drop_known(due: list[Due], report: NoticeReport) -> list[Due]:
    """Return those of which there is no notice yet; count the others."""
    asked = Q(user__in=[one.user.pk for one in due], key__in={one.key for one in due})
    there = set(Notice.objects.using(feed.using).filter(asked).values_list("user_id", "key"))
    new = [one for one in due if (one.user.pk, one.key) not in there]
    report.known += len(due) - len(new)
    return new


def _claim_notice(due: Due) -> Notice | None:
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


def _mark_sent(notice: Notice, due: Due) -> None:
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
        # A receiver must not hear of a step whose row is rolled back.
        transaction.on_commit(tell, using=feed.using)

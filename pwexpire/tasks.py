"""Sessions flagged in the background, by workers of Django's Tasks framework, whatever its backend.

``django.tasks`` since Django 6.0, the package django-tasks before.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from django.db import transaction

from pwexpire.compat import find_tasks
from pwexpire.conf import conf
from pwexpire.exceptions import TasksUnavailable
from pwexpire.feed import feed
from pwexpire.models import BatchState, ExpiryBatch
from pwexpire.retries import first_line
from pwexpire.services import announce_expiry, notify_users, resume_expiry

# Queues give a job so long and no longer; RQ's default is three minutes.
TASK_SECONDS = 60.0
NO_TASKS = "There is no Tasks framework: use Django 6.0, or install pwexpire[tasks]."


def work_at_expiry(batch_id: int) -> str:
    """Take part in a batch for a minute, and hand over to another task if work is left.

    Run twice, late or beside others it does no harm. Returns the state of the batch.
    """
    batch = ExpiryBatch.objects.using(feed.using).filter(pk=batch_id).first()
    if batch is None:
        return "gone"
    if batch.state in (BatchState.STAGED, BatchState.ACTIVE):
        resume_expiry(batch, seconds=TASK_SECONDS)
        # Queues kill a task that takes long, so each hands over in time.
        if batch.is_unfinished:
            as_task(work_at_expiry).enqueue(batch.pk)
    return str(batch.state)


def work_at_notices(batch_id: int | None = None, after: str = "") -> str:
    """Send mails for a minute, and hand over to another task if users are left.

    ``batch_id``: announce this batch, ``None``: warn before an age. ``after``: go on behind this
    user. Run twice it sends nothing twice. Returns how many mails were sent.
    """
    if batch_id is None:
        report = notify_users(after=after, seconds=TASK_SECONDS)
    else:
        batch = ExpiryBatch.objects.using(feed.using).filter(pk=batch_id).first()
        if batch is None or batch.cancelled_at is not None:
            return "gone"
        report = announce_expiry(batch, after=after, seconds=TASK_SECONDS)
    if report.cursor:
        as_task(work_at_notices).enqueue(batch_id, report.cursor)
    return f"{report.sent} sent"


framework = find_tasks()


def as_task(work: Any) -> Any:
    """Return the task that does ``work``, as the settings are now.

    Raises ``TasksUnavailable`` if there is no Tasks framework, or it refuses them.
    """
    if framework is None:
        raise TasksUnavailable(NO_TASKS)
    found = {"backend": conf.task_backend, "queue_name": conf.task_queue}
    try:
        return framework.task(**found)(getattr(work, "func", work))
    except Exception as error:  # what a backend raises at its settings is its own affair
        raise TasksUnavailable(
            f"PWEXPIRE_TASK_BACKEND = {conf.task_backend!r} with PWEXPIRE_TASK_QUEUE = "
            f"{conf.task_queue!r} cannot be used: {first_line(error)}"
        ) from error


# At import: a worker looks tasks up by the path of their function. A mistake in the settings must
# not fail who imports this; it is refused when something is enqueued.
with suppress(TasksUnavailable):
    work_at_expiry = as_task(work_at_expiry)
    work_at_notices = as_task(work_at_notices)


def enqueue_notices(batch: ExpiryBatch | None = None) -> None:
    """Enqueue a task that does the work of ``notify_users``, or of ``announce_expiry(batch)``.

    Inside a transaction it is enqueued at its commit. Raises ``TasksUnavailable``.
    """
    task, pk = as_task(work_at_notices), None if batch is None else batch.pk
    _at_commit(lambda: task.enqueue(pk, ""), "no mail was sent.")


def enqueue_expiry(batch: ExpiryBatch) -> None:
    """Enqueue ``PWEXPIRE_TASKS_PER_BATCH`` tasks that flag or end the sessions of ``batch``.

    For a batch that ``expire_passwords(…, defer=True)`` returned, or one that was interrupted after
    it was in force. Inside a transaction they are enqueued at its commit.
    Raises ``TasksUnavailable`` if nothing can be enqueued; the batch can be resumed.
    """
    task = as_task(work_at_expiry)

    def send() -> None:
        batch.refresh_from_db(using=feed.using)
        for _ in range(conf.tasks_per_batch if batch.is_unfinished else 0):
            task.enqueue(batch.pk)

    _at_commit(send, f"manage.py pwexpire resume {batch.pk} does their work.")


def _at_commit(send: Callable[[], object], otherwise: str) -> None:
    def enqueue() -> None:
        try:
            send()
        except Exception as error:  # of the queue: a broker that is down, a table that is missing
            said = f"No task could be enqueued ({first_line(error)}): {otherwise}"
            raise TasksUnavailable(said) from error

    # In a transaction of the caller's, what was committed stands: the fault is logged.
    pending = transaction.get_connection(feed.using).in_atomic_block
    transaction.on_commit(enqueue, using=feed.using, robust=pending)

"""For workers of Django's Tasks framework, with the backend that ``PWEXPIRE_TEST_TASKS`` names."""

from __future__ import annotations

import os

from tests import servers
from tests.settings_process import *  # noqa: F403
from tests.settings_process import INSTALLED_APPS

BACKENDS = {
    "db": {"BACKEND": "django_tasks_db.DatabaseBackend"},
    "rq": {"BACKEND": "django_tasks_rq.RQBackend"},
}
KIND = os.environ["PWEXPIRE_TEST_TASKS"]
APPS = {"db": ["django_tasks_db"], "rq": ["django_rq"]}
INSTALLED_APPS = [*INSTALLED_APPS, *APPS[KIND]]
# Redis is shared: a queue that nobody else works at.
QUEUE = PWEXPIRE_TASK_QUEUE = os.environ["PWEXPIRE_TEST_NAME"]
TASKS = {"default": {**BACKENDS[KIND], "QUEUES": [QUEUE]}}
RQ_QUEUES = {QUEUE: {"URL": servers.REDIS, "JOB_CLASS": "django_tasks_rq.Job"}}

"""For processes whose servers fail: the settings come from the test, as JSON."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from typing import Any

from pwexpire.policy import Policy
from tests import servers
from tests.settings import *  # noqa: F403

QUARTERLY = Policy(max_age=timedelta(days=90))
DATABASES: dict[str, Any] = {}
globals().update(json.loads(os.environ["PWEXPIRE_FAULTS"]))
if any(entry["ENGINE"].endswith("mysql") for entry in DATABASES.values()):
    servers.database("mariadb")  # puts PyMySQL in the place of mysqlclient


class ReadElsewhere:
    """Reads go to the replica, writes to the primary."""

    def db_for_read(self, model, **hints):
        return "replica"

    def db_for_write(self, model, **hints):
        return "default"

    def allow_relation(self, one, other, **hints):
        return True

    def allow_migrate(self, db, app_label, **hints):
        return db == "default"

"""Whether the database has the tables and the columns that this release reads."""

from __future__ import annotations

from typing import Any

from django.apps import apps

from pwexpire.feed import feed


def read_tables(*models: Any) -> None:
    """Read a row of each of ``models``, by default of all. Raises the fault of the database."""
    for model in models or apps.get_app_config("pwexpire").get_models():
        model._base_manager.using(feed.using).first()

"""Whether the database has the tables and the columns that this release reads."""

from __future__ import annotations

from django.apps import apps

from pwexpire.feed import feed


def read_tables() -> None:
    """Read a row of each table of pwexpire. Raises the fault of the database if one cannot be."""
    for model in apps.get_app_config("pwexpire").get_models():
        model._base_manager.using(feed.using).first()

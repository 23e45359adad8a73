"""What has another name, or is not there, in some of the supported releases."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from django.core import mail


def find_tasks() -> Any:
    """The module of the Tasks framework, Django's own or the backport; ``None``: there is none."""
    for name in ("django.tasks", "django_tasks"):
        try:
            return import_module(name)
        except ImportError:
            continue
    return None


def mail_connection() -> Any:
    """The site's connection to its mail server; Django's mailers since 6.1."""
    mailers = getattr(mail, "mailers", None)
    return mail.get_connection() if mailers is None else mailers.default

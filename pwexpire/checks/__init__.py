"""What ``manage.py check`` says of a site; each message has an id and a hint."""

from __future__ import annotations

from pwexpire.checks import configuration, policies, site
from pwexpire.checks.shape import ALL

__all__ = ["ALL", "configuration", "policies", "site"]

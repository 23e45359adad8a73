"""The demo site of pwexpire: ``python demo/manage.py demo`` or ``... demo --tour``."""

from __future__ import annotations

import os
import sys

from django.core.management import execute_from_command_line

if __name__ == "__main__":
    os.environ["DJANGO_SETTINGS_MODULE"] = "demosite.settings"
    execute_from_command_line(sys.argv)

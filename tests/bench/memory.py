"""A process of its own that expires all users, and says how much memory that took at most."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")


def peak_mib() -> float:
    """Since this program began.

    ``ru_maxrss`` also counts what the process that started this one held at that moment, so the
    kernel's own mark is read where there is one.
    """
    if STATUS.exists():
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 1024)


def main() -> None:
    import django

    django.setup()
    from django.contrib.auth import get_user_model

    from pwexpire import services

    users = get_user_model().objects.all()
    users.first()
    before = peak_mib()
    services.expire_passwords(users)
    print(json.dumps([before, peak_mib()]), flush=True)


if __name__ == "__main__":
    main()

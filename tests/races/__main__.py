from __future__ import annotations

import sys
from pathlib import Path

import django

if __name__ == "__main__":
    django.setup()
    from tests.races.launch import run

    run(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))

"""The house: imports go downward only, and what the README says is what the code has."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from django.core.management import get_commands, load_command_class

from pwexpire import checks, services, signals
from pwexpire.conf import SETTINGS

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path(services.__file__).resolve().parent.parent
FLOORS = [
    [
        "bloom",
        "breached",
        "compat",
        "compiled",
        "constants",
        "exceptions",
        "faults",
        "filter_parts",
        "keys",
        "retries",
        "signals",
    ],
    ["policy"],
    ["loading"],
    ["logins"],
    ["conf"],
    ["models", "pages", "poller", "sessionstore"],
    ["demand_view"],
    ["exemptions", "feed", "users"],
    ["session_state"],
    ["services"],
    [
        "backends",
        "decision",
        "decorators",
        "forms",
        "receivers",
        "responses",
        "tasks",
        "testing",
        "validators",
    ],
    ["admin_log"],
    ["admin_actions"],
    [
        "admin",
        "context_processors",
        "contrib",
        "management",
        "middleware",
        "views",
    ],
    ["templatetags"],
    ["checks", "urls"],
    ["apps"],
]
LOW = {name: floor for floor, names in enumerate(FLOORS) for name in names}
# One room above another inside a floor of several rooms, and what a room may look at sideways.
SIDEWAYS = {("management", "management")}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pwexpire"):
            names = [node.module] if "." in node.module else []
            names += [f"pwexpire.{alias.name}" for alias in node.names if not names]
            for name in names:
                yield name.split(".")[1]


def test_imports_go_downward():
    wrong = []
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room in ("__init__", "migrations"):
            continue
        for other in imports(path):
            if other != room and LOW[other] >= LOW[room]:
                wrong.append(f"{path.relative_to(PACKAGE)} imports {other}")
    assert wrong == []


def test_models_and_session_stores_do_not_know_each_other():
    for path in (PACKAGE / "sessionstore").glob("*.py"):
        assert "models" not in set(imports(path))
    assert "sessionstore" not in set(imports(PACKAGE / "models.py"))


@pytest.fixture
def readme():
    return (ROOT / "README.md").read_text()


def test_the_readme_lists_every_setting_and_default(readme):
    rows = dict(re.findall(r"^\| `PWEXPIRE_(\w+)` \| [^|]* \| `([^`]*)` \|", readme, re.M))
    assert rows.keys() == SETTINGS.keys()
    import datetime

    for name, default in rows.items():
        value = eval(default, {"timedelta": datetime.timedelta})
        assert value == SETTINGS[name].default, name


def test_the_readme_lists_every_signal(readme):
    names = {name for name in vars(signals) if isinstance(vars(signals)[name], signals.Signal)}
    table = readme.split("## Signals")[1].split("## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.M)) == names - {"Signal"}


def test_the_readme_lists_every_check(readme):
    files = Path(checks.__file__).parent.glob("*.py")
    source = "".join(file.read_text() for file in files)
    ids = re.findall(r'id="(pwexpire\.\w+)"', source)
    assert len(ids) == len(set(ids))
    table = readme.split("## System checks")[1].split("## ")[0]
    assert set(re.findall(r"`(pwexpire\.\w+)`", table)) == set(ids)


def test_the_readme_names_every_verb(readme):
    command = load_command_class(get_commands()["pwexpire"], "pwexpire")
    parser = command.create_parser("manage.py", "pwexpire")
    action = next(found for found in parser._actions if found.dest == "verb")
    for verb in action.choices:
        assert f"`{verb}`" in readme


def test_the_readme_names_modules_that_exist(readme):
    rooms = readme.split("## The rooms of the code")[1].split("## ")[0]
    named = re.findall(r"`([a-z_/]+(?:\.py|/))`", rooms)
    assert len(named) > 10 and [name for name in named if not (PACKAGE / name).exists()] == []


def test_every_service_has_an_async_twin():
    verbs = [name for name in services.__all__ if name[0].islower()]
    for name in verbs:
        assert name.startswith("a") or f"a{name}" in verbs


def test_nothing_is_missing_from_the_migrations(transactional_db):
    run = subprocess.run(
        [sys.executable, "-m", "django", "makemigrations", "--check", "--dry-run"],
        cwd=ROOT,
        env={"DJANGO_SETTINGS_MODULE": "tests.settings", "PATH": "", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr

"""Make a database, let the actors loose on it, write down what is left, drop it."""

from __future__ import annotations

import json
import multiprocessing
import time
import traceback
from importlib import import_module
from pathlib import Path

from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.sessions.models import Session
from django.core.management import call_command
from django.db import connection, connections

from pwexpire.models import ExpiryBatch
from tests.races.actors import ACTORS, USERS, Actor, name_of, password_of

LEFT_OVER_SECONDS = 60


def administer(statement: str) -> None:
    name = connection.ops.quote_name(settings.DATABASES["default"]["NAME"])
    with connection._nodb_cursor() as cursor:
        cursor.execute(statement.format(name))


def create() -> list[int]:
    administer("CREATE DATABASE {}")
    call_command("migrate", verbosity=0)
    users = get_user_model().objects
    return [
        users.create_user(name_of(number), password=password_of(number, 0)).pk
        for number in range(USERS)
    ]


def drop() -> None:
    connections.close_all()
    administer("DROP DATABASE IF EXISTS {}")


def act(number: int, place: Path, *given: object, until: float) -> None:
    try:
        Actor(number, place / f"actor-{number}.jsonl", *given).play(until)
    except BaseException:
        (place / f"crash-{number}.txt").write_text(traceback.format_exc())
        raise


def play(place: Path, seconds: float, users: list[int], seed: int) -> None:
    connections.close_all()
    context = multiprocessing.get_context("fork")
    generations = context.Array("i", USERS, lock=False)
    until = time.monotonic() + seconds
    actors = [
        context.Process(
            target=act, args=(number, place, users, generations, seed), kwargs={"until": until}
        )
        for number in range(ACTORS)
    ]
    for actor in actors:
        actor.start()
    for number, actor in enumerate(actors):
        actor.join(max(0, until + LEFT_OVER_SECONDS - time.monotonic()))
        if actor.exitcode is None:
            actor.kill()
            (place / f"crash-{number}.txt").write_text("It did not come to an end.")


def look_back(place: Path) -> None:
    store = import_module(settings.SESSION_ENGINE).SessionStore
    sessions = {
        row.session_key: {
            "expires": row.expire_date.timestamp(),
            "row": row.get_decoded(),
            "loaded": store(row.session_key).load(),
        }
        for row in Session.objects.all()
    }
    states = list(ExpiryBatch.objects.values_list("state", flat=True))
    (place / "left.json").write_text(json.dumps({"sessions": sessions, "states": states}))


def run(place: Path, seconds: float, seed: int) -> None:
    if seconds == 0:
        return drop()
    try:
        play(place, seconds, create(), seed)
        look_back(place)
    finally:
        drop()

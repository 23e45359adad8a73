"""Which users a command line means."""

from __future__ import annotations

import re
import shlex
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.core.exceptions import FieldDoesNotExist
from django.core.management.base import CommandError
from django.db.models import F, Q, QuerySet
from django.db.models.functions import Lower
from django.utils import timezone
from django.utils.dateparse import parse_datetime

from pwexpire.conf import conf
from pwexpire.feed import feed
from pwexpire.management.console import has_stdin
from pwexpire.services.selection import Selection, shorten
from pwexpire.services.status import read_state

UNITS = {"d": "days", "h": "hours", "m": "minutes"}
SELECTORS = ("user", "users_from", "group", "staff", "changed_before")
# Names of one statement; each is a parameter of it.
CHUNK = 500
# As many names as a person reads; a list of leaked accounts may have a million unknown ones.
NAMES_MAX = 10
NAME_MAX = 60
ALLOW_EMPTY = "accept that no user is selected"
COMBINED = "Users are selected if they match every kind of selector that is given."


def add_selectors(parser: ArgumentParser) -> None:
    words = f"{COMBINED} Names, groups and exclusions can be repeated; any of them matches."
    add = parser.add_argument_group("selectors", words).add_argument
    add("--user", action="append", default=[], metavar="NAME", help="a name or e-mail; repeatable")
    add("--users-from", metavar="FILE", help="one name or e-mail a line; - reads standard input")
    add("--ignore-unknown", action="store_true", help="skip the unknown names of --users-from")
    add("--group", action="append", default=[], metavar="NAME", help="members; repeatable")
    add("--staff", action="store_true", help="users who may log in to the admin")
    add("--changed-before", metavar="90d|DATE", help="the last change is older than this")
    add("--everyone", action="store_true", help="every user there is now")
    add(
        "--exclude",
        action="append",
        default=[],
        metavar="NAME",
        help="users to leave out; repeatable",
    )


def names_somebody(options: dict[str, Any]) -> bool:
    return any(options[name] for name in (*SELECTORS, "everyone", "exclude"))


def refuse_empty_values(options: dict[str, Any]) -> None:
    """Refuse ``""``, which a variable of a shell gives that is not set: it would select more users.

    Raises ``CommandError``.
    """
    for name in ("user", "users_from", "group", "changed_before", "exclude"):
        given = options.get(name)
        if given == "" or (isinstance(given, list) and "" in given):
            option = f"--{name.replace('_', '-')}"
            raise CommandError(f"{option} has an empty value, nothing was done.")


def refuse_undecodable_values(options: dict[str, Any]) -> None:
    """Refuse bytes of a command line that are no UTF-8: no database takes such a text.

    Raises ``CommandError``. The name of a file may be of such bytes.
    """
    for name, given in options.items():
        for text in given if isinstance(given, list) else [given]:
            if name not in ("users_from", "output") and isinstance(text, str):
                if text != text.encode(errors="replace").decode():
                    raise CommandError(f"{text!a} is not UTF-8, nothing was done.")


def select(options: dict[str, Any], notice: Callable[[str], None]) -> QuerySet[Any]:
    """Return the users who match all given kinds of selectors. Raises ``CommandError``.

    ``notice`` gets a sentence for the operator where kinds are combined or names are skipped.
    """
    _check_kinds(options, notice)
    users = get_user_model()._base_manager.using(feed.using).all()
    named = _find_named(options, notice)
    if named is not None:
        users = users.filter(pk__in=named)
    if options["group"]:
        users = users.filter(groups__in=_find_groups(options["group"])).distinct()
    if options["staff"]:
        users = users.filter(**{_require_field("is_staff"): True})
    if options["changed_before"]:
        users = users.filter(_match_age(parse_moment(options["changed_before"])))
    # A slice is read once by the services; a long list would be sent along with each chunk.
    return users if named is None else users[: len(named)]


def selectors_as_typed(options: dict[str, Any]) -> str:
    """The selectors, for the record; the names of users are left out, to outlive no user."""
    words = []
    for name in (*SELECTORS, "everyone", "exclude"):
        value, option = options[name], f"--{name.replace('_', '-')}"
        if value is True:
            words.append(option)
        else:
            for one in value if isinstance(value, list) else filter(None, [value]):
                words += [option, "…" if name in ("user", "exclude") else shlex.quote(one)]
    return " ".join(words)


def select_or_all(options: dict[str, Any], notice: Callable[[str], None]) -> QuerySet[Any]:
    """As ``select``; everybody if nobody is named."""
    named = any(options[name] for name in SELECTORS)
    return select(options if named else {**options, "everyone": True}, notice)


def choose_users(options: dict[str, Any], notice: Callable[[str], None]) -> Selection:
    return Selection(select_or_all(options, notice), exclude=excluded(options))


def _check_kinds(options: dict[str, Any], notice: Callable[[str], None]) -> None:
    given = [f"--{name.replace('_', '-')}" for name in SELECTORS if options.get(name)]
    if options["everyone"] and given:
        raise CommandError("--everyone goes with no other selector but --exclude.")
    if not options["everyone"] and not given:
        raise CommandError(
            "Select users: --user, --users-from, --group, --staff, --changed-before or --everyone."
        )
    if len(given) > 1:
        notice(f"Users are selected if they match all of {', '.join(given)}.")


def excluded(options: dict[str, Any]) -> QuerySet[Any] | None:
    if not options["exclude"]:
        return None
    out = find_users(options["exclude"])
    return get_user_model()._base_manager.using(feed.using).filter(pk__in=out)[: len(out)]


def _find_named(options: dict[str, Any], notice: Callable[[str], None]) -> set[Any] | None:
    """Primary keys that ``--user`` and ``--users-from`` agree on; ``None`` if neither is given."""
    found = [set(find_users(options["user"]))] if options["user"] else []
    if options["users_from"]:
        names = read_names(options["users_from"])
        if options["ignore_unknown"]:
            known, unknown = _match_names(names)
            if unknown:
                notice(f"Skipped {len(unknown):,} unknown names: {list_some(unknown)}.")
        else:
            known = find_users(names)
        found.append(set(known))
    return set.intersection(*found) if found else None


def find_users(names: list[str]) -> list[Any]:
    """Return the primary keys of ``names``. Raises ``CommandError`` if any of them is unknown."""
    found, unknown = _match_names(names)
    if unknown:
        raise CommandError(f"Unknown users, nothing was done: {list_some(unknown)}.")
    return found


def list_some(names: list[str]) -> str:
    """Return at most ten of ``names`` in words, and how many there are if there are more."""
    words = ", ".join(shorten(name, NAME_MAX) for name in names[:NAMES_MAX])
    more = len(names) - NAMES_MAX
    return f"{words} and {more:,} more ({len(names):,} in all)" if more > 0 else words


def _match_names(names: list[str]) -> tuple[list[Any], list[str]]:
    """Return the primary keys of the known names, and the names that are unknown or ambiguous."""
    model = get_user_model()
    email = model.get_email_field_name()
    known = _find_keys(F(model.USERNAME_FIELD), names)
    mails = _find_emails(email, [name for name in names if name not in known])
    found, unknown = [], []
    for name in names:
        mine = known.get(name) or _match_exactly(model.USERNAME_FIELD, name)
        mine = mine or mails.get(name.lower()) or _match_email(email, name)
        if len(mine) == 1:
            found.append(mine[0])
        else:
            unknown.append(f"{name} (more than one)" if mine else name)
    return found, unknown


def _find_emails(email: str, names: list[str]) -> dict[Any, list[Any]]:
    addresses = [name.lower() for name in names if "@" in name]
    return _find_keys(Lower(email), addresses) if addresses and _has_field(email) else {}


def _match_email(email: str, name: str) -> list[Any]:
    """Return the keys of an address with letters that only the database compares without case."""
    if "@" not in name or name.isascii() or not _has_field(email):
        return []
    return _match_exactly(f"{email}__iexact", name)


def _find_keys(column: Any, values: Iterable[str]) -> dict[Any, list[Any]]:
    """Value -> primary keys. What only the database takes for equal is not found here."""
    users = get_user_model()._base_manager.using(feed.using).annotate(pwexpire_name=column)
    wanted = sorted(set(values))
    found: dict[Any, list[Any]] = {}
    for at in range(0, len(wanted), CHUNK):
        try:
            rows = users.filter(pwexpire_name__in=wanted[at : at + CHUNK])
            for value, pk in rows.values_list("pwexpire_name", "pk"):
                found.setdefault(value, []).append(pk)
        except ValueError:  # a name that the column cannot hold: they are asked for one by one
            continue
    return found


def _match_exactly(lookup: str, name: str) -> list[Any]:
    users = get_user_model()._base_manager.using(feed.using)
    try:
        return list(users.filter(**{lookup: name}).values_list("pk", flat=True))
    except ValueError:
        return []


def find_user(name: str | None) -> Any:
    if name is None:
        return None
    return get_user_model()._base_manager.using(feed.using).get(pk=find_users([name])[0])


def read_names(source: str) -> list[str]:
    try:
        if source != "-":
            text = Path(source).read_text("utf-8-sig")
        else:
            text = sys.stdin.read() if has_stdin() else ""
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise CommandError(f"{source} cannot be read: line {line} is not UTF-8.") from None
    except OSError as error:
        raise CommandError(f"{source} cannot be read: {error}.") from None
    lines = [line.strip() for line in text.removeprefix("\ufeff").splitlines()]
    names = [line for line in lines if line and not line.startswith("#")]
    if not names:
        raise CommandError(f"{source} names nobody.")
    return names


def parse_moment(text: str) -> datetime:
    """``90d``, ``12h``, ``30m`` ago, or a date."""
    try:
        if match := re.fullmatch(r"(\d{1,6})([dhm])", text):
            return timezone.now() - timedelta(**{UNITS[match[2]]: int(match[1])})
        moment = parse_datetime(text)  # takes a date alone as well
        if moment is not None:
            aware = timezone.make_aware(moment) if timezone.is_naive(moment) else moment
            return aware.astimezone(UTC) if settings.USE_TZ else timezone.make_naive(aware)
    except (ValueError, OverflowError):
        pass
    raise CommandError(f"{text} is no age or date: write 90d, 12h or 2026-01-31.")


def _match_age(moment: datetime) -> Q:
    """Users whose change nobody saw count as ``PWEXPIRE_ASSUME_CHANGED`` says."""
    unseen = Q(pwexpire_record__isnull=True) | Q(pwexpire_record__changed_at=None)
    seen = Q(pwexpire_record__changed_at__lt=moment)
    if conf.assume_joined and _has_field("date_joined"):
        return seen | (unseen & Q(date_joined__lt=moment))
    return seen | unseen if read_state().created_at < moment else seen


def _find_groups(names: list[str]) -> list[Any]:
    _require_field("groups")
    groups = {group.name: group for group in Group.objects.using(feed.using).filter(name__in=names)}
    missing = [name for name in names if name not in groups]
    if missing:
        raise CommandError(f"Unknown groups, nothing was done: {list_some(missing)}.")
    return list(groups.values())


def _has_field(name: str) -> bool:
    try:
        get_user_model()._meta.get_field(name)
    except FieldDoesNotExist:
        return False
    return True


def _require_field(name: str) -> str:
    if not _has_field(name):
        raise CommandError(f"The user model has no field {name}: choose by another selector.")
    return name

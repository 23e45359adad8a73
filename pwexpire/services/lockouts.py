"""Lockouts of django-axes: counted, and an expiry at the limit or after a guess that hit."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from ipaddress import IPv6Address, ip_address
from typing import Any

from django.apps import apps
from django.conf import settings
from django.contrib.auth import get_user_model
from django.db import Error as DatabaseFault
from django.db.models import Count, Exists, OuterRef, Sum
from django.http import HttpRequest
from django.utils import timezone
from django.utils.translation import gettext, ngettext, override

from pwexpire.conf import conf
from pwexpire.feed import feed
from pwexpire.models import Demand, ExpiryBatch, PasswordRecord, Reason
from pwexpire.retries import in_transaction, savepoint
from pwexpire.services.batches import expire_passwords
from pwexpire.services.password_changes import NO_LOCKOUTS
from pwexpire.services.password_state import has_password
from pwexpire.services.status import read_password_state

logger = logging.getLogger("pwexpire")

# How a batch says whose it was, after their demand is satisfied and gone.
SELECTED = "user "
PAGE = 1_000


def can_be_expired(user: Any) -> bool:
    """Whether an expiry would hold ``user``, and not be written again at each occasion."""
    applies = conf.applies_to
    return has_password(user) and (applies is None or applies(user))


def expire_after_lockout(
    user: Any, *, window: timedelta, address: str | None = None
) -> ExpiryBatch | None:
    """Count a lockout; at the ``PWEXPIRE_LOCKOUT_THRESHOLD``-th, expire ``user``.

    ``window``: what is closer together is one and the same lockout. ``address``: of the person
    who was guessing. The count begins anew when ``PWEXPIRE_LOCKOUT_WINDOW`` is over. With
    ``PWEXPIRE_EXPIRE_ON_LOCKOUT = "success"`` it is kept for ``after_login``, and that is all.
    Writes nothing for a user who is held already, or who changed the password within
    ``PWEXPIRE_LOCKOUT_COOLDOWN``. Returns the batch, or ``None`` if nobody was expired.
    """
    if not can_be_expired(user) or read_password_state(user).demand:
        return None
    now = timezone.now()
    records = PasswordRecord.objects.using(feed.using)
    record = records.filter(pk=user.pk).first()
    if record and record.renewed_at and now - record.renewed_at < conf.lockout_cooldown:
        return None
    if record is None:
        record, _ = records.get_or_create(user_id=user.pk)
    if record.lockout_at is not None and now - record.lockout_at < window:
        return None
    work = partial(_count_and_expire, user, record, now, clean_address(address))
    return in_transaction(work, using=feed.using)


def _count_and_expire(
    user: Any, record: PasswordRecord, now: datetime, address: str | None
) -> ExpiryBatch | None:
    noted = _one_more(record, now, address)
    if not _write(noted, over=record) or conf.expire_on_success:
        return None
    return _expire(user, _told(noted)) if noted.lockouts >= conf.lockout_threshold else None


def _one_more(record: PasswordRecord, now: datetime, address: str | None) -> PasswordRecord:
    """The first of a new count where the window is over, or where the last count expired them."""
    since, lockouts = record.lockouts_since, record.lockouts
    if since is None or now - since >= conf.lockout_window:
        since, lockouts = now, 0
    if lockouts >= conf.lockout_threshold and not conf.expire_on_success:
        since, lockouts = now, 0
    return PasswordRecord(
        pk=record.pk,
        lockouts=lockouts + 1,
        lockouts_since=since,
        lockout_at=now,
        lockout_address=address,
    )


def _write(noted: PasswordRecord, *, over: PasswordRecord) -> bool:
    """False if another server was first, with the same lockout or the same login."""
    records = PasswordRecord.objects.using(feed.using)
    seen = records.filter(pk=over.pk, lockouts=over.lockouts, lockout_at=over.lockout_at)
    return bool(seen.update(**{name: getattr(noted, name) for name in NO_LOCKOUTS}))


def after_login(request: HttpRequest | None, user: Any) -> ExpiryBatch | None:
    """Expire ``user`` if the login may be a guess that hit, where the site wants that.

    That is one from another address than the lockouts within ``PWEXPIRE_LOCKOUT_WINDOW`` before it
    came from; where an address is not known, it counts as another. To be called before the session
    is judged. Returns the batch, or ``None`` if nobody was expired; a fault is logged.
    """
    if not conf.expire_on_success:
        return None
    try:
        with savepoint(using=feed.using):
            return _expire_after_success(request, user)
    except DatabaseFault as error:
        logger.error("A login after a lockout could not be followed up: %s", error)
        return None


def _expire_after_success(request: HttpRequest | None, user: Any) -> ExpiryBatch | None:
    records = PasswordRecord.objects.using(feed.using).filter(pk=user.pk)
    record = records.filter(
        lockouts__gte=conf.lockout_threshold,
        lockout_at__gt=timezone.now() - conf.lockout_window,
    ).first()
    if record is None:
        return None
    attacker = record.lockout_address
    if attacker is not None and clean_address(attacker) == client_address(request):
        return None
    if not can_be_expired(user) or read_password_state(user).demand:
        return None
    work = partial(_expire_once, user, record)
    return in_transaction(work, using=feed.using)


def _expire_once(user: Any, record: PasswordRecord) -> ExpiryBatch | None:
    shown = PasswordRecord(pk=record.pk, lockout_at=record.lockout_at)
    return _expire(user, _told(record, guessed=True)) if _write(shown, over=record) else None


def _expire(user: Any, note: str) -> ExpiryBatch:
    return expire_passwords(user, reason=Reason.LOCKOUT, note=note)


def _told(record: PasswordRecord, *, guessed: bool = False) -> str:
    """In the language of the site, not in that of the person who was guessing."""
    assert record.lockouts_since is not None
    with override(settings.LANGUAGE_CODE):
        said = ngettext(
            "%(count)d lockout since %(since)s.",
            "%(count)d lockouts since %(since)s.",
            record.lockouts,
        ) % {"count": record.lockouts, "since": record.lockouts_since.isoformat(" ", "minutes")}
        if record.lockout_address:
            where = gettext("The last one came from %(address)s.")
            said += " " + where % {"address": record.lockout_address}
        if guessed:
            said += " " + gettext("Then a login from another address succeeded.")
    return said


def client_address(request: HttpRequest | None) -> str | None:
    """As django-axes sees it where that is installed, else ``REMOTE_ADDR``."""
    if request is None:
        return None
    if apps.is_installed("axes"):
        from axes.helpers import get_client_ip_address

        return clean_address(get_client_ip_address(request))
    return clean_address(request.META.get("REMOTE_ADDR"))


def clean_address(value: object) -> str | None:
    """One spelling for each address; ``None`` for what is none."""
    try:
        found = ip_address(str(value).partition("%")[0].strip())
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
    return str(mapped or found)


@dataclass(frozen=True, kw_only=True)
class LockoutExpiry:
    """``user``: the primary key. ``note``: what happened. ``still_open``: they are held by it."""

    batch: int
    user: Any
    when: datetime
    note: str
    still_open: bool


@dataclass(frozen=True, kw_only=True)
class LockoutReport:
    """``expiries`` is read as it is iterated, the newest first, once.

    ``users_noted``: who was locked out since the last change, ``lockouts_noted``: how often, all of
    them together.
    """

    expiries: Iterator[LockoutExpiry]
    users_noted: int
    lockouts_noted: int


def lockout_report(since: datetime | None = None) -> LockoutReport:
    """What lockouts did. ``since``: an aware datetime; ``None`` for all that is known."""
    noted = PasswordRecord.objects.using(feed.using).filter(lockouts__gt=0)
    if since is not None:
        noted = noted.filter(lockout_at__gte=since)
    found = noted.aggregate(users=Count("pk"), lockouts=Sum("lockouts"))
    return LockoutReport(
        expiries=_lockout_expiries(since),
        users_noted=found["users"],
        lockouts_noted=found["lockouts"] or 0,
    )


def _lockout_expiries(since: datetime | None) -> Iterator[LockoutExpiry]:
    batches = ExpiryBatch.objects.using(feed.using).filter(
        reason=Reason.LOCKOUT, selection__startswith=SELECTED, number__isnull=False
    )
    if since is not None:
        batches = batches.filter(created_at__gte=since)
    waits = Exists(Demand.objects.filter(batch=OuterRef("pk")))
    rows = batches.annotate(waits=waits).order_by("-number")
    key = get_user_model()._meta.pk
    below = None
    while page := list((rows if below is None else rows.filter(number__lt=below))[:PAGE]):
        below = page[-1].number
        for batch in page:
            yield LockoutExpiry(
                batch=batch.pk,
                user=key.to_python(batch.selection.removeprefix(SELECTED)),
                when=batch.created_at,
                note=batch.note,
                still_open=batch.waits and batch.cancelled_at is None,
            )

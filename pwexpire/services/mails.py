"""One e-mail to one user: written in their language, and handed to the mail server."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta
from smtplib import SMTPDataError, SMTPRecipientsRefused, SMTPSenderRefused
from typing import Any

from django.conf import settings
from django.core.mail import EmailMultiAlternatives
from django.shortcuts import resolve_url
from django.template.loader import render_to_string
from django.urls import NoReverseMatch
from django.utils import translation
from django.utils.translation import gettext as _

from pwexpire.compat import mail_connection
from pwexpire.conf import conf
from pwexpire.models import Reason

logger = logging.getLogger("pwexpire")

# Faults of one mail only, though smtplib derives them from OSError.
OF_ONE_MAIL = (SMTPRecipientsRefused, SMTPSenderRefused, SMTPDataError)
LANGUAGE_FIELDS = ("language", "preferred_language")


@dataclass(frozen=True)
class Due:
    """One mail: to whom, what is remembered of it, and what is in it."""

    user: Any
    key: str
    template: str
    context: dict[str, Any]
    expires_at: datetime | None = None
    step: timedelta | None = None


def reason_label(reason: str | None) -> str:
    """Return a reason in words, for users."""
    if reason is None:
        return ""
    own = conf.reasons.get(reason)
    if own is not None:
        return str(own)
    return str(Reason(reason).label) if reason in Reason.values else _("it was asked for")


class Mailer:
    """One connection for a page of users, opened with the first mail."""

    def __enter__(self) -> Mailer:
        self.connection: Any = None
        self.failures = 0  # of the server, in a row
        return self

    def __exit__(self, *raised: object) -> None:
        connection, self.connection = self.connection, None
        if connection is None:
            return
        try:
            connection.close()
        except Exception as error:  # what was sent is sent
            logger.warning("The mail server did not say goodbye: %s", type(error).__name__)

    def send(self, due: Due, address: str) -> bool:
        try:
            if self.connection is None:
                connection = mail_connection()
                connection.open()
                self.connection = connection
            self.connection.send_messages([_compose_mail(due, address)])
        except Exception as error:  # whatever a mail backend raises; its text may have names
            logger.error("A notice to user %s was not sent: %s", due.user.pk, type(error).__name__)
            if isinstance(error, OSError) and not isinstance(error, OF_ONE_MAIL):
                self.failures += 1
            self.__exit__()  # the next one begins with a connection of its own
            return False
        self.failures = 0
        return True


def _compose_mail(due: Due, address: str) -> EmailMultiAlternatives:
    with translation.override(_find_language(due.user)):
        context = {**due.context, "user": due.user, "change_url": _find_change_url()}
        if "reason" in context:
            context["reason"] = reason_label(context["reason"])
        where = f"pwexpire/mail/{due.template}"
        subject = " ".join(render_to_string(f"{where}_subject.txt", context).split())
        text = render_to_string(f"{where}_body.txt", context)
        mail = EmailMultiAlternatives(subject, text, to=[address])
        mail.attach_alternative(render_to_string(f"{where}_body.html", context), "text/html")
        return mail


def _find_language(user: Any) -> str:
    known = dict(settings.LANGUAGES)
    for name in LANGUAGE_FIELDS:
        found = getattr(user, name, None)
        if isinstance(found, str) and found in known:
            return found
    return str(settings.LANGUAGE_CODE)


def _find_change_url() -> str:
    """Return an absolute URL, or ``""`` where ``PWEXPIRE_SITE_URL`` is not set."""
    if not conf.site_url:
        return ""
    try:
        return f"{conf.site_url}{resolve_url(conf.change_url)}"
    except NoReverseMatch:
        return ""

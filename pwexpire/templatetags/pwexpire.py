from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

from django import template
from django.utils import timezone

from pwexpire.conf import conf
from pwexpire.context_processors import status_of
from pwexpire.exceptions import ChangeURLNotFound
from pwexpire.models import Reason
from pwexpire.pages import find_url
from pwexpire.services.mails import reason_label

register = template.Library()
DAY = timedelta(days=1)


@register.inclusion_tag("pwexpire/banner.html", takes_context=True)
def password_expiry_banner(context: Any) -> dict[str, Any]:
    """What users should know of their password, with a link to change it; else nothing at all."""
    request = context.get("request")
    status = status_of(request) if request is not None else None
    if status is None or not (status.warn or status.must_change):
        return {"status": None}
    left = status.expires_at - timezone.now() if status.expires_at is not None else None
    asked = not status.must_change and status.reason not in (None, Reason.AGE)
    try:
        change_url = find_url(conf.change_url, getattr(request, "urlconf", None))
    except ChangeURLNotFound:
        change_url = ""
    return {
        "status": status,
        "days_left": max(0, math.ceil(left / DAY)) if left is not None else None,
        "reason": reason_label(status.reason) if asked else "",
        "change_url": change_url,
    }

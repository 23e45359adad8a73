"""What a held session is answered at the views that it may not reach."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from urllib.parse import urlencode, urlsplit

from django.conf import settings
from django.contrib import messages
from django.contrib.auth import REDIRECT_FIELD_NAME
from django.contrib.messages.storage.session import SessionStorage
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse
from django.shortcuts import resolve_url
from django.template.loader import render_to_string
from django.urls import ResolverMatch, reverse
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.html import format_html
from django.utils.translation import gettext as _

from pwexpire.conf import conf
from pwexpire.constants import DENIED_CODE, ENDED_CODE, PROBLEM_CODE, RESET_CODE
from pwexpire.exceptions import ChangeURLNotFound
from pwexpire.exemptions import is_no_destination
from pwexpire.models import Require
from pwexpire.pages import find_reset_url, url_language

# A longer address is not returned to: clients and servers cut redirects off.
NEXT_MAX = 1_500


class SeeOther(HttpResponseRedirect):
    status_code = 303


def admin_change_url(request: HttpRequest, match: ResolverMatch | None) -> str | None:
    """The change page of the admin site that was asked for, if the user may see that site."""
    if match is None or "admin" not in match.app_names:
        return None
    site = getattr(match.func, "admin_site", None) or getattr(
        getattr(match.func, "model_admin", None), "admin_site", None
    )
    if site is None:
        return None
    urlconf = getattr(request, "urlconf", None)
    # The site may have no such page, and its own code may read what a middleware behind ours
    # puts on the user: whatever fails here, the site's change page is a way out, a 500 is none.
    try:
        if site.has_permission(request):
            return reverse("admin:password_change", urlconf=urlconf, current_app=site.name)
    except Exception:
        return None
    return None


def wants_problem(request: HttpRequest) -> bool:
    """Asked by a script rather than by a navigation."""
    headers = request.headers
    if headers.get("X-Requested-With", "") == "XMLHttpRequest":
        return True
    if headers.get("Sec-Fetch-Mode", "navigate") != "navigate":
        return True
    if "json" in (request.content_type or ""):
        return True
    accepted = [media.sub_type for media in request.accepted_types]
    if "html" in accepted:
        return False
    return any(sub_type == "json" or sub_type.endswith("+json") for sub_type in accepted)


def held_response(request: HttpRequest, change_url: str) -> HttpResponse:
    """The answer to a request of a held session, as the client can understand it."""
    if urlsplit(change_url).path == request.path:
        raise ChangeURLNotFound(
            "The password-change page is itself held: name its view in PWEXPIRE_CHANGE_URL."
        )
    response: HttpResponse
    if request.headers.get("HX-Request") == "true":
        response = HttpResponse(headers={"HX-Redirect": change_url})
    elif wants_problem(request):
        response = JsonResponse(
            {
                "type": "urn:pwexpire:password-expired",
                "title": _("Password change required"),
                "status": 403,
                "detail": _("Your password has expired. Change it to go on."),
                "code": PROBLEM_CODE,
                "change_url": change_url,
            },
            status=403,
            content_type="application/problem+json",
        )
    elif request.method in ("GET", "HEAD"):
        path = request.get_full_path()
        if len(path) <= NEXT_MAX and not is_no_destination(request, path):
            change_url = _with_query(change_url, REDIRECT_FIELD_NAME, path)
        response = HttpResponseRedirect(change_url)
    else:
        response = SeeOther(_with_query(change_url, "unprocessed", "1"))
        _say_unprocessed(request)
    return no_store(response)


def locked_response(request: HttpRequest, require: str) -> HttpResponse:
    """The answer to a session that was ended because the password was withdrawn."""
    urlconf = getattr(request, "urlconf", None)
    with url_language(request):
        reset = find_reset_url(urlconf) if require == Require.RESET else None
    response: HttpResponse
    if request.headers.get("HX-Request") == "true" and reset is not None:
        response = HttpResponse(headers={"HX-Redirect": reset})
    elif wants_problem(request):
        problem = {
            "type": "urn:pwexpire:password-withdrawn",
            "title": _("Password withdrawn"),
            "status": 403,
            "detail": withdrawn_text(require),
            "code": RESET_CODE if require == Require.RESET else DENIED_CODE,
        }
        if reset is not None:
            problem["reset_url"] = reset
        response = JsonResponse(problem, status=403, content_type="application/problem+json")
    elif reset is not None:
        safe = request.method in ("GET", "HEAD")
        response = HttpResponseRedirect(reset) if safe else SeeOther(reset)
    else:
        page = {"detail": withdrawn_text(require)}
        response = HttpResponse(
            render_to_string("pwexpire/withdrawn.html", page, request), status=403
        )
    return no_store(response)


def ended_response(request: HttpRequest) -> HttpResponse:
    """The answer to the wrong old password that ended the session."""
    if not wants_problem(request):
        return no_store(SeeOther(resolve_url(settings.LOGIN_URL)))
    problem = {
        "type": "urn:pwexpire:session-ended",
        "title": _("Log in again"),
        "status": 403,
        "detail": _("The old password was wrong too often. Log in again."),
        "code": ENDED_CODE,
    }
    return no_store(JsonResponse(problem, status=403, content_type="application/problem+json"))


def withdrawn_text(require: str) -> str:
    if require == Require.RESET:
        return _("Your password can no longer be used. Set a new one with a reset link.")
    return _("Your password can no longer be used. Ask an administrator for a new one.")


def way_out(require: str, urlconf: Any = None) -> str:
    """For the login page of somebody who knew the password; HTML."""
    reset = find_reset_url(urlconf) if require == Require.RESET else None
    if reset is None:
        return withdrawn_text(require)
    link = format_html('<a href="{}">{}</a>', reset, _("Set a new one with a reset link."))
    return format_html("{} {}", _("Your password can no longer be used."), link)


def unavailable(sentence: str) -> HttpResponse:
    return no_store(HttpResponse(sentence, status=503, content_type="text/plain; charset=utf-8"))


def no_store(response: HttpResponse) -> HttpResponse:
    response.headers["Cache-Control"] = "no-store"
    return response


def _with_query(url: str, name: str, value: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}{urlencode({name: value}, safe='/')}"


def _say_unprocessed(request: HttpRequest) -> None:
    """As a message for other people's change pages; never one that is written into the session."""
    storage = getattr(request, "_messages", None)
    own = conf.change_url == "pwexpire:password_change"
    if storage is None or own or isinstance(storage, SessionStorage):
        return
    messages.warning(request, unprocessed_text())


def impersonated_response() -> HttpResponse:
    """The answer to somebody who acts as another user, on the change page of that user."""
    said = _("You act as another user. Stop acting as them before you change a password.")
    return no_store(HttpResponse(said, status=403, content_type="text/plain; charset=utf-8"))


def held_text(reason: str, since: datetime | None) -> str:
    """For a change page that does not say it itself."""
    said = [_("Your password has to be changed before you can go on.")]
    if reason:
        said = [
            _("Your password has to be changed before you can go on: %(reason)s.")
            % {"reason": reason}
        ]
    if since is not None:
        local = timezone.localtime(since) if timezone.is_aware(since) else since
        zone = local.tzname() or timezone.get_default_timezone_name()
        when = f"{date_format(local, 'DATETIME_FORMAT')} {zone}"
        said.append(_("This is so since %(when)s.") % {"when": when})
    said.append(_("Enter your old password and a new one."))
    return " ".join(said)


def unprocessed_text() -> str:
    return _("What you sent was not processed, because your password has to be changed first.")

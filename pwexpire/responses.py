"""Which views a held session may reach, and what it is answered at all others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode, urlsplit

from django.contrib import messages
from django.contrib.auth import REDIRECT_FIELD_NAME, views
from django.contrib.messages.storage.session import SessionStorage
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse
from django.template.loader import render_to_string
from django.urls import NoReverseMatch, Resolver404, ResolverMatch, resolve, reverse
from django.utils.html import format_html
from django.utils.translation import gettext as _
from django.views.i18n import JavaScriptCatalog, set_language

from pwexpire.conf import conf
from pwexpire.constants import DENIED_CODE, EXEMPT_ATTRIBUTE, PROBLEM_CODE, RESET_CODE
from pwexpire.exceptions import ChangeURLNotFound
from pwexpire.models import Require

EXEMPT_CLASSES = (
    views.LogoutView,
    views.PasswordChangeView,
    views.PasswordChangeDoneView,
    views.PasswordResetView,
    views.PasswordResetDoneView,
    views.PasswordResetConfirmView,
    views.PasswordResetCompleteView,
    JavaScriptCatalog,
)
# A longer address is not returned to: clients and servers cut redirects off.
NEXT_MAX = 1_500
EXEMPT_ADMIN = frozenset({"logout", "password_change", "password_change_done", "i18n_javascript"})


class SeeOther(HttpResponseRedirect):
    status_code = 303


def find_match(request: HttpRequest) -> ResolverMatch | None:
    try:
        return resolve(request.path_info, getattr(request, "urlconf", None))
    except Resolver404:
        return None


def find_url(name: str, urlconf: Any = None) -> str:
    """The path of a URL name or of an absolute path. Raises ``ChangeURLNotFound``."""
    try:
        if name.startswith("/") and not name.startswith("//"):
            resolve(urlsplit(name).path, urlconf)
            return name
        return reverse(name, urlconf=urlconf)
    except (NoReverseMatch, Resolver404):
        raise ChangeURLNotFound(
            f"PWEXPIRE_CHANGE_URL = {name!r} leads to no page: include pwexpire.urls in the "
            "URLconf, or set it to the name of the site's password-change view."
        ) from None


def is_exempt(view: Callable[..., Any], match: ResolverMatch | None) -> bool:
    """By the view itself or its exact ``namespace:name``; never by a part of the path."""
    view_class = getattr(view, "view_class", None) or getattr(view, "cls", None)
    if getattr(view, EXEMPT_ATTRIBUTE, False) or getattr(view_class, EXEMPT_ATTRIBUTE, False):
        return True
    if isinstance(view_class, type) and issubclass(view_class, EXEMPT_CLASSES):
        return True
    if view is set_language or _is_admin_exempt(view):
        return True
    if match is None:
        return False
    return match.view_name == conf.change_url or match.view_name in conf.exempt_views


def _is_admin_exempt(view: Callable[..., Any]) -> bool:
    site = getattr(view, "admin_site", None)
    method = getattr(view, "__wrapped__", None)
    if site is None or getattr(method, "__self__", None) is not site:
        return False
    return getattr(method, "__name__", "") in EXEMPT_ADMIN


def admin_change_url(request: HttpRequest, match: ResolverMatch | None) -> str | None:
    """The change page of the admin site that was asked for, if the user may see that site."""
    if match is None or "admin" not in match.app_names:
        return None
    site = getattr(match.func, "admin_site", None) or getattr(
        getattr(match.func, "model_admin", None), "admin_site", None
    )
    if site is None or not site.has_permission(request):
        return None
    urlconf = getattr(request, "urlconf", None)
    return reverse("admin:password_change", urlconf=urlconf, current_app=site.name)


def wants_problem(request: HttpRequest) -> bool:
    """Asked by a script rather than by a navigation."""
    headers = request.headers
    if headers.get("X-Requested-With", "") == "XMLHttpRequest":
        return True
    if headers.get("Sec-Fetch-Mode", "navigate") != "navigate":
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
        if len(path) <= NEXT_MAX:
            change_url = _with_query(change_url, REDIRECT_FIELD_NAME, path)
        response = HttpResponseRedirect(change_url)
    else:
        response = SeeOther(_with_query(change_url, "unprocessed", "1"))
        _say_unprocessed(request)
    return no_store(response)


def locked_response(request: HttpRequest, require: str) -> HttpResponse:
    """The answer to a session that was ended because its password is worth nothing any more."""
    urlconf = getattr(request, "urlconf", None)
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


def find_reset_url(urlconf: Any = None) -> str | None:
    """The path behind ``PWEXPIRE_RESET_URL``, or ``None`` if it leads to no page."""
    name = conf.reset_url
    try:
        return name if name.startswith("/") else reverse(name, urlconf=urlconf)
    except NoReverseMatch:
        return None


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


def unprocessed_text() -> str:
    return _("What you sent was not processed, because your password has to be changed first.")

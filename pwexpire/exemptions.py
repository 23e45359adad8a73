"""Which views a held session may reach: by the view or its exact name, never by a path part."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any
from urllib.parse import urljoin, urlsplit

from django.conf import settings
from django.contrib.auth import views
from django.http import HttpRequest, HttpResponseBase
from django.urls import NoReverseMatch, Resolver404, ResolverMatch, resolve
from django.views.i18n import JavaScriptCatalog, set_language

from pwexpire.conf import conf
from pwexpire.constants import EXEMPT_ATTRIBUTE
from pwexpire.pages import (
    PACKAGE_LOGOUT,
    PACKAGE_RESET,
    find_page,
    get_path,
    get_view_class,
    load_classes,
    strip_prefix,
    url_language,
)

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
NO_DESTINATION = (views.LoginView, views.LogoutView, views.PasswordChangeView)
NO_CHANGE = (views.LoginView, views.LogoutView, views.PasswordChangeDoneView)
NO_CHANGE_ADMIN = frozenset({"login", "logout", "password_change_done"})
NO_DESTINATION_ADMIN = frozenset({"login", "logout", "password_change"})
EXEMPT_ADMIN = frozenset({"logout", "password_change", "password_change_done", "i18n_javascript"})
# Wagtail's log-out and reset views are subclasses of Django's; its account page is left out,
# because it changes the e-mail address as well.
PACKAGE_VIEWS = {
    "allauth.account": tuple(
        f"allauth.account.views.{name}"
        for name in (
            "PasswordChangeView",
            "PasswordResetDoneView",
            "PasswordResetFromKeyView",
            "PasswordResetFromKeyDoneView",
            "ConfirmPasswordResetCodeView",
            "CompletePasswordResetView",
        )
    ),
    "djoser": ("djoser.views.TokenDestroyView",),
    "two_factor": tuple(
        f"two_factor.views.{name}"
        for name in ("LoginView", "SetupView", "QRGeneratorView", "SetupCompleteView")
    ),
    # A single sign-on that is refreshed on the way to the change page comes back through these.
    "mozilla_django_oidc": (
        "mozilla_django_oidc.views.OIDCAuthenticationCallbackView",
        "mozilla_django_oidc.views.OIDCAuthenticationRequestView",
    ),
}
DJOSER_USERS = {"djoser": ("djoser.views.UserViewSet",)}
DJOSER_ACTIONS = frozenset({"set_password", "reset_password", "reset_password_confirm"})


# Views that ask for the present password and that are no subclasses of Django's. Wagtail's account
# page has it in a field with a prefix, which is empty where something else is changed.
PACKAGE_CHANGE = {
    "allauth.account": ("allauth.account.views.PasswordChangeView",),
    "dj_rest_auth": ("dj_rest_auth.views.PasswordChangeView",),
    "wagtail.admin": ("wagtail.admin.views.account.AccountView",),
    **DJOSER_USERS,
}


def is_exempt(view: Callable[..., Any], match: ResolverMatch | None) -> bool:
    """Whether a held session may reach ``view``."""
    view_class = get_view_class(view)
    if getattr(view, EXEMPT_ATTRIBUTE, False) or getattr(view_class, EXEMPT_ATTRIBUTE, False):
        return True
    if view_class is not None and issubclass(view_class, (*EXEMPT_CLASSES, *_package_classes())):
        return True
    if view is set_language or _is_admin_exempt(view) or _is_djoser_exempt(view, view_class):
        return True
    if match is None:
        return False
    named = {conf.change_url, conf.logout_url, conf.reset_url, *conf.exempt_views}
    return match.view_name in named


def _package_classes() -> tuple[type, ...]:
    return (
        *load_classes(PACKAGE_LOGOUT),
        *load_classes(PACKAGE_RESET),
        *load_classes(PACKAGE_VIEWS),
    )


def _is_djoser_exempt(view: Callable[..., Any], view_class: type | None) -> bool:
    """One class has all of djoser's endpoints: what counts is which of them this view routes."""
    users = load_classes(DJOSER_USERS)
    actions = set(getattr(view, "actions", None) or ())
    if view_class is None or not issubclass(view_class, users) or not actions:
        return False
    return {view.actions[method] for method in actions} <= DJOSER_ACTIONS  # type: ignore[attr-defined]


def _is_admin_exempt(view: Callable[..., Any]) -> bool:
    return _admin_page(view) in EXEMPT_ADMIN


def _admin_page(view: Callable[..., Any]) -> str:
    """The name of the method of an admin site that ``view`` is, else ``""``."""
    site = getattr(view, "admin_site", None)
    method = getattr(view, "__wrapped__", None)
    if site is None or getattr(method, "__self__", None) is not site:
        return ""
    return getattr(method, "__name__", "")


def is_change_page_of_django(view: Callable[..., Any]) -> bool:
    """Whether ``view`` is Django's, the admin's or ours: its form is a ``PasswordChangeForm``."""
    view_class = get_view_class(view)
    of_django = view_class is not None and issubclass(view_class, views.PasswordChangeView)
    return of_django or _admin_page(view) == "password_change"


def changes_no_password(view: Callable[..., Any]) -> bool:
    """Whether ``view`` is a login, a log-out or a done page, which nobody is released by."""
    view_class = get_view_class(view)
    classes = (*NO_CHANGE, *load_classes(PACKAGE_LOGOUT))
    named = view_class is not None and issubclass(view_class, classes)
    return named or _admin_page(view) in NO_CHANGE_ADMIN


def asks_for_old_password(request: HttpRequest, view: Callable[..., Any]) -> bool:
    """Whether ``view`` is a page or an endpoint that verifies the present password."""
    view_class = get_view_class(view)
    if view_class is not None and issubclass(view_class, load_classes(PACKAGE_CHANGE)):
        return True
    return is_change_page_of_django(view) or is_site_change_page(request)


def is_foreign_change_page(request: HttpRequest, view: Callable[..., Any]) -> bool:
    """Whether ``view`` changes the password by a form that is none of Django's."""
    actions = set((getattr(view, "actions", None) or {}).values())
    if is_change_page_of_django(view) or not actions <= {"set_password"}:
        return False
    return asks_for_old_password(request, view)


def is_change_page(request: HttpRequest, view: Callable[..., Any]) -> bool:
    """Whether ``view`` is there to change the password, or may do it by the way (Wagtail's)."""
    if is_change_page_of_django(view) or is_site_change_page(request):
        return True
    return is_foreign_change_page(request, view)


def is_site_change_page(request: HttpRequest) -> bool:
    """Whether ``request`` asks for the page that ``PWEXPIRE_CHANGE_URL`` names."""
    match = request.resolver_match
    named = match is not None and match.view_name == conf.change_url
    return named or is_named_page(request, (conf.change_url,))


def is_named_page(request: HttpRequest, names: Collection[str] | None = None) -> bool:
    """Whether ``request`` asks for a page that the settings name by an absolute path."""
    urlconf = getattr(request, "urlconf", None)
    for given in names or (conf.change_url, conf.logout_url, conf.reset_url):
        with url_language(request), suppress(Resolver404):
            if given.startswith("/") and get_path(find_page(given, urlconf)) == request.path:
                return True
    return False


def find_match(request: HttpRequest) -> ResolverMatch | None:
    """What ``request.path`` resolves to, if to anything."""
    try:
        with url_language(request):
            return resolve(request.path_info, getattr(request, "urlconf", None))
    except Resolver404:
        return None


def is_no_destination(request: HttpRequest, url: str) -> bool:
    """Whether ``url`` is a login, log-out or change page, where nobody wants to go on to."""
    path, urlconf = get_path(url), getattr(request, "urlconf", None)
    named = [str(settings.LOGIN_URL), conf.logout_url, conf.change_url]
    with url_language(request):
        for given in filter(None, named):
            with suppress(NoReverseMatch, Resolver404):
                if get_path(find_page(given, urlconf)) == path:
                    return True
        with suppress(Resolver404):
            match = resolve(strip_prefix(path), urlconf)
            view_class = get_view_class(match.func)
            classes = (*NO_DESTINATION, *load_classes(PACKAGE_LOGOUT))
            if view_class is not None and issubclass(view_class, classes):
                return True
            return "admin" in match.app_names and match.url_name in NO_DESTINATION_ADMIN
    return False


def find_redirect(request: HttpRequest, response: HttpResponseBase) -> HttpRequest | None:
    """A request as a redirect makes it; ``None`` if it leads to the same page or off the site."""
    here = request.build_absolute_uri()
    there = urlsplit(urljoin(here, response.headers.get("Location", here)))
    if there.netloc != request.get_host() or there.path == request.path:
        return None
    return make_request(there.path, getattr(request, "urlconf", None))


def make_request(path: str, urlconf: Any) -> HttpRequest:
    """A request of which nothing but its address is known."""
    made = HttpRequest()
    made.path, made.path_info, made.urlconf = path, strip_prefix(path), urlconf
    return made


def explain_loop(change_path: str, path: str, match: ResolverMatch | None) -> str:
    """Why the change page cannot be reached, and what to set."""
    name = f"add {match.view_name!r} to" if match and match.view_name else "name its view in"
    return (
        f"The password-change page {change_path} redirects to {path}, which is held until the "
        f"password is changed: {name} PWEXPIRE_EXEMPT_VIEWS, or let the part of the site that "
        f"redirects leave {change_path} alone."
    )


def explain_urlconf(change_path: str, path: str, urlconf: Any) -> str:
    """Why the change page is nowhere before a middleware has set the URLconf, and what to do."""
    return (
        f"The password-change page {change_path}, where {path} leads, is in the URLconf {urlconf}, "
        "which a middleware behind PasswordExpiryMiddleware sets: let PasswordExpiryMiddleware "
        "stand behind it."
    )

"""The pages that the settings name, and those of the site that serve the same purpose."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from django.apps import apps
from django.conf import settings
from django.contrib.auth import views
from django.http import HttpRequest
from django.urls import (
    NoReverseMatch,
    Resolver404,
    URLPattern,
    URLResolver,
    get_resolver,
    get_script_prefix,
    resolve,
    reverse,
)
from django.utils.module_loading import import_string
from django.utils.translation import (
    get_language,
    get_language_from_path,
    get_language_from_request,
    override,
)

from pwexpire.conf import SETTINGS, conf
from pwexpire.exceptions import ChangeURLNotFound

# Installed app -> its views, which are no subclasses of Django's.
PACKAGE_LOGOUT = {
    "allauth.account": ("allauth.account.views.LogoutView",),
    "mozilla_django_oidc": ("mozilla_django_oidc.views.OIDCLogoutView",),
}
PACKAGE_RESET = {"allauth.account": ("allauth.account.views.PasswordResetView",)}
PAGES_OF_DJANGO = {
    "LOGIN_URL": "after a few wrong old passwords, and after the log-out",
    "LOGIN_REDIRECT_URL": "after the change of the password",
}


def url_language(request: HttpRequest) -> AbstractContextManager[None]:
    """Resolve and reverse as behind ``LocaleMiddleware``, wherever that stands.

    In front of it the language of an earlier request may still be active in this thread.
    """
    language = get_language_from_path(request.path_info)
    if language is None and not hasattr(request, "LANGUAGE_CODE"):
        language = get_language_from_request(HttpRequest())  # the site's default
    return nullcontext() if language is None else override(language)


def find_page(name: str, urlconf: Any = None) -> str:
    """The address of a URL name or of an absolute path, with the script prefix in front.

    An absolute path may be written with or without the script prefix and the language that
    ``i18n_patterns`` puts in front. Raises ``NoReverseMatch`` or ``Resolver404``.
    """
    if name.startswith("//"):  # a browser takes it for another host
        raise Resolver404({"path": name})
    if not name.startswith("/"):
        return reverse(name, urlconf=urlconf)
    path = get_path(name)
    for candidate in (strip_prefix(path), path, f"/{get_language()}{path}"):
        language = get_language_from_path(candidate)
        with override(language) if language else nullcontext(), suppress(Resolver404):
            resolve(candidate, urlconf)
            return get_script_prefix().rstrip("/") + candidate + name.removeprefix(path)
    raise Resolver404({"path": name})


def find_url(name: str, urlconf: Any = None) -> str:
    """As ``find_page``, for the change page. Raises ``ChangeURLNotFound``."""
    try:
        return find_page(name, urlconf)
    except (NoReverseMatch, Resolver404):
        raise ChangeURLNotFound(
            f"PWEXPIRE_CHANGE_URL = {name!r} leads to no page: include pwexpire.urls in the "
            "URLconf, or set it to the name of the site's password-change view."
        ) from None


def find_reset_url(urlconf: Any = None) -> str | None:
    """The page behind ``PWEXPIRE_RESET_URL``; ``None``: there is none.

    Where the setting was left as it is, and no view has that name, the first reset view counts.
    """
    given = conf.reset_url
    with suppress(NoReverseMatch, Resolver404):
        return find_page(given, urlconf)
    if given.startswith("/") and not given.startswith("//"):
        return given  # served by something else at the same host
    if given != SETTINGS["RESET_URL"].default:
        return None
    return _find_by_class((views.PasswordResetView, *load_classes(PACKAGE_RESET)), urlconf)


def find_logout_url(urlconf: Any = None) -> str | None:
    """The page behind ``PWEXPIRE_LOGOUT_URL``, else the first log-out view; ``None``: none."""
    if conf.logout_url:
        with suppress(NoReverseMatch, Resolver404):
            return find_page(conf.logout_url, urlconf)
        return None
    return _find_by_class((views.LogoutView, *load_classes(PACKAGE_LOGOUT)), urlconf)


def _find_by_class(classes: tuple[type, ...], urlconf: Any) -> str | None:
    """The first view of one of ``classes``; ours and Wagtail's after the site's own."""
    found = [
        name
        for name, view in name_views(get_resolver(urlconf))
        if (view_class := get_view_class(view)) is not None and issubclass(view_class, classes)
    ]
    # Sorting is stable: the order of the URLconf stays. Wagtail's pages are its editors' only.
    for name in sorted(found, key=lambda name: ("wagtailadmin" in name, "pwexpire:" in name)):
        with suppress(NoReverseMatch):
            return reverse(name, urlconf=urlconf)
    return None


def name_views(resolver: URLResolver, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """``namespace:name`` and view of all that ``resolver`` has a name for."""
    for pattern in resolver.url_patterns:
        if isinstance(pattern, URLPattern):
            if pattern.name:
                yield prefix + pattern.name, pattern.callback
        else:
            inner = f"{prefix}{pattern.namespace}:" if pattern.namespace else prefix
            yield from name_views(pattern, inner)


def find_dead_ends() -> Iterator[tuple[str, str, str]]:
    """Setting, value and use of the pages of Django's settings that lead nowhere in this site."""
    for name, why in PAGES_OF_DJANGO.items():
        value = str(getattr(settings, name))
        if "//" in value:  # at another host
            continue
        try:
            find_page(value)
        except (NoReverseMatch, Resolver404):
            yield name, value, why


def get_view_class(view: Callable[..., Any]) -> type | None:
    """The class behind Django's or the REST framework's ``as_view()``."""
    found = getattr(view, "view_class", None) or getattr(view, "cls", None)
    return found if isinstance(found, type) else None


def load_classes(table: Mapping[str, Sequence[str]]) -> tuple[type, ...]:
    """The view classes of ``table`` whose package is installed."""
    paths = [path for app, names in table.items() if apps.is_installed(app) for path in names]
    return tuple(found for path in paths if (found := _load_class(path)) is not None)


@cache
def _load_class(path: str) -> type | None:
    try:
        found: type = import_string(path)
    except ImportError:  # a release of the package that has no such view
        return None
    return found


def get_path(url: str) -> str:
    return urlsplit(url).path


def strip_prefix(path: str) -> str:
    prefix = get_script_prefix().rstrip("/")
    return path.removeprefix(prefix) if path.startswith(f"{prefix}/") else path

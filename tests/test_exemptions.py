"""The way out of a held session: change, reset and log-out stay reachable in the site as it is."""

from __future__ import annotations

from importlib import import_module
from time import monotonic
from types import SimpleNamespace

import pytest
from django.conf import settings as settings_of_django
from django.conf.urls.i18n import i18n_patterns
from django.contrib import admin
from django.contrib.auth import get_user, views
from django.core.management import CommandError, call_command
from django.http import HttpResponse, HttpResponseRedirect
from django.test import Client, override_settings
from django.urls import clear_script_prefix, include, path, set_script_prefix
from django.utils import translation

from pwexpire import exemptions, pages, services
from pwexpire.decorators import password_expiry_exempt
from pwexpire.management import probe
from pwexpire.middleware import arrivals as arrivals_module
from pwexpire.middleware.arrivals import arrivals
from pwexpire.views import LogoutView as OurLogout
from tests.support import NEW, OLD, change_password, is_held
from tests.urls import home, plain, urlpatterns

pytestmark = pytest.mark.django_db(transaction=True)
CHANGE = "/account/password-change/"
OURS = "pwexpire.middleware.PasswordExpiryMiddleware"


@pytest.fixture
def held(alice, client):
    """A browser of Alice, whose password is expired."""
    client.force_login(alice)
    services.expire_passwords(alice)
    return client


@pytest.fixture
def site(settings):
    """A site with these pages in front of those of the tests."""

    def use(*pages, without=()):
        kept = [one for one in urlpatterns if str(one.pattern) not in without]
        settings.ROOT_URLCONF = (*pages, *kept)

    return use


class WithoutChangePage(admin.AdminSite):
    def get_urls(self):
        return [one for one in super().get_urls() if one.name != "password_change"]


class AsksWhatIsSetBehind(admin.AdminSite):
    def has_permission(self, request):
        return super().has_permission(request) and request.user.is_verified()


@pytest.mark.parametrize("kind", [WithoutChangePage, AsksWhatIsSetBehind])
def test_an_admin_site_that_cannot_say_where_to_change_the_password(root, client, site, kind):
    other = kind(name="other")
    site(path("other/", other.urls))
    client.force_login(root)
    services.expire_passwords(root)
    answer = client.get("/other/")
    assert answer.status_code == 302 and answer["Location"] == f"{CHANGE}?next=/other/"
    assert client.get(answer["Location"]).status_code == 200


class Terms:
    """An interstitial: whoever has not accepted the terms is sent to them, from every page."""

    target = "/terms/"
    free = ("/terms/",)

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request):
        if request.path not in self.free:
            return HttpResponseRedirect(self.target)
        return self.get_response(request)


class TermsAtTheView(Terms):
    def __call__(self, request):
        return self.get_response(request)

    def process_view(self, request, view, args, kwargs):
        return None if request.path in self.free else HttpResponseRedirect(self.target)


class SingleSignOn(Terms):
    target = "https://login.example.com/authorize?from=here"


class OtherOrder(Terms):
    """Sends to the same page with other words in its query."""

    target = CHANGE
    free = (CHANGE,)


def terms(request):
    return HttpResponse("terms")


@pytest.mark.parametrize("kind", ["Terms", "TermsAtTheView"])
@pytest.mark.parametrize("name", ["terms", ""])
def test_an_interstitial_that_sends_from_the_change_page_to_a_held_page(
    server, alice, settings, site, kind, name
):
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, f"{__name__}.{kind}"]
    site(path("terms/", terms, name=name))
    browser = server()
    browser.cookies["sessionid"] = _log_in(alice)
    services.expire_passwords(alice)
    assert browser.get("/terms/").status_code == 302
    answer = browser.get(CHANGE)
    assert answer.status_code == 503
    said = answer.content.decode()
    assert CHANGE in said and "/terms/" in said and "PWEXPIRE_EXEMPT_VIEWS" in said
    assert ("'terms'" in said) is bool(name)
    settings.PWEXPIRE_EXEMPT_VIEWS = ["terms"] if name else []
    if name:
        assert browser.get(CHANGE)["Location"] == "/terms/"
        assert browser.get("/terms/").content == b"terms"


def _log_in(user):
    with override_settings(MIDDLEWARE=[]):
        client = Client()
        client.force_login(user)
        return client.cookies["sessionid"].value


@pytest.mark.parametrize(
    ("kind", "location"),
    [("SingleSignOn", SingleSignOn.target), ("OtherOrder", None)],
)
def test_redirects_that_are_no_loop(held, settings, kind, location):
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, f"{__name__}.{kind}"]
    answer = held.get(CHANGE)
    assert answer.get("Location") == location and answer.status_code in (200, 302)


def test_a_redirect_from_the_change_page_to_no_page_is_a_loop(held, settings):
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, f"{__name__}.Terms"]
    answer = held.get(CHANGE)
    assert answer.status_code == 503 and b"name its view in" in answer.content


def follow(browser, path, hops=20):
    """As a browser does; returns the last answer."""
    for _ in range(hops):
        answer = browser.get(path)
        if answer.status_code not in (302, 303):
            return answer
        path = answer["Location"]
    raise AssertionError("an endless circle")


@pytest.mark.parametrize("name", ["terms", ""])
def test_an_interstitial_in_front_that_sends_to_a_held_page(
    engine, server, alice, settings, site, name
):
    settings.MIDDLEWARE = [f"{__name__}.Terms", *settings.MIDDLEWARE]
    site(path("terms/", terms, name=name))
    browser = server()
    browser.cookies["sessionid"] = _log_in(alice)
    services.expire_passwords(alice)
    answer = follow(browser, "/")
    said = answer.content.decode()
    assert answer.status_code == 503
    assert CHANGE in said and "/terms/" in said and "PWEXPIRE_EXEMPT_VIEWS" in said
    assert ("'terms'" in said) is bool(name)
    settings.MIDDLEWARE = settings.MIDDLEWARE[1:]
    browser = server()
    browser.cookies["sessionid"] = _log_in(alice)
    assert follow(browser, "/terms/").status_code == 200


def test_who_follows_no_redirect_or_arrives_is_in_no_circle(held, monkeypatch):
    for _ in range(9):
        assert held.get("/").status_code == 302
    for _ in range(9):
        assert follow(held, "/").status_code == 200
    cookies = {"HTTP_COOKIE": f"sessionid={held.cookies['sessionid'].value}"}
    for seconds in (11, 22, 33, 44):
        held.get("/")
        for environ in ({"PATH_INFO": CHANGE}, {"PATH_INFO": "/"} | cookies):
            arrivals.begin(environ=environ)
        arrivals.begin(environ={"PATH_INFO": CHANGE} | cookies)
        monkeypatch.setattr(arrivals_module.time, "monotonic", lambda s=seconds: monotonic() + s)
    assert held.get("/").status_code == 302


def test_who_is_sent_is_remembered_within_bounds(held, alice, monkeypatch):
    arrivals._sent.clear()
    monkeypatch.setattr(arrivals_module, "SENT_MAX", 1)
    held.get("/")
    other = Client()
    other.force_login(alice)
    other.get("/")
    assert len(arrivals._sent) == 1


class Elsewhere:
    """Serves the site below another URLconf."""

    urls = ()

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request):
        request.urlconf = self.urls
        return self.get_response(request)


@pytest.mark.parametrize("taken", [True, False])
@pytest.mark.parametrize("behind", [True, False])
def test_a_middleware_behind_that_sets_another_urlconf(
    server, alice, settings, monkeypatch, taken, behind
):
    pages = [path("here/", include("pwexpire.urls")), path("", terms)]
    pages += [path(CHANGE[1:], terms)] if taken else []
    monkeypatch.setattr(Elsewhere, "urls", (*pages, *urlpatterns[-4:]))
    at = len(settings.MIDDLEWARE) - (not behind)
    settings.MIDDLEWARE = [*settings.MIDDLEWARE]
    settings.MIDDLEWARE.insert(at, f"{__name__}.Elsewhere")
    browser = server()
    browser.cookies["sessionid"] = _log_in(alice)
    services.expire_passwords(alice)
    answer = follow(browser, "/")
    assert answer.status_code == (503 if behind else 200)
    if behind:
        said = answer.content.decode()
        assert CHANGE in said and "/here/password-change/" in said and "URLconf" in said
    assert browser.post("/").status_code == 303


def test_another_urlconf_with_the_same_change_page(held, settings, monkeypatch):
    pages = (path("account/", include("pwexpire.urls")), path("exempt/", terms))
    monkeypatch.setattr(Elsewhere, "urls", (*pages, *urlpatterns[-4:]))
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, f"{__name__}.Elsewhere"]
    assert held.get("/exempt/")["Location"].startswith(CHANGE)


def test_an_exempt_page_may_redirect_to_a_held_one(held, site):
    go = password_expiry_exempt(lambda request: HttpResponseRedirect("/plain/"))
    site(path("go/", go))
    assert held.get("/go/")["Location"] == "/plain/"


def test_a_loop_is_looked_for_where_the_change_page_is_nowhere(held, settings, site):
    go = password_expiry_exempt(lambda request: HttpResponseRedirect("/plain/"))
    site(path("go/", go))
    settings.PWEXPIRE_CHANGE_URL = "nowhere"
    assert held.get("/go/").status_code in (302, 503)


def test_the_change_itself_may_lead_to_a_page_that_was_held(held):
    assert change_password(held, next="/plain/")["Location"] == "/plain/"
    assert held.get("/plain/").content == b"plain"


@pytest.mark.parametrize("where", ["before", "behind"])
@pytest.mark.parametrize("left_over", ["en", "de"])
@pytest.mark.parametrize("given", ["pwexpire:password_change", "/de/konto/password-change/"])
def test_i18n_patterns_wherever_locale_middleware_stands(held, settings, where, left_over, given):
    locale = "django.middleware.locale.LocaleMiddleware"
    order = settings.MIDDLEWARE
    settings.MIDDLEWARE = [order[0], locale, *order[1:]] if where == "before" else [*order, locale]
    settings.LANGUAGES = [("en", "English"), ("de", "Deutsch")]
    settings.ROOT_URLCONF = tuple(
        i18n_patterns(path("", home), path("konto/", include("pwexpire.urls")))
    )
    settings.PWEXPIRE_CHANGE_URL = given
    with translation.override(left_over):
        answer = held.get("/de/")
        assert answer["Location"] == "/de/konto/password-change/?next=/de/"
    with translation.override(left_over):
        assert held.get(answer["Location"]).status_code == 200
    with translation.override(left_over):
        elsewhere = held.get("/")["Location"]
    with translation.override(left_over):
        assert held.get(elsewhere).status_code == 200
    with translation.override(left_over):
        data = {"old_password": OLD, "new_password1": NEW, "new_password2": NEW}
        done = held.post("/de/konto/password-change/", data)
        assert done["Location"] == "/de/konto/password-change/done/"


def test_an_absolute_change_url_without_the_language_in_front(held, settings):
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, "django.middleware.locale.LocaleMiddleware"]
    settings.LANGUAGES = [("en", "English"), ("de", "Deutsch")]
    settings.ROOT_URLCONF = tuple(
        i18n_patterns(path("", home), path("konto/", include("pwexpire.urls")))
    )
    settings.PWEXPIRE_CHANGE_URL = "/konto/password-change/"
    with translation.override("en"):
        assert held.get("/de/")["Location"].startswith("/de/konto/password-change/")


@pytest.mark.parametrize(
    "given", ["/plain/", "/below/plain/", "plain", "/plain/?from=held"], ids=str
)
def test_a_script_name_stays_in_front_of_the_change_page(held, settings, given):
    settings.PWEXPIRE_CHANGE_URL = given
    set_script_prefix("/below/")
    try:
        answer = held.get("/", SCRIPT_NAME="/below")
        assert answer["Location"].startswith("/below/plain/")
        assert held.get("/plain/", SCRIPT_NAME="/below").content == b"plain"
        assert held.get("/cart/", SCRIPT_NAME="/below").status_code == 302
    finally:
        clear_script_prefix()


def test_a_prefix_is_not_a_part_of_a_name():
    set_script_prefix("/acc/")
    try:
        assert pages.strip_prefix("/account/") == "/account/"
        assert pages.strip_prefix("/acc/ount/") == "/ount/"
    finally:
        clear_script_prefix()


def test_the_pages_that_the_settings_name_are_reachable(held, settings):
    assert is_held(held, "/plain/")
    for name in ("LOGOUT_URL", "RESET_URL"):
        for given in ("plain", "/plain/"):
            with override_settings(**{f"PWEXPIRE_{name}": given}):
                assert held.get("/plain/").content == b"plain"
                assert is_held(held, "/cart/")


def test_the_log_out_button_leads_to_the_sites_log_out(held):
    assert b'action="/accounts/logout/"' in held.get(CHANGE).content
    held.post("/accounts/logout/")
    assert "_auth_user_id" not in held.session


def test_the_log_out_button_where_logout_is_something_else(held, settings, site):
    site(path("logout/", plain, name="logout"), without=("accounts/", "admin/"))
    settings.LOGIN_URL = "/plain/"
    page = held.get(CHANGE)
    assert b'action="/account/log-out/"' in page.content
    assert held.post("/account/log-out/")["Location"] == "/plain/"
    assert "_auth_user_id" not in held.session


def test_the_log_out_button_as_it_is_set(held, settings):
    settings.PWEXPIRE_LOGOUT_URL = "/plain/"
    assert b'action="/plain/"' in held.get(CHANGE).content
    settings.PWEXPIRE_LOGOUT_URL = "nowhere"
    assert b"Log out" not in held.get(CHANGE).content


@pytest.mark.parametrize("name", ["LOGOUT_URL", "RESET_URL"])
def test_a_page_of_another_host_is_none(held, settings, name):
    setattr(settings, f"PWEXPIRE_{name}", "//evil.example/")
    assert held.get("/plain/").status_code == 302
    wrong = {"old_password": "wrong", "new_password1": "a", "new_password2": "a"}
    for page in (held.get(CHANGE), held.post(CHANGE, wrong)):
        assert page.status_code == 200 and b"evil" not in page.content


def test_log_out_and_reset_views_are_found_by_their_class(settings):
    by_key = path("bye/<int:n>/", views.LogoutView.as_view(), name="bye")
    settings.ROOT_URLCONF = (by_key, path("plain/", plain, name="plain"))
    assert pages.find_logout_url() is None and pages.find_reset_url() is None
    bye = path("bye/", views.LogoutView.as_view(), name="bye")
    reset = path("forgotten/", views.PasswordResetView.as_view(), name="forgotten")
    settings.ROOT_URLCONF = (by_key, bye, path("in/", include(([reset], "in"))))
    assert pages.find_logout_url() == "/bye/"
    assert pages.find_reset_url() == "/in/forgotten/"
    settings.PWEXPIRE_RESET_URL = "/elsewhere/"
    assert pages.find_reset_url() == "/elsewhere/"


def test_a_package_without_one_of_its_views():
    assert pages._load_class("pwexpire.views.NoSuchView") is None
    assert pages.load_classes({"pwexpire": ("pwexpire.views.NoSuchView",)}) == ()
    assert pages.load_classes({"pwexpire": ("pwexpire.views.LogoutView",)}) == (OurLogout,)
    assert pages.load_classes({"no.such.app": ("pwexpire.views.LogoutView",)}) == ()


class UserEndpoints:
    """As djoser has them: one class, and each view routes some of its methods."""


@pytest.mark.parametrize(
    ("actions", "exempt"),
    [
        ({"post": "set_password"}, True),
        ({"post": "reset_password_confirm"}, True),
        ({"get": "list", "post": "create"}, False),
        ({"post": "set_password", "get": "me"}, False),
        ({}, False),
    ],
)
def test_of_one_class_only_some_endpoints_are_exempt(monkeypatch, actions, exempt):
    view = SimpleNamespace(cls=UserEndpoints, actions=actions)
    assert not exemptions.is_exempt(view, None)
    monkeypatch.setattr(
        exemptions,
        "load_classes",
        lambda table: (UserEndpoints,) * ("djoser" in table and len(table) == 1),
    )
    assert exemptions.is_exempt(view, None) is exempt


NOWHERE_TO_GO = [
    "/accounts/login/?next=/plain/",
    "/accounts/logout/",
    "/account/log-out/",
    CHANGE,
    "/accounts/password_change/",
    "/admin/login/",
    "/admin/logout/",
    "/admin/password_change/",
    "/away/",
]


@pytest.mark.parametrize("prefix", ["/", "/below/"])
@pytest.mark.parametrize("next", NOWHERE_TO_GO)
def test_after_the_change_nobody_goes_to_a_page_that_leads_back(held, settings, site, next, prefix):
    site(path("away/", plain, name="away"))
    settings.PWEXPIRE_LOGOUT_URL = "away"
    settings.LOGIN_REDIRECT_URL = "/cart/"
    below = prefix.rstrip("/")
    set_script_prefix(prefix)
    try:
        sent = {"old_password": OLD, "new_password1": NEW, "new_password2": NEW}
        sent["next"] = below + next
        assert held.post(CHANGE, sent, SCRIPT_NAME=below)["Location"] == "/cart/"
    finally:
        clear_script_prefix()


@pytest.mark.parametrize("next", ["/plain/", "/nowhere/", "/admin/", "/plain/?next=/admin/login/"])
def test_after_the_change_everybody_goes_where_they_wanted_to(held, next):
    assert change_password(held, next=next)["Location"] == next


def test_the_redirect_to_the_change_page_does_not_lead_back_to_the_login(held, settings):
    assert held.get("/accounts/login/?next=/plain/")["Location"] == CHANGE
    assert held.get("/plain/?next=/accounts/login/")["Location"] == (
        f"{CHANGE}?next=/plain/%3Fnext%3D/accounts/login/"
    )
    settings.LOGIN_URL = "https://sso.example.com/"
    assert held.get("/plain/")["Location"] == f"{CHANGE}?next=/plain/"


@pytest.mark.parametrize(
    ("actions", "changes"),
    [(None, True), ({"post": "set_password"}, True), ({"post": "set_username"}, False)],
)
def test_an_endpoint_of_a_package_asks_for_the_old_password(rf, monkeypatch, actions, changes):
    view = SimpleNamespace(cls=UserEndpoints, actions=actions)
    monkeypatch.setattr(exemptions, "load_classes", lambda table: (UserEndpoints,))
    request = rf.post("/")
    assert exemptions.asks_for_old_password(request, view)
    assert exemptions.is_foreign_change_page(request, view) is changes


# The probe of manage.py pwexpire check.


def check():
    call_command("pwexpire", "check")


@pytest.mark.parametrize("where", ["before", "behind"])
def test_check_names_an_interstitial_that_redirects_from_the_change_page(settings, site, where):
    other, order = f"{__name__}.Terms", settings.MIDDLEWARE
    site(path("terms/", terms, name="terms"))
    settings.MIDDLEWARE = [other, *order] if where == "before" else [*order, other]
    with pytest.raises(CommandError, match=f"page {CHANGE} redirects to /terms/, which is held"):
        check()


class TermsExceptForTheChange(Terms):
    free = ("/terms/", CHANGE)


class Closed(Terms):
    """Answers by itself, whatever stands behind it."""

    target = "/closed/"

    def __call__(self, request):
        if request.path == "/closed/":
            return HttpResponse("closed")
        return super().__call__(request)


def test_check_follows_an_interstitial_that_leaves_the_change_page_alone(settings, site):
    settings.MIDDLEWARE = [f"{__name__}.TermsExceptForTheChange", *settings.MIDDLEWARE]
    site(path("terms/", terms, name="terms"))
    check()


def test_check_names_what_stands_in_front_of_ours(settings):
    settings.MIDDLEWARE = [f"{__name__}.Closed", *settings.MIDDLEWARE]
    with pytest.raises(CommandError, match=r"in front of .* redirects GET / to /closed/"):
        check()


def test_check_tries_log_out_and_reset(settings, site):
    settings.PWEXPIRE_LOGOUT_URL = settings.PWEXPIRE_RESET_URL = "/plain/"
    assert "GET /plain/" in {one.request for one in probe.probe()}
    check()


@pytest.mark.parametrize("name", ["LOGIN_URL", "LOGIN_REDIRECT_URL"])
def test_check_names_a_dead_end(settings, name):
    setattr(settings, name, "/accounts/profile/")
    with pytest.raises(CommandError, match=f"{name} = '/accounts/profile/' leads to no page"):
        check()
    settings.SILENCED_SYSTEM_CHECKS = [*settings.SILENCED_SYSTEM_CHECKS, "pwexpire.W030"]
    check()


class OtherStore:
    """Session middleware of a package that passes arguments of its own, and who it served."""

    served: set[int] = set()

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request):
        store = import_module(settings_of_django.SESSION_ENGINE).SessionStore
        request.session = store(ip="", user_agent="", session_key=request.COOKIES["sessionid"])
        request.user = get_user(request)
        self.served.add(id(request.user))
        return self.get_response(request)


def test_check_understands_other_session_stores_and_has_one_user(settings):
    own = "django.contrib.sessions.middleware.SessionMiddleware"
    settings.MIDDLEWARE = [
        f"{__name__}.OtherStore" if name == own else name for name in settings.MIDDLEWARE
    ]
    OtherStore.served.clear()
    check()
    assert len(OtherStore.served) == 1

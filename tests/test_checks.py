from __future__ import annotations

from datetime import timedelta

import pytest
from django.contrib import admin
from django.contrib.auth import get_user_model
from django.contrib.auth.admin import UserAdmin
from django.core.checks import run_checks
from django.urls import clear_script_prefix, path, set_script_prefix

from pwexpire import checks
from pwexpire.admin import expire_passwords_action
from pwexpire.checks import configuration, site
from pwexpire.management.probe import SessionStore, probe
from pwexpire.middleware import PasswordExpiryMiddleware
from pwexpire.policy import Policy
from tests.urls import home, urlpatterns

OURS = "pwexpire.middleware.PasswordExpiryMiddleware"


def ids(found):
    return [message.id for message in found]


def test_the_checks_are_bound(settings):
    assert not [i for i in ids(run_checks()) if i.startswith("pwexpire")]
    settings.MIDDLEWARE = [name for name in settings.MIDDLEWARE if name != OURS]
    found = run_checks()
    assert "pwexpire.E001" in ids(found)
    assert all(message.hint for message in found if message.id.startswith("pwexpire"))


def test_e001_subclasses_count_and_broken_entries_do_not(settings):
    settings.MIDDLEWARE = [
        "no.such.Middleware",
        "tests.testapp.middleware.passing",
        *[
            name if name != OURS else "tests.testapp.middleware.OwnExpiry"
            for name in settings.MIDDLEWARE
        ],
    ]
    assert checks.site.check_middleware(None) == []


def test_e002_before_authentication(settings):
    settings.MIDDLEWARE = [OURS, *[name for name in settings.MIDDLEWARE if name != OURS]]
    assert ids(checks.site.check_middleware(None)) == ["pwexpire.E002"]
    settings.MIDDLEWARE = [OURS]
    assert ids(checks.site.check_middleware(None)) == ["pwexpire.E002"]
    auth = "django.contrib.auth.middleware.AuthenticationMiddleware"
    settings.MIDDLEWARE = [auth, OURS, "django.contrib.sessions.middleware.SessionMiddleware"]
    assert ids(checks.site.check_middleware(None)) == ["pwexpire.E002"]
    settings.MIDDLEWARE = ["tests.testapp.middleware.passing", auth, OURS]  # a foreign one
    assert checks.site.check_middleware(None) == []


AUTH = "django.contrib.auth.middleware.AuthenticationMiddleware"
FOREIGN = "tests.testapp.middleware.OtherUser"


class NamesRealUser(PasswordExpiryMiddleware):
    def real_user(self, request):
        return None


def test_w024_middleware_that_may_put_another_user_there(settings):
    session = "django.contrib.sessions.middleware.SessionMiddleware"
    settings.MIDDLEWARE = [session, AUTH, FOREIGN, OURS]
    (found,) = checks.site.check_real_user(None)
    assert found.id == "pwexpire.W024"
    assert FOREIGN in found.msg and "real_user()" in found.hint
    settings.MIDDLEWARE = [session, AUTH, FOREIGN, "tests.test_checks.NamesRealUser"]
    assert checks.site.check_real_user(None) == []


@pytest.mark.parametrize(
    "middleware",
    [
        [FOREIGN, AUTH, OURS, FOREIGN],
        [
            AUTH,
            "django.contrib.messages.middleware.MessageMiddleware",
            "allauth.account.middleware.AccountMiddleware",
            "axes.middleware.AxesMiddleware",
            "django_otp.middleware.OTPMiddleware",
            "hijack.middleware.HijackUserMiddleware",
            "impersonate.middleware.ImpersonateMiddleware",
            OURS,
        ],
        [AUTH],  # another check says so
        [OURS],
    ],
)
def test_no_w024_elsewhere_and_of_known_packages(settings, middleware):
    settings.MIDDLEWARE = middleware
    assert checks.site.check_real_user(None) == []


@pytest.mark.parametrize("url", ["nowhere", "/nowhere/", "//evil.example/"])
def test_e003_the_change_url_leads_nowhere(settings, url):
    settings.PWEXPIRE_CHANGE_URL = url
    assert ids(checks.site.check_change_url(None)) == ["pwexpire.E003"]


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("/plain/", []),
        ("/account/password-change/?next=/", []),
        ("/plain/?again=1", []),
        ("hidden", ["pwexpire.E004"]),
        ("shown", []),
    ],
)
def test_e004_the_change_page_is_held(settings, url, found):
    settings.PWEXPIRE_CHANGE_URL = url
    pages = [path("mine/", home, name="shown"), path("mine/", home, name="hidden")]
    settings.ROOT_URLCONF = (*pages, *urlpatterns)
    assert ids(checks.site.check_change_url(None)) == found


@pytest.mark.parametrize("url", ["logout", "/accounts/logout/", "login", "admin:logout"])
def test_e036_the_change_page_changes_no_password(settings, url):
    settings.PWEXPIRE_CHANGE_URL = url
    (message,) = checks.site.check_change_url(None)
    assert message.id == "pwexpire.E036" and repr(url) in message.msg and message.hint
    for right in ("password_change", "admin:password_change"):
        settings.PWEXPIRE_CHANGE_URL = right
        assert checks.site.check_change_url(None) == []


def test_a_site_below_a_prefix_is_understood():
    set_script_prefix("/below/")
    try:
        assert checks.site.check_change_url(None) == []
    finally:
        clear_script_prefix()


def test_i005_what_the_engine_cannot_do(settings):
    for name in ("cache", "file", "signed_cookies"):
        settings.SESSION_ENGINE = f"django.contrib.sessions.backends.{name}"
        assert ids(checks.site.check_session_engine(None)) == ["pwexpire.I005"]
    for name in ("django.contrib.sessions.backends.db", "no.such.engine"):
        settings.SESSION_ENGINE = name
        assert checks.site.check_session_engine(None) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("POLL_SECONDS", "1"),
        ("POLL_SECONDS", -1),
        ("POLL_SECONDS", True),
        ("CHANGE_URL", None),
        ("EXEMPT_VIEWS", "home"),
        ("EXEMPT_VIEWS", [1]),
        ("FAIL_CLOSED", "no"),
        ("LOCKOUT_THRESHOLD", 0),
        ("LOCKOUT_COOLDOWN", 24),
        ("ASSUME_CHANGED", "later"),
        ("POLICY", 90),
        ("POLICY", "no.such.policy"),
        ("POLICY", "tests.support.OLD"),
        ("POLICY", {"default": "no.such.policy"}),
        ("POLICY", {"default": "tests.testapp.policies.strict"}),
        ("POLICY", {"managers": "nist"}),
        ("POLICY", {"group:": "nist"}),
        ("POLICY", {1: "nist"}),
        ("SECOND_FACTOR", "no.such.thing"),
        ("APPLIES_TO", "tests.support.OLD"),
        ("APPLIES_TO", True),
        ("EXPIRE_ON_LOCKOUT", "sometimes"),
        ("ENFORCE", "count"),
        ("SITE_URL", "example.com"),
        ("LOGIN_VALIDATORS", "all"),
        ("EXEMPT_BACKENDS", "django.contrib.auth.backends.ModelBackend"),
        ("REASONS", {"x" * 41: "too long"}),
    ],
)
def test_e006_a_setting_of_the_wrong_type(settings, name, value):
    setattr(settings, f"PWEXPIRE_{name}", value)
    (message,) = checks.configuration.check_settings(None)
    assert message.id == "pwexpire.E006" and f"PWEXPIRE_{name}" in message.msg


def test_e006_a_negative_interval(settings):
    from datetime import timedelta

    settings.PWEXPIRE_LOCKOUT_COOLDOWN = timedelta(-1)
    assert ids(checks.configuration.check_settings(None)) == ["pwexpire.E006"]


@pytest.mark.parametrize(
    "policy",
    [
        "nist",
        {"staff": "pci-dss", "group:A b": Policy(history=2), "default": "cis"},
        lambda user: Policy(),
        {},
    ],
)
def test_policies_that_are_right(settings, policy):
    settings.PWEXPIRE_POLICY = policy
    settings.PWEXPIRE_SECOND_FACTOR = settings.PWEXPIRE_APPLIES_TO = "tests.testapp.policies.is_bob"
    settings.PWEXPIRE_EXPIRE_ON_LOCKOUT, settings.PWEXPIRE_ENFORCE = "success", "report"
    settings.PWEXPIRE_SITE_URL = "https://example.com"
    assert checks.configuration.check_settings(None) == []


def test_settings_that_are_right(settings):
    settings.PWEXPIRE_POLICY = "tests.testapp.policies.strict"
    settings.PWEXPIRE_POLL_SECONDS = None
    settings.PWEXPIRE_REASONS = {"merger": "the merger"}
    assert checks.configuration.check_settings(None) == []


def test_w007_an_unknown_name(settings):
    settings.PWEXPIRE_POL_SECONDS = 1
    settings.PWEXPIRE_ZZZZZZZZZZZZZZZZZZZ = 1
    near, far = checks.configuration.check_settings(None)
    assert near.id == far.id == "pwexpire.W007"
    assert near.hint == "Did you mean PWEXPIRE_POLL_SECONDS?" and "README" in far.hint


def test_e008_an_exempt_view_that_does_not_exist(settings):
    settings.PWEXPIRE_EXEMPT_VIEWS = ["hom", "admin:index", "password_reset_confirm", "qqqq"]
    first, second = checks.site.check_exempt_views(None)
    assert first.id == second.id == "pwexpire.E008"
    assert "mean home?" in first.hint and "namespace" in second.hint


@pytest.mark.parametrize("value", [5, "home", [1, "home"], [["home"]]])
def test_e008_leaves_a_wrong_type_to_e006(settings, value):
    settings.PWEXPIRE_EXEMPT_VIEWS = value
    assert checks.site.check_exempt_views(None) == []
    assert ids(checks.configuration.check_settings(None)) == ["pwexpire.E006"]


def test_e009_the_hook_without_axes(settings, monkeypatch):
    settings.PWEXPIRE_EXPIRE_ON_LOCKOUT = True
    monkeypatch.setattr(configuration.apps, "is_installed", lambda name: False)
    assert ids(checks.configuration.check_lockout_hook(None)) == ["pwexpire.E009"]


@pytest.mark.parametrize(
    ("parameters", "found"),
    [
        (["ip_address"], ["pwexpire.W010"]),
        (["username"], []),
        (["username", "ip_address"], ["pwexpire.W010"]),
        ([["ip_address", "user_agent"], "username"], ["pwexpire.W010"]),
        ([["username", "ip_address"]], []),
        ("dotted.path", []),
    ],
)
def test_w010_axes_does_not_lock_by_name(settings, monkeypatch, parameters, found):
    monkeypatch.setattr(configuration.apps, "is_installed", lambda name: True)
    settings.PWEXPIRE_EXPIRE_ON_LOCKOUT = True
    settings.AXES_LOCKOUT_PARAMETERS = parameters
    assert ids(checks.configuration.check_lockout_hook(None)) == found


class Elsewhere:
    def db_for_write(self, model, **hints):
        return "elsewhere" if model._meta.app_label == "pwexpire" else None


def test_e011_records_live_elsewhere(settings):
    settings.DATABASE_ROUTERS = [Elsewhere()]
    assert ids(checks.site.check_databases(None)) == ["pwexpire.E011"]


def test_w012_enforcement_is_off(settings):
    settings.PWEXPIRE_ENFORCE = False
    assert ids(checks.configuration.check_enforced(None)) == ["pwexpire.W012"]


def test_w013_no_well_known_url(settings):
    settings.ROOT_URLCONF = "tests.testapp.urls_other"
    assert ids(checks.site.check_well_known(None)) == ["pwexpire.W013"]


@pytest.mark.parametrize("urls", [None, "no.such.urls", "tests.support"])
def test_sites_without_urls_are_not_asked(settings, urls):
    settings.ROOT_URLCONF = urls
    settings.PWEXPIRE_EXEMPT_VIEWS = ["x"]
    assert checks.site.check_change_url(None) == checks.site.check_well_known(None) == []
    assert checks.site.check_exempt_views(None) == []


@pytest.mark.django_db
def test_the_probe_finds_a_site_without_a_change_page(settings):
    settings.PWEXPIRE_CHANGE_URL = "nowhere"
    settings.ROOT_URLCONF = "tests.testapp.urls_other"
    assert "GET nowhere" not in {one.request for one in probe()}


def test_the_session_of_the_probe_is_nowhere():
    store = SessionStore()
    store.create()
    store.save()
    store.delete()
    assert store.exists("x") and store.session_key == "pwexpire-check"


def test_e014_tasks_without_a_framework(settings, monkeypatch):
    assert checks.configuration.check_tasks(None) == []
    settings.PWEXPIRE_ENQUEUE_ABOVE = 100
    monkeypatch.setattr(configuration, "find_tasks", lambda: None)
    assert ids(checks.configuration.check_tasks(None)) == ["pwexpire.E014"]
    settings.PWEXPIRE_ENQUEUE_ABOVE = None
    assert checks.configuration.check_tasks(None) == []


HISTORY = {"NAME": "pwexpire.validators.PasswordHistoryValidator"}
BACKEND = "pwexpire.backends.PasswordExpiryBackend"


def failing():
    raise ZeroDivisionError


def lengths(at_least):
    name = "django.contrib.auth.password_validation.MinimumLengthValidator"
    return {"NAME": name, "OPTIONS": {"min_length": at_least}}


@pytest.fixture
def validators(settings):
    def use(*config):
        settings.AUTH_PASSWORD_VALIDATORS = list(config)

    return use


@pytest.mark.parametrize(
    "policy, found",
    [
        (None, 0),
        ("nist", 0),
        ("pci-dss", 0),
        ({"staff": "pci-dss", "default": "nist"}, 1),
        ({"staff": "pci-dss", "group:x": "asvs-5", "default": "nist"}, 2),
        ({"staff": "iso-27002", "default": "pci-dss"}, 0),
        ({"staff": "cis", "default": "pci-dss"}, 0),
        (Policy(name="asvs-5", max_age=timedelta(days=9)), 1),
        ({"default": Policy(name="nist", max_age=timedelta(days=9))}, 1),
        ("no.such.policy", 0),
        ("tests.testapp.policies.strict", 0),
    ],
)
def test_w015_policies_that_contradict_each_other(settings, policy, found):
    settings.PWEXPIRE_POLICY = policy
    assert ids(checks.policies.check_contradictions(None)) == ["pwexpire.W015"] * found


def test_w016_a_history_that_nobody_looks_at(settings, validators):
    validators()
    settings.PWEXPIRE_POLICY = Policy(history=2, min_age=timedelta(days=1))
    (message,) = checks.policies.check_validators(None)
    assert message.id == "pwexpire.W016" and "history and min_age" in message.msg
    for wrong in ("no.such.Validator", 5):
        validators({"NAME": wrong})
        assert ids(checks.policies.check_validators(None)) == ["pwexpire.W016"]
    validators(HISTORY)
    assert checks.policies.check_validators(None) == []
    settings.PWEXPIRE_POLICY = "nist"
    assert checks.policies.check_validators(None) == []


@pytest.mark.parametrize(
    "policy", [Policy(require="deny"), Policy(temporary_for=timedelta(days=1)), "asvs-5"]
)
def test_e017_logins_that_nobody_refuses(settings, policy):
    settings.PWEXPIRE_POLICY = policy
    assert ids(checks.policies.check_refusing(None)) == ["pwexpire.E017"]
    settings.AUTHENTICATION_BACKENDS = ["no.such.Backend", BACKEND]
    assert checks.policies.check_refusing(None) == []


def test_w018_passwords_that_are_too_short_for_pci(settings, validators):
    settings.PWEXPIRE_POLICY = {"staff": "pci-dss"}
    validators(lengths(8))
    assert ids(checks.policies.check_length(None)) == ["pwexpire.W018"]
    validators(lengths(12))
    assert checks.policies.check_length(None) == []
    settings.PWEXPIRE_POLICY = None
    assert checks.policies.check_length(None) == []


def test_i019_nobody_is_known_to_have_a_second_factor(settings):
    settings.PWEXPIRE_POLICY = "pci-dss"
    assert ids(checks.policies.check_second_factor(None)) == ["pwexpire.I019"]
    settings.PWEXPIRE_SECOND_FACTOR = "no.such.thing"
    assert checks.policies.check_second_factor(None) == []  # E006 says so
    settings.PWEXPIRE_SECOND_FACTOR = "tests.testapp.policies.is_bob"
    assert checks.policies.check_second_factor(None) == []


def test_w020_a_backend_that_is_not_there(settings):
    settings.PWEXPIRE_EXEMPT_BACKENDS = ["django.contrib.auth.backends.ModelBackends", "x"]
    first, second = checks.configuration.check_backends(None)
    assert first.id == second.id == "pwexpire.W020" and "ModelBackend?" in first.hint
    settings.PWEXPIRE_EXEMPT_BACKENDS = ["django.contrib.auth.backends.ModelBackend"]
    assert checks.configuration.check_backends(None) == []


def test_e021_and_e022_validators_at_the_login(settings):
    settings.PWEXPIRE_LOGIN_VALIDATORS = True
    assert ids(checks.configuration.check_backends(None)) == ["pwexpire.E021"]
    settings.AUTHENTICATION_BACKENDS = [BACKEND]
    assert checks.configuration.check_backends(None) == []
    minimum = lengths(12)["NAME"]
    for wrong in (
        *(["x"], [5], [None], [{}], [{"NAME": 5}], [{"NAME": None}]),
        *([{"NAME": "no.such.Validator"}], [{"NAME": "tests.test_checks.failing"}]),
        *([{"NAME": minimum, "OPTIONS": given}] for given in (5, "x", ["x"], {"no": 1}, {1: 1})),
    ):
        settings.PWEXPIRE_LOGIN_VALIDATORS = wrong
        assert ids(checks.configuration.check_backends(None)) == ["pwexpire.E022"]
    settings.PWEXPIRE_LOGIN_VALIDATORS = "wrong"
    assert checks.configuration.check_backends(None) == []  # E006 says so


def test_w023_counting_only(settings):
    settings.PWEXPIRE_ENFORCE = "report"
    assert ids(checks.configuration.check_enforced(None)) == ["pwexpire.W023"]


def test_e032_a_held_user_cannot_log_out(settings):
    assert checks.site.check_way_out(None) == []
    settings.ROOT_URLCONF = (path("logout/", home, name="logout"),)
    (message,) = checks.site.check_way_out(None)
    assert message.id == "pwexpire.E032" and "No view that logs out" in message.msg
    settings.PWEXPIRE_LOGOUT_URL = "logout"
    assert checks.site.check_way_out(None) == []
    settings.PWEXPIRE_LOGOUT_URL = "log-out"
    (message,) = checks.site.check_way_out(None)
    assert message.id == "pwexpire.E032" and "'log-out'" in message.msg and message.hint


@pytest.mark.parametrize("url", ["nowhere", "//evil.example/", "/nope/", "/nope/?a=1"])
def test_e033_the_reset_page_leads_nowhere(settings, url):
    settings.PWEXPIRE_RESET_URL = url
    (message,) = checks.site.check_way_out(None)
    assert message.id == "pwexpire.E033" and repr(url) in message.msg and message.hint
    for right in ("password_reset", "/accounts/password_reset/?a=1"):
        settings.PWEXPIRE_RESET_URL = right
        assert checks.site.check_way_out(None) == []


@pytest.mark.parametrize("name", ["LOGIN_URL", "LOGIN_REDIRECT_URL"])
def test_w030_pages_of_django_that_lead_nowhere(settings, name):
    for right in ("/plain/", "home", "/?a=1", "https://login.example.com/", "//example.com/"):
        setattr(settings, name, right)
        assert checks.site.check_dead_ends(None) == []
    for wrong in ("/accounts/profile/", "nowhere", "../x"):
        setattr(settings, name, wrong)
        (message,) = checks.site.check_dead_ends(None)
        assert message.id == "pwexpire.W030" and message.msg.startswith(f"{name} = {wrong!r}")
    settings.ROOT_URLCONF = None
    assert checks.site.check_dead_ends(None) == checks.site.check_way_out(None) == []


def test_i034_an_admin_without_the_action(settings, monkeypatch):
    assert checks.site.check_user_admin(None) == []
    other = admin.AdminSite("other")
    settings.ROOT_URLCONF = (path("other/", other.urls),)
    assert checks.site.check_user_admin(None) == []  # no users there
    other.register(get_user_model(), UserAdmin)
    settings.ROOT_URLCONF = (path("other/", other.urls), path("", home, name="home"))
    (message,) = checks.site.check_user_admin(None)
    assert message.id == "pwexpire.I034" and "extend_user_admin" in message.hint
    with monkeypatch.context() as patch:
        patch.setattr(site.apps, "is_installed", lambda name: False)
        assert checks.site.check_user_admin(None) == []
    by_hand = type("ByHand", (UserAdmin,), {"actions": [expire_passwords_action]})
    other.unregister(get_user_model())
    other.register(get_user_model(), by_hand)
    settings.ROOT_URLCONF = (path("other/", other.urls),)
    assert checks.site.check_user_admin(None) == []
    settings.ROOT_URLCONF = None
    assert checks.site.check_user_admin(None) == []

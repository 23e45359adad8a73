from __future__ import annotations

from datetime import timedelta

import pytest
from django.contrib.auth.models import AnonymousUser
from django.template import Context, Template
from django.template.context_processors import request as request_context
from django.utils import timezone

from pwexpire import services
from pwexpire.context_processors import password_expiry
from pwexpire.models import PasswordRecord
from pwexpire.policy import Policy

pytestmark = pytest.mark.django_db(transaction=True)
DAY = timedelta(days=1)
BANNER = Template("{% load pwexpire %}{% password_expiry_banner %}")
TWICE = Template("{% load pwexpire %}{% password_expiry_banner %}{% password_expiry_banner %}")


@pytest.fixture
def shown(rf):
    def show(user):
        request = rf.get("/")
        request.user = user
        return BANNER.render(Context({**request_context(request)})).strip()

    return show


def aged(user, days):
    then = timezone.now() - timedelta(days=days)
    PasswordRecord.objects.filter(pk=user.pk).update(changed_at=then)


def test_there_is_nothing_to_say(alice, shown, settings):
    assert shown(alice) == "" and shown(AnonymousUser()) == ""
    assert BANNER.render(Context({})).strip() == ""
    settings.PWEXPIRE_POLICY = Policy(max_age=90 * DAY, warn_before=7 * DAY)
    assert shown(alice) == ""


def test_days_that_are_left(alice, shown, settings):
    settings.PWEXPIRE_POLICY = Policy(max_age=90 * DAY, warn_before=7 * DAY)
    aged(alice, 86.5)
    said = shown(alice)
    assert 'role="status"' in said and "expires in 4 days." in said
    assert 'href="/account/password-change/"' in said
    settings.PWEXPIRE_CHANGE_URL = "nowhere"
    assert "href" not in shown(alice)


def test_grace_logins_that_are_left(alice, shown, settings):
    settings.PWEXPIRE_POLICY = Policy(max_age=90 * DAY, grace_logins=2)
    aged(alice, 91)
    assert "has expired. You can log in with it 2 more times." in shown(alice)


def test_a_warning_and_its_reason(alice, shown, settings):
    services.expire_passwords(alice, require="warn", reason="policy")
    assert "Please change your password: the password rules have changed." in shown(alice)
    services.expire_passwords(alice)
    assert "has expired." in shown(alice) and "log in with it" not in shown(alice)


def test_an_age_that_only_warns(alice, shown, settings):
    settings.PWEXPIRE_POLICY = Policy(max_age=90 * DAY, require="warn")
    aged(alice, 91)
    assert "has expired. Please change it." in shown(alice)


def test_the_context_processor_asks_nothing_by_itself(alice, rf, django_assert_num_queries):
    request = rf.get("/")
    request.user = alice
    with django_assert_num_queries(0):
        context = password_expiry(request)
    assert Template("{{ password_expiry.must_change }}").render(Context(context)) == "False"
    with django_assert_num_queries(0):
        assert Template("{{ password_expiry.warn }}").render(Context(context)) == "False"
    request = rf.get("/")
    request.user = AnonymousUser()
    assert Template("{{ password_expiry.warn }}").render(Context(password_expiry(request))) == ""


def test_two_banners_ask_once(alice, rf, django_assert_max_num_queries):
    request = rf.get("/")
    request.user = alice
    with django_assert_max_num_queries(4):
        TWICE.render(Context({**request_context(request)}))

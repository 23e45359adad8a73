"""What is left behind: ends that outlive a cancellation, who cancelled what, and what is pruned."""

from __future__ import annotations

import pytest
from django.contrib.auth import get_user_model

from pwexpire import services, testing
from pwexpire.models import PasswordRecord
from pwexpire.services import SessionAction
from tests.support import OLD, is_held

pytestmark = pytest.mark.django_db(transaction=True)


def log_in(browser, user):
    browser.client.force_login(user) if hasattr(browser, "client") else browser.force_login(user)
    return browser


def whoami(browser):
    return browser.get("/").content.decode()


def end_everyone(user):
    return services.expire_everyone(sessions=SessionAction.END)


def end_these(user):
    return services.expire_passwords(user, sessions=SessionAction.END)


@pytest.mark.parametrize("restart", [False, True], ids=["same process", "another process"])
@pytest.mark.parametrize("whole", [False, True], ids=["one user", "whole batch"])
@pytest.mark.parametrize("end", [end_everyone, end_these])
def test_a_cancellation_undoes_the_demand_and_never_the_end_of_a_session(
    engine, server, alice, end, whole, restart
):
    before = log_in(server(), alice)
    assert whoami(before) == "alice"
    batch = end(alice)
    services.cancel_expiry(batch if whole else alice)
    if restart:
        testing.reset()
    assert whoami(before) == "anonymous"
    assert not services.password_status(alice).must_change
    after = log_in(server(), alice)
    assert whoami(after) == "alice" and not is_held(after)


def test_a_session_that_began_after_the_end_outlives_the_cancellation(engine, client, alice):
    end_these(alice)
    end_everyone(alice)
    client.login(username="alice", password=OLD)
    assert is_held(client)
    services.cancel_expiry(alice)
    assert whoami(client) == "alice"


def test_whom_an_end_left_out_keeps_the_session_whatever_is_cancelled_later(engine, client, alice):
    client.force_login(alice)
    services.expire_everyone(sessions=SessionAction.END, exclude=alice)
    services.expire_passwords(alice)
    services.cancel_expiry(alice)
    assert whoami(client) == "alice"
    assert PasswordRecord.objects.filter(pk=alice.pk, ended__gt=0).count() == 0


def test_a_cancelled_batch_leaves_the_demands_of_other_batches_open(alice):
    services.expire_passwords(alice)
    services.cancel_expiry(end_these(alice))
    assert services.password_status(alice).must_change


def test_the_ends_of_a_large_cancelled_batch_are_kept_in_few_statements(users, count_queries):
    users(300)
    batch = end_these(get_user_model().objects.all())
    with count_queries() as captured:
        services.cancel_expiry(batch)
    assert len(captured) < 30
    assert PasswordRecord.objects.filter(ended=batch.number).count() == 300

"""How many statements pwexpire adds to what a site does all day."""

from __future__ import annotations

import pytest
from django.contrib.auth import get_user_model
from django.db import transaction

from pwexpire import services
from tests.bench.statements import BOUNDS, measure_statements
from tests.support import NEW, OLD

pytestmark = pytest.mark.django_db(transaction=True)


def test_the_bounds_of_added_statements():
    found = measure_statements()
    assert found.keys() == BOUNDS.keys()
    for work, row in found.items():
        assert row["added"] <= row["bound"], (work, row)


def test_a_save_that_changes_no_password_asks_nothing(alice, count_queries):
    with transaction.atomic():
        alice.email = "alice@example.org"
        with count_queries() as asked:
            alice.save()
            alice.save(update_fields=["email"])
    assert len(asked) == 2


def test_a_change_with_nothing_open_reads_the_state_once(alice, count_queries):
    user = get_user_model().objects.get(pk=alice.pk)
    user.set_password(NEW)
    with count_queries() as asked:
        user.save()
    assert len(asked) == 3, asked.captured_queries


def test_a_change_of_a_user_who_has_to(alice, count_queries):
    services.expire_passwords(alice)
    user = get_user_model().objects.get(pk=alice.pk)
    user.set_password(NEW)
    with count_queries() as asked:
        user.save()
    assert len(asked) <= 10, asked.captured_queries
    assert not services.password_status(user).must_change
    user.set_password(OLD)
    user.save()

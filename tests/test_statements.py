"""How many statements pwexpire adds to what a site does all day."""

from __future__ import annotations

from itertools import pairwise

import pytest
from django.contrib.auth import get_user_model
from django.db import connection, transaction

from pwexpire import services
from pwexpire.services import selection, staging
from pwexpire.services.expired import is_expired
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


def test_a_preview_asks_the_same_of_each_chunk_of_users(users, monkeypatch, count_queries):
    monkeypatch.setattr(selection, "RANGE", 2)
    people = users(8)
    services.expire_passwords(people[:6])
    everybody, asked = get_user_model().objects.all(), []
    for size in (2, 4, 6, 8):
        with count_queries() as seen:
            found = services.preview_expiry(everybody.filter(pk__lte=people[size - 1].pk))
        assert (found.users, found.already_expired) == (size, min(size, 6))
        asked.append(len(seen))
    chunk = asked[1] - asked[0]
    assert chunk <= 7 and [chunk] * 3 == [two - one for one, two in pairwise(asked)]


def test_demands_are_asked_for_within_the_bounds_of_each_chunk(users, monkeypatch, count_queries):
    """Or a database with old statistics may read all of them for each chunk."""
    monkeypatch.setattr(selection, "RANGE", 2)
    people = users(4)
    services.expire_passwords(people)
    with count_queries() as seen:
        services.preview_expiry(get_user_model().objects.all())
        services.expire_passwords(get_user_model().objects.all())
    sent = [one["sql"].replace("`", '"') for one in seen]
    asked = [sql for sql in sent if 'EXISTS(SELECT 1 AS "a" FROM "pwexpire_demand"' in sql]
    assert len(asked) == 2 + 2 * 2
    for sql in asked:
        demand, record = sql.split("EXISTS(", 2)[1:]
        for part in (demand, record):
            assert '"user_id" <= ' in part, sql


def test_who_is_not_expired_is_a_question_that_can_be_joined(alice):
    users = get_user_model().objects.all()
    sql = str(users.filter(~is_expired(users)).values("pk").query)
    _, _, condition = sql.partition(" WHERE ")
    # No OR beside it: a database would ask for the demands of each user.
    assert condition.startswith(("NOT (EXISTS(SELECT 1", "NOT EXISTS("))
    assert condition.endswith("))")


@pytest.mark.skipif(connection.vendor == "mysql", reason="it says ANALYZE TABLE, and needs none")
def test_a_large_batch_has_its_tables_analysed(users, monkeypatch, count_queries):
    people = users(3)
    monkeypatch.setattr(staging, "ANALYZED_FROM", 2)
    for vendors, batch, wanted in [
        ((), people[:2], 0),
        ((connection.vendor,), people[2], 0),
        ((connection.vendor,), people, 2),
    ]:
        monkeypatch.setattr(staging, "ANALYZES", vendors)
        services.cancel_expiry(people)
        with count_queries() as seen:
            services.expire_passwords(batch)
        assert len([one for one in seen if one["sql"].startswith("ANALYZE")]) == wanted

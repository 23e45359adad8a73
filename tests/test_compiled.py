"""Statements that are compiled once answer as the ORM does, each time anew."""

from __future__ import annotations

from datetime import timedelta
from unittest import mock

import pytest
from django.contrib.auth import get_user_model
from django.db import connections, router
from django.db.models import Manager
from django.db.utils import ConnectionDoesNotExist
from django.utils import timezone

from pwexpire import services
from pwexpire.compiled import Compiled
from pwexpire.models import PasswordRecord, Require, SessionAction
from pwexpire.services import demands, status
from pwexpire.services.status import read_counter_and_state, read_password_state

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def backend(settings):
    settings.AUTHENTICATION_BACKENDS = ["pwexpire.backends.PasswordExpiryBackend"]


def ask_orm(build, module, user):
    """What the same query says where the ORM is given the user."""
    with mock.patch.object(module, "ASKED", user.pk):
        return list(build())


def history_of(user, root):
    """Moments in the life of a user, each of which the record tells apart."""
    yield "nothing"
    services.expire_everyone(note="all")
    yield "with everyone"
    services.expire_passwords(user, require=Require.RESET, sessions=SessionAction.END, actor=root)
    yield "ended"
    PasswordRecord.objects.update_or_create(
        user_id=user.pk,
        defaults={
            "changed_at": timezone.now() - timedelta(days=3),
            "assumed": True,
            "given_at": timezone.now(),
            "given_new": True,
            "given_by_id": root.pk,
            "grace_used": 2,
        },
    )
    yield "with a record"
    services.cancel_expiry(user, actor=root)
    yield "cancelled"
    services.record_password_change(user)
    yield "changed"


def test_the_answers_are_those_of_the_orm(alice, bob, root):
    services.expire_passwords(bob)
    services.expire_everyone(exclude=[bob])
    for moment in history_of(alice, root):
        for user in (alice, bob, root):
            expected = ask_orm(status._select_verdict, status, user)
            assert status.VERDICT.rows("default", user.pk) == expected, moment
            found = demands.open_batches(user.pk)
            expected = [
                *ask_orm(demands.OPEN_BY_NAME._build, demands, user),
                *ask_orm(demands.OPEN_WITH_EVERYONE._build, demands, user),
            ]
            assert [vars(one) | {"_state": None} for one in found] == [
                vars(one) | {"_state": None} for one in expected
            ], moment
            assert all(one._state.db == "default" and not one._state.adding for one in found)


def test_one_statement_says_whether_a_user_is_held(alice, django_assert_num_queries):
    with django_assert_num_queries(1):
        counter, password_state = read_counter_and_state(alice)
    assert counter == status.read_counter() and not password_state.held
    services.expire_passwords(alice)
    with django_assert_num_queries(3):
        assert read_password_state(alice).held


def test_it_is_compiled_once_for_each_database_and_user_model(alice, root):
    compiled = Compiled(status._select_verdict)
    with mock.patch.object(
        Compiled, "_compile", autospec=True, side_effect=Compiled._compile
    ) as it:
        for user in (alice, root, alice):
            assert len(compiled.rows("default", user.pk)) == 1
        assert it.call_count == 1
        with mock.patch.dict(connections.settings, other=connections.settings["default"]):
            connections["other"] = connections["default"]
            try:
                assert len(compiled.rows("other", alice.pk)) == 1
            finally:
                del connections["other"]
        assert it.call_count == 2
        with mock.patch("pwexpire.compiled.get_user_model", return_value=PasswordRecord):
            compiled.rows("default", alice.pk)
        assert it.call_count == 3


def test_the_router_is_asked_each_time(alice):
    """A text that was compiled for one database is asked of no other."""
    to_nowhere = mock.Mock(spec=["db_for_write"], db_for_write=mock.Mock(return_value="nowhere"))
    read_password_state(alice)
    with (
        mock.patch.object(router, "routers", [to_nowhere]),
        pytest.raises(ConnectionDoesNotExist),
    ):
        read_password_state(alice)
    assert not read_password_state(alice).held


class Changing(Manager):
    """As of a site with tenants: what it asks for depends on the moment."""

    hidden = False

    def get_queryset(self):
        return super().get_queryset().none() if self.hidden else super().get_queryset().all()


def test_a_manager_of_the_site_is_asked_each_time(alice):
    model, manager = get_user_model(), Changing()
    manager.model, manager.name = model, "_base_manager"
    compiled = Compiled(status._select_verdict)
    with mock.patch.dict(vars(model._meta), base_manager=manager):
        assert len(compiled.rows("default", alice.pk)) == 1 and not compiled._statements
        with mock.patch.object(manager, "hidden", True):
            assert compiled.rows("default", alice.pk) == []
    assert len(compiled.rows("default", alice.pk)) == 1 and compiled._statements

"""What a process knows of open demands, against the rows: it never misses one."""

from __future__ import annotations

from types import SimpleNamespace
from unittest import mock

import pytest
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.db import OperationalError
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pwexpire import bloom, demand_view, services, testing
from pwexpire.bloom import BloomFilter
from pwexpire.demand_view import Clearance, View
from pwexpire.exceptions import EnforcementUnavailable
from pwexpire.feed import Feed, feed
from pwexpire.models import (
    Demand,
    EnforcementState,
    Exclusion,
    ExpiryBatch,
    ExpiryChunk,
    FilterPart,
    PasswordRecord,
    Require,
    SessionAction,
)
from pwexpire.services import batches, demand_filters, pruning
from tests.factories import UserFactory
from tests.support import is_held, store_session

pytestmark = pytest.mark.django_db(transaction=True)
TABLES = (
    *(EnforcementState, ExpiryBatch, ExpiryChunk, FilterPart),
    *(Demand, Exclusion, PasswordRecord),
)
PEOPLE = 12
FEW, SINGLE = 4, 3
some = st.sets(st.integers(0, PEOPLE - 1), min_size=1)
one = st.integers(0, PEOPLE - 1)


@pytest.fixture
def small(monkeypatch):
    """Four users are a large batch, three are too many to be kept by name."""
    monkeypatch.setattr(demand_filters, "FILTER_FROM", FEW)
    monkeypatch.setattr(demand_view, "USERS_MAX", SINGLE)
    monkeypatch.setattr(demand_view, "PAGE", 2)
    monkeypatch.setattr(demand_filters, "PAGE", 2)


def read_rows(pk):
    """Return the highest number that is demanded of a user, or at which their sessions ended."""
    record = PasswordRecord.objects.filter(pk=pk).first() or PasswordRecord()
    in_force = ExpiryBatch.objects.filter(number__isnull=False).exclude(require=Require.WARN)
    everyone = in_force.filter(everyone=True, number__gt=record.satisfied)
    open_batches = [
        *in_force.filter(demands__user=pk, cancelled_at=None),
        *everyone.filter(cancelled_at=None).exclude(exclusions__user=pk),
        *everyone.filter(sessions=SessionAction.END).exclude(exclusions__user=pk),
    ]
    ended = record.ended if record.ended > record.satisfied else 0
    return max([ended, *(batch.number for batch in open_batches)])


class Rows(RuleBasedStateMachine):
    """Expiries, changes, cancellations, restarts and restored databases in any order."""

    def __init__(self):
        super().__init__()
        testing.reset()
        for table in TABLES:
            table.objects.all().delete()
        self.kept = None
        self.feed = Feed()

    @initialize()
    def people(self):
        users = get_user_model().objects.order_by("pk")
        self.users = list(users) or UserFactory.create_batch(PEOPLE)

    def of(self, chosen):
        return [self.users[number] for number in sorted(chosen)]

    @rule(
        chosen=some,
        require=st.sampled_from([Require.CHANGE, Require.CHANGE, Require.WARN]),
        sessions=st.sampled_from(SessionAction),
    )
    def expire(self, chosen, require, sessions):
        if require == Require.WARN:
            sessions = SessionAction.FLAG
        services.expire_passwords(self.of(chosen), require=require, sessions=sessions)

    @rule(chosen=some)
    def expire_by_an_older_release(self, chosen):
        with mock.patch.object(demand_filters, "FILTER_FROM", 10**9):
            services.expire_passwords(self.of(chosen))

    @rule(out=one, sessions=st.sampled_from(SessionAction))
    def expire_everyone(self, out, sessions):
        services.expire_everyone(exclude=self.users[out], sessions=sessions)

    @rule(chosen=some)
    def end_sessions(self, chosen):
        services.end_sessions(self.of(chosen))

    @rule(number=one)
    def change(self, number):
        services.record_password_change(self.users[number])

    @rule(chosen=some)
    def cancel_users(self, chosen):
        services.cancel_expiry(self.of(chosen))

    @precondition(lambda self: ExpiryBatch.objects.exists())
    @rule(data=st.data())
    def cancel_batch(self, data):
        pks = ExpiryBatch.objects.order_by("pk").values_list("pk", flat=True)
        services.cancel_expiry(ExpiryBatch.objects.get(pk=data.draw(st.sampled_from(list(pks)))))

    @rule()
    def prune(self):
        pruning.prune_cancelled()
        pruning.prune_batches()
        pruning.prune_filters()

    @rule()
    def restart(self):
        self.feed = Feed()

    @rule()
    def back_up(self):
        self.kept = [(table, list(table.objects.values())) for table in TABLES]

    @precondition(lambda self: self.kept is not None)
    @rule()
    def restore(self):
        for table in reversed(TABLES):
            table.objects.all().delete()
        for table, rows in self.kept:
            table.objects.bulk_create(table(**row) for row in rows)

    @invariant()
    def nobody_is_missed(self):
        numbers = list(ExpiryBatch.objects.exclude(number=None).values_list("number", flat=True))
        stamps = sorted({0, *numbers, *(number - 1 for number in numbers)})
        for known in (self.feed, Feed()):
            view = known.view(known.scope())
            for user in self.users:
                wanted = read_rows(user.pk)
                missed = [
                    stamp
                    for stamp in stamps
                    if stamp < wanted and not view.is_demanded_after(stamp, str(user.pk))
                ]
                assert missed == [], (user.pk, wanted, view)

    @invariant()
    def few_are_kept_by_name(self):
        assert len(self.feed.view(self.feed.scope()).users) <= SINGLE


def test_nobody_is_missed_in_any_order(small):
    run_state_machine_as_test(
        Rows,
        settings=settings(
            max_examples=12,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            # Each step writes to a database: to find the shortest failing run takes minutes.
            phases=[Phase.explicit, Phase.reuse, Phase.generate],
        ),
    )


def view_of(fresh):
    return fresh.view(fresh.scope())


def is_suspect(view, user):
    return view.is_demanded_after(0, str(user.pk))


@pytest.fixture
def large(small, users):
    """Users of a batch that has a filter, of one part."""
    people = users(FEW)
    return SimpleNamespace(people=people, batch=services.expire_passwords(people))


def test_a_large_batch_is_read_as_a_filter(large, bob, count_queries):
    fresh = Feed()
    with count_queries() as first:
        view = view_of(fresh)
    # The counter, everyone, filters, one part, single users.
    assert len(first) == 5
    assert view.users == {} and [number for number, _ in view.filters] == [large.batch.number]
    assert all(is_suspect(view, one) for one in large.people)
    assert not all(str(key) in view.filters[0][1] for key in range(10_000, 10_100))
    assert str(FilterPart.objects.get()) == f"{large.batch.pk}: 0"
    with count_queries() as unmoved:
        assert view_of(fresh).filters is view.filters
    assert len(unmoved) == 1
    services.expire_passwords(bob)
    with count_queries() as moved:
        view = view_of(fresh)
    assert len(moved) == 4
    assert is_suspect(view, bob) and all(is_suspect(view, one) for one in large.people)


def test_a_large_expiry_that_is_new_to_a_few_has_no_filter(small, users):
    people = users(FEW)
    services.expire_passwords(people[0])
    services.expire_passwords(people)
    assert not FilterPart.objects.exists()
    assert all(is_suspect(view_of(Feed()), one) for one in people)


def test_a_filter_of_several_parts_is_read_one_a_statement(
    small, users, monkeypatch, count_queries
):
    monkeypatch.setattr(bloom, "PART_BYTES", 2)
    people = users(FEW)
    services.expire_passwords(people)
    assert [len(part.bits) for part in FilterPart.objects.order_by("part")] == [2, 2, 2]
    with count_queries() as queries:
        view = view_of(Feed())
    assert len(queries) == 7 and all(is_suspect(view, one) for one in people)
    FilterPart.objects.filter(part=1).delete()  # pruned while it was read
    view = view_of(Feed())
    assert view.filters == () or len(view.filters) == 1
    assert all(is_suspect(view, one) for one in people)


def test_a_session_after_the_newest_expiry_is_not_looked_for(large):
    view = view_of(Feed())
    assert view.newest == large.batch.number
    with mock.patch.object(BloomFilter, "__contains__", side_effect=AssertionError("asked")):
        assert not view.is_demanded_after(large.batch.number, str(large.people[0].pk))


@pytest.mark.parametrize("sessions", SessionAction)
def test_a_cancelled_batch_ends_sessions_and_holds_nobody(small, users, sessions):
    people = users(FEW)
    batch = services.expire_passwords(people, sessions=sessions)
    services.cancel_expiry(batch)
    ended = sessions == SessionAction.END
    assert len(view_of(Feed()).filters) == int(ended)
    for _ in range(2):
        assert [is_suspect(view_of(Feed()), one) for one in people] == [ended] * FEW
        assert pruning.prune_filters() == int(not ended) or not FilterPart.objects.count()
    assert FilterPart.objects.count() == int(ended)


def test_the_filter_of_a_finished_batch_goes(large):
    for user in large.people:
        services.record_password_change(user)
    assert FilterPart.objects.count() == 1
    call_command("pwexpire", "prune", verbosity=0)
    assert not FilterPart.objects.exists()
    assert not is_suspect(view_of(Feed()), large.people[0])


def test_neither_a_warning_nor_a_small_batch_has_a_filter(small, users):
    people = users(FEW)
    services.expire_passwords(people, require=Require.WARN)
    services.expire_passwords(people[1:])
    services.expire_everyone()
    # One of them has an open demand already, so that too few are left.
    services.expire_passwords(people)
    assert not FilterPart.objects.exists()


def test_a_run_that_was_killed_makes_the_filter_again(small, users):
    people = users(FEW)
    with mock.patch.object(batches, "_activate", side_effect=KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt):
            services.expire_passwords(people)
    assert not is_suspect(view_of(Feed()), people[0])  # not in force
    batch = services.resume_expiry(ExpiryBatch.objects.get())
    view = view_of(Feed())
    assert batch.number and FilterPart.objects.count() == 1
    assert len(view.filters) == 1 and all(is_suspect(view, one) for one in people)


def test_a_filter_that_users_were_added_after_is_void(small, users):
    """A release that knows no filters goes on with a batch that had one."""
    people = users(FEW + 1)
    with mock.patch.object(batches, "_activate", side_effect=KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt):
            services.expire_passwords(people[:-1])
    batch = ExpiryBatch.objects.get()
    services.stop_expiry(batch)
    with mock.patch.object(batches, "write_filter"):
        services.resume_expiry(batch, people)
    assert FilterPart.objects.count() == 1
    assert all(is_suspect(view_of(Feed()), one) for one in people)


def test_a_process_that_comes_late_leaves_the_filter(large):
    before = FilterPart.objects.values().get()
    demand_filters.write_filter(large.batch)
    assert FilterPart.objects.values().get() == before


def test_a_filter_that_cannot_be_written_is_no_fault_of_the_expiry(small, users, caplog):
    people = users(FEW)
    with mock.patch.object(demand_filters, "_store_parts", side_effect=OperationalError("full")):
        assert services.expire_passwords(people).number
    assert "filter of a large expiry" in caplog.text
    assert all(is_suspect(view_of(Feed()), one) for one in people)


def test_too_many_single_users_become_a_filter(small, users, monkeypatch):
    monkeypatch.setattr(demand_filters, "FILTER_FROM", 100)
    fresh, people = Feed(), users(SINGLE + 3)
    view_of(fresh)
    for user in people[:SINGLE]:
        newest = services.expire_passwords(user)
    assert view_of(fresh).users.keys() == {str(user.pk) for user in people[:SINGLE]}
    # Those who changed their password are forgotten first.
    services.record_password_change(people[0])
    services.expire_passwords(people[SINGLE])
    assert view_of(fresh).users.keys() == {str(user.pk) for user in people[1 : SINGLE + 1]}
    services.end_sessions(people[0])
    services.cancel_expiry(people[0])
    newest = services.expire_passwords(people[SINGLE + 1 :])
    view = view_of(fresh)
    assert view.users == {} and [number for number, _ in view.filters] == [newest.number]
    assert all(is_suspect(view, user) for user in people)
    assert view_of(Feed()).filters == view.filters


def test_another_fault_of_the_filters_is_a_fault(large):
    with mock.patch.object(demand_view, "savepoint", side_effect=OperationalError("down")):
        with pytest.raises(EnforcementUnavailable):
            view_of(Feed())


def test_what_is_known_holds_while_the_database_is_down(large, client):
    client.force_login(large.people[0])
    store_session(client, password_expired=None, _password_expired_demand=None, _pwexpire=None)
    feed.view(feed.scope())
    with mock.patch.object(Feed, "_read", side_effect=OperationalError("down")):
        assert is_held(client)


def test_the_verdict_that_was_not_asked_for_the_longest_goes_first(monkeypatch):
    monkeypatch.setattr(demand_view, "CLEARANCES_MAX", 2)
    view, verdict = View(), Clearance(1, None, None)
    keys = [(str(number), "", 0, "", False, None) for number in range(3)]
    view.remember(keys[0], verdict)
    view.remember(keys[1], verdict)
    assert view.find_clearance(keys[0]) is verdict
    view.remember(keys[2], verdict)
    assert list(view.clearances) == [keys[0], keys[2]]
    assert view.find_clearance(keys[1]) is None

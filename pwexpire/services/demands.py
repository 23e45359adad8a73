"""Which demands are open: against one user, against many, and as a condition in SQL.

A demand is open if its batch is in force, wants the user (by name, or with everyone and not
excluded), and is newer than what the record of the user has satisfied.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.hashers import UNUSABLE_PASSWORD_PREFIX
from django.db.models import CharField, Count, Exists, ExpressionWrapper, Min, OuterRef, Q, QuerySet

from pwexpire.compiled import ASKED, Compiled
from pwexpire.constants import REQUIRE_ORDER
from pwexpire.feed import feed
from pwexpire.models import BatchState, Demand, Exclusion, ExpiryBatch, PasswordRecord, Require
from pwexpire.services.password_state import NO_PASSWORD

# The end of sessions is a batch as well, and demands nothing.
IS_DEMAND = Q(holds=True) | Q(require=Require.WARN)

# Two cursors, as ``Selection.part`` takes and returns them.
Between = tuple[str, str]


def is_demand(batch: ExpiryBatch) -> bool:
    return batch.holds or batch.require == Require.WARN


def all_users() -> QuerySet[Any]:
    users: QuerySet[Any] = get_user_model()._base_manager.using(feed.using)
    return users.order_by()


def usable_password(column: str = "password") -> Q:
    """Return a condition on users, the same as ``has_password()``."""
    unusable = Q(**{f"{column}__startswith": UNUSABLE_PASSWORD_PREFIX})
    return ~unusable & ~Q(**{f"{column}__in": NO_PASSWORD})


def batches_in_force() -> QuerySet[ExpiryBatch]:
    return ExpiryBatch.objects.using(feed.using).filter(
        number__isnull=False, cancelled_at__isnull=True
    )


def demands_in_force(**filters: Any) -> QuerySet[Demand]:
    """Return the rows of batches that want users by name; a row goes when it is satisfied."""
    return Demand.objects.using(feed.using).filter(
        batch__number__isnull=False, batch__cancelled_at__isnull=True, **filters
    )


def wanting_by_name(user: Any) -> QuerySet[ExpiryBatch]:
    """Return the batches in force that want ``user``: a primary key, or a reference to one."""
    return batches_in_force().filter(demands__user=user)


def wanting_with_everyone(user: Any) -> QuerySet[ExpiryBatch]:
    """Return the batches on everyone that do not exclude ``user``.

    Cancelled ones too: the end of sessions outlives the cancellation.
    """
    excluded = Exclusion.objects.filter(batch=OuterRef("pk"), user=user)
    return ExpiryBatch.objects.using(feed.using).filter(
        ~Exists(excluded), everyone=True, number__isnull=False
    )


def _unsatisfied(user: Any) -> Q:
    """Return a condition on batches."""
    met = PasswordRecord.objects.using(feed.using).filter(
        user=user, satisfied__gte=OuterRef("number")
    )
    return ~Q(Exists(met))


def open_batches(pk: Any) -> list[ExpiryBatch]:
    """Return the batches that are open against one user."""
    names = [field.attname for field in ExpiryBatch._meta.concrete_fields]
    rows = [*OPEN_BY_NAME.rows(feed.using, pk), *OPEN_WITH_EVERYONE.rows(feed.using, pk)]
    return [ExpiryBatch.from_db(feed.using, names, row) for row in rows]


OPEN_BY_NAME = Compiled(lambda: wanting_by_name(ASKED).filter(_unsatisfied(ASKED)))
OPEN_WITH_EVERYONE = Compiled(
    lambda: wanting_with_everyone(ASKED).filter(_unsatisfied(ASKED), cancelled_at__isnull=True)
)


def find_open_batches(
    pks: Collection[Any], satisfied: Mapping[Any, int] | None = None
) -> dict[Any, list[ExpiryBatch]]:
    """Return primary key -> the batches that are open against that user; five statements at most.

    ``satisfied``: up to which number, where the records of these users were read already.
    """
    wanted = [*_list_wanted_by_name(pks), *_list_wanted_with_everyone(pks)]
    if wanted and satisfied is None:
        records = PasswordRecord.objects.using(feed.using).filter(user__in=pks)
        satisfied = dict(records.values_list("user_id", "satisfied"))
    opened: dict[Any, list[ExpiryBatch]] = defaultdict(list)
    for pk, batch in wanted:
        if (batch.number or 0) > (satisfied or {}).get(pk, 0):
            opened[pk].append(batch)
    return opened


def _list_wanted_by_name(pks: Collection[Any]) -> list[tuple[Any, ExpiryBatch]]:
    pairs = list(demands_in_force(user__in=pks).values_list("user_id", "batch_id"))
    batches = batches_in_force().in_bulk({batch for _, batch in pairs})
    # One of them may be deleted between the two statements.
    return [(pk, batches[batch]) for pk, batch in pairs if batch in batches]


def _list_wanted_with_everyone(pks: Collection[Any]) -> list[tuple[Any, ExpiryBatch]]:
    everyone = list(batches_in_force().filter(everyone=True))
    if not everyone:
        return []
    out = Exclusion.objects.using(feed.using).filter(user__in=pks, batch__in=everyone)
    excluded = set(out.values_list("user_id", "batch_id"))
    return [(pk, batch) for pk in pks for batch in everyone if (pk, batch.pk) not in excluded]


def highest_open(pks: Collection[Any]) -> dict[Any, int]:
    """Return primary key -> number of the highest open demand that holds that user."""
    found = {
        pk: max((one.number or 0 for one in batches if one.holds), default=0)
        for pk, batches in find_open_batches(pks).items()
    }
    return {pk: number for pk, number in found.items() if number}


def lowest_open(user: Any, satisfies: Callable[[str], bool]) -> int | None:
    """Return the lowest number of the open demands on one user that are not satisfied."""
    found = [one for one in open_batches(user.pk) if one.holds and not satisfies(one.require)]
    return min((one.number or 0 for one in found), default=None)


def open_demand(least: str = Require.CHANGE, between: Between | None = None) -> Q:
    """Return a condition on users: a demand for at least ``least`` is open against them.

    ``between``: the cursors between which the keys of all users lie who are asked about.
    """
    return _find_demanded(least, between, Q())


def open_demand_on_password(least: str, between: Between | None) -> Q:
    """The same, of users who have a password."""
    # Inside the question, so that the users of whom it is not true are found by one join as well:
    # NOT (password AND demand) would be a question for each user.
    return _find_demanded(least, between, usable_password("stored"))


def _find_demanded(least: str, between: Between | None, usable: Q) -> Q:
    asked = REQUIRE_ORDER[REQUIRE_ORDER.index(least) :]
    asks = IS_DEMAND & Q(require__in=asked)
    lowest, everyone_asked = (
        batches_in_force()
        .filter(asks)
        .aggregate(
            lowest=Min("number", filter=~Q(state=BatchState.FINISHED)),
            everyone=Count("pk", filter=Q(everyone=True)),
        )
        .values()
    )
    stored = ExpressionWrapper(OuterRef("password"), output_field=CharField())
    # The bounds again, of demands and records: with statistics that are older than a large batch
    # a database may choose to read all of them for each chunk of users.
    bounds = {} if between is None else _bounds_of_users(*between)
    # Tied to the user of the demand, not of the outer query: then it is a join, not a loop.
    # The lowest number is for the database, which finds no record or few with it.
    satisfied = PasswordRecord.objects.filter(
        Q(satisfied__gte=lowest or 0),
        user=OuterRef("user"),
        satisfied__gte=OuterRef("batch__number"),
        **bounds,
    )
    by_name = demands_in_force(user=OuterRef("pk"), batch__require__in=asked, **bounds)
    by_name = by_name.filter(Q(batch__holds=True) | Q(batch__require=Require.WARN))
    condition = Q(Exists(by_name.filter(~Exists(satisfied)).alias(stored=stored).filter(usable)))
    # Most of the time there is none, and the question is dear.
    if everyone_asked:
        everyone = wanting_with_everyone(OuterRef(OuterRef("pk"))).filter(
            asks, _unsatisfied(OuterRef(OuterRef("pk"))), cancelled_at__isnull=True
        )
        condition |= Q(Exists(everyone.alias(stored=stored).filter(usable)))
    return condition


def _bounds_of_users(after: str, last: str) -> dict[str, Any]:
    to_python = get_user_model()._meta.pk.to_python
    bounds = {"user__lte": to_python(last)}
    return {**bounds, "user__gt": to_python(after)} if after else bounds


def members(batch: ExpiryBatch) -> QuerySet[Any]:
    """Return the users whom a batch wants by name and has not been satisfied by."""
    return all_users().filter(pwexpire_demands__batch=batch)


def users_wanted_by(batch: ExpiryBatch) -> QuerySet[Any]:
    """Return the users against whom the demand of a batch is open, as if it were in force."""
    users = members(batch)
    if batch.everyone:
        users = all_users().exclude(pwexpire_exclusions__batch=batch)
    users = users.filter(usable_password())
    return users.exclude(pwexpire_record__satisfied__gte=batch.number or 0)

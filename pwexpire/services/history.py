"""The passwords of each user, as the hashes that the site's hashers made of them.

A password is added when it is set, so the newest row is the present one, and a race of two changes
loses none. As many as the longest policy asks for are kept before it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import takewhile
from typing import Any

from django.contrib.auth.hashers import check_password, is_password_usable
from django.contrib.auth.password_validation import get_default_password_validators
from django.db.models import Count, QuerySet
from django.utils import timezone
from django.views.decorators.debug import sensitive_variables

from pwexpire.conf import conf
from pwexpire.feed import feed
from pwexpire.models import OldPassword, PasswordRecord
from pwexpire.policy import Policy
from pwexpire.retries import in_transaction
from pwexpire.services.demands import all_users
from pwexpire.services.selection import CHUNK


class KeepsHistory:
    """A validator that looks at old passwords. ``length``: how many, ``None``: the policy says."""

    length: int | None = None


def policy_of(user: Any) -> Policy:
    """The one that counts for ``user``; an empty one where none does."""
    policy_for, applies = conf.policy, conf.applies_to
    if policy_for is None or (applies is not None and not applies(user)):
        return Policy()
    return policy_for(user).policy


def length_kept(user: Any) -> int:
    """How many old passwords are stored, so that any policy finds what it asks for."""
    return _length_for_all() if _is_same_for_all() else max(_length_for_all(), _length_of(user))


def _is_same_for_all() -> bool:
    return bool(conf.policies) or conf.policy is None


def _length_for_all() -> int:
    asked = [policy.history for policy in conf.policies]
    for validator in get_default_password_validators():
        if isinstance(validator, KeepsHistory):
            asked.append(validator.length or 0)
    return max(asked, default=0)


def _length_of(user: Any) -> int:
    policy_for = conf.policy
    return policy_for(user).policy.history if policy_for is not None else 0


def places(length: int) -> int:
    """How many hashes are kept for ``length`` old passwords: the present one is there as well."""
    return length + 1 if length else 0


def stored_hash(user: Any) -> str:
    users = all_users().filter(pk=user.pk)
    return users.values_list("password", flat=True).first() or "!"


def seed_history(user: Any, *, present: str, newest: str | None) -> None:
    """Make the present password the newest of the history, where it is not.

    It comes from before the history, or nobody saw it being set. Called before the save: what is
    there then is a fact, whatever becomes of the save or of another one at the same time.
    """
    if newest == present or not is_password_usable(present):
        return
    rows = _rows_of(user.pk)
    rows.filter(encoded=present).delete()
    rows.create(user_id=user.pk, encoded=present, created_at=timezone.now())


@sensitive_variables()
def keep_new(user: Any, *, before: str, after: str, given: str | None) -> None:
    """Add the password that was just set, and remove what is beyond the length.

    ``before``: what it took the place of, ``given``: the password itself. Where another process
    saved in between, nothing is lost: each adds its own. A form that was sent twice sets the same
    password, which takes one place.
    """
    rows, present = _rows_of(user.pk), stored_hash(user)
    if present != after and _is_of(given, present):
        after = present  # sent twice, and the other hash was written last
    newest, beyond = _read_newest(rows)
    if after not in newest:
        meanwhile = takewhile(lambda encoded: encoded != before, newest)
        same = next((encoded for encoded in meanwhile if _is_of(given, encoded)), None)
        if same is None:
            rows.create(user_id=user.pk, encoded=after, created_at=timezone.now())
            newest = {after: 0, **newest}
        elif after == present:
            rows.filter(encoded=same).update(encoded=after)
    beyond += list(newest.values())[places(length_kept(user)) :]
    if beyond:
        rows.filter(pk__in=beyond).delete()


def _is_of(given: str | None, encoded: str) -> bool:
    return given is not None and check_password(given, encoded)


def _read_newest(rows: QuerySet[OldPassword]) -> tuple[dict[str, int], list[int]]:
    """Return hash -> primary key, the newest first, and the rows of hashes that are there twice.

    Two processes may have added the same one: one found it stored, the other set it.
    """
    newest: dict[str, int] = {}
    twice = []
    for pk, encoded in rows.order_by("-pk").values_list("pk", "encoded"):
        if newest.setdefault(encoded, pk) != pk:
            twice.append(pk)
    return newest, twice


def rename_kept(user: Any, *, before: str, after: str) -> None:
    """Note that the same password has another hash now; it keeps its place."""

    def rename() -> None:
        # Locked, so that a change that is about to add the hash before has done so.
        records = PasswordRecord.objects.using(feed.using).select_for_update()
        records.filter(pk=user.pk).first()
        _rows_of(user.pk).filter(encoded=before).update(encoded=after)

    in_transaction(rename, using=feed.using)


def _rows_of(pk: Any) -> QuerySet[OldPassword]:
    return OldPassword.objects.using(feed.using).filter(user_id=pk)


def keep_present(user: Any) -> None:
    """Keep the password that was set where no save was seen, if a history is wanted."""
    present = stored_hash(user) if length_kept(user) else "!"
    if is_password_usable(present):
        keep_new(user, before="", after=present, given=None)
    else:
        forget_old(user)


def forget_old(user: Any) -> None:
    """Where none is wanted any more, none stays."""
    if not length_kept(user):
        _rows_of(user.pk).delete()


def old_hashes(user: Any, length: int, *, present: str) -> list[str]:
    """Return the last ``length`` passwords before the ``present`` one, the newest first."""
    if not length:
        return []
    newest = _rows_of(user.pk).exclude(encoded=present).order_by("-pk")
    return list(dict.fromkeys(newest.values_list("encoded", flat=True)))[:length]


def prune_history(chunk: int = CHUNK) -> int:
    """Remove old passwords beyond the length, for everybody; how many went.

    ``chunk``: of so many users at a time, each of them in a transaction of its own.
    """
    removed = 0
    for lengths in _too_many(chunk):
        rows = OldPassword.objects.using(feed.using).filter(user_id__in=lengths)
        seen: Counter[Any] = Counter()
        beyond = []
        newest = rows.order_by("user_id", "-pk").values_list("pk", "user_id")
        for pk, user_id in newest:
            seen[user_id] += 1
            if seen[user_id] > places(lengths[user_id]):
                beyond.append(pk)
        for start in range(0, len(beyond), CHUNK):
            removed += _remove(beyond[start : start + CHUNK])
    return removed


def _too_many(chunk: int) -> Iterator[dict[Any, int]]:
    """Users who may have more rows than they should: primary key -> length."""
    for_all, same = _length_for_all(), _is_same_for_all()
    owners = (
        OldPassword.objects.using(feed.using)
        .values("user_id")
        .annotate(rows=Count("pk"))
        .filter(rows__gt=places(for_all))
        .order_by("user_id")
        .values_list("user_id", flat=True)
    )
    pks = list(owners[:chunk])
    while pks:
        if same:
            yield dict.fromkeys(pks, for_all)
        else:
            users = all_users().filter(pk__in=pks)
            yield {user.pk: max(for_all, _length_of(user)) for user in users}
        pks = list(owners.filter(user_id__gt=pks[-1])[:chunk])


def _remove(pks: list[int]) -> int:
    rows = OldPassword.objects.using(feed.using).filter(pk__in=pks)
    removed: int = in_transaction(rows.delete, using=feed.using)[0]
    return removed

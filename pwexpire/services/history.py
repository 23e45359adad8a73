"""The passwords that were, as the hashes that the site's hashers made of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from django.contrib.auth.hashers import is_password_usable
from django.contrib.auth.password_validation import get_default_password_validators
from django.db import connections
from django.db.models import Count
from django.utils import timezone

from pwexpire.conf import conf
from pwexpire.feed import feed
from pwexpire.models import OldPassword
from pwexpire.policy import Policy
from pwexpire.retries import in_transaction
from pwexpire.services.selection import CHUNK, all_users


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


def stored_hash(user: Any) -> str:
    users = all_users().filter(pk=user.pk)
    return users.values_list("password", flat=True).first() or "!"


def locked_hash(user: Any) -> str:
    """The same, and nobody else replaces it until the end of the transaction that this is in."""
    no_key = connections[feed.using].features.has_select_for_no_key_update
    users = all_users().select_for_update(no_key=no_key).filter(pk=user.pk)
    return users.values_list("password", flat=True).first() or "!"


def keep_old(user: Any, old: str) -> None:
    """Store the hash that was, and remove what is beyond the length.

    Called in the transaction that replaces it, with the user's row locked.
    """
    if not is_password_usable(old):
        return
    rows = OldPassword.objects.using(feed.using).filter(user_id=user.pk)
    rows.filter(encoded=old).delete()  # put back behind Django's back
    rows.create(user_id=user.pk, encoded=old, created_at=timezone.now())
    newest = rows.order_by("-pk").values_list("pk", flat=True)
    beyond = list(newest[length_kept(user) :])
    if beyond:
        rows.filter(pk__in=beyond).delete()


def forget_old(user: Any) -> None:
    """Where none is wanted any more, none stays."""
    if not length_kept(user):
        OldPassword.objects.using(feed.using).filter(user_id=user.pk).delete()


def old_hashes(user: Any, length: int) -> list[str]:
    """The last ``length`` of them, the newest first."""
    rows = OldPassword.objects.using(feed.using).filter(user_id=user.pk)
    newest = rows.order_by("-pk").values_list("encoded", flat=True)
    return list(newest[:length]) if length else []


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
            if seen[user_id] > lengths[user_id]:
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
        .filter(rows__gt=for_all)
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

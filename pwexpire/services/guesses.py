"""The present password in a request: counted as a try, verified once, and then remembered."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from django.contrib.auth.hashers import check_password
from django.core.exceptions import SuspiciousOperation
from django.http import HttpRequest
from django.http.request import RawPostDataException
from django.views.decorators.debug import sensitive_variables

from pwexpire.feed import feed
from pwexpire.retries import retried
from pwexpire.services.attempts import give_back_attempt, take_attempt, wrong_old_password
from pwexpire.services.history import stored_hash
from pwexpire.services.password_changes import ChangedBy, change_context, find_changed_by

FORM_TYPES = ("application/x-www-form-urlencoded", "multipart/form-data")
# What the field for the present password is called by Django, djoser, allauth and others, without
# the underscore of those who have one.
OLD_PASSWORD_FIELDS = frozenset({"oldpassword", "currentpassword"})


def is_old_password_field(name: str) -> bool:
    """A field of a form with a prefix counts as well."""
    return name.rpartition("-")[2].replace("_", "").lower() in OLD_PASSWORD_FIELDS


@sensitive_variables()
def read_old_passwords(request: HttpRequest) -> list[str] | None:
    """What was sent as the present password; ``None`` if the body is nothing that can be read."""
    sent: Any = request.POST
    if request.content_type not in FORM_TYPES:
        if "json" not in (request.content_type or ""):
            return None
        try:
            sent = json.loads(request.body)
        except (RawPostDataException, SuspiciousOperation, ValueError):
            return None
    if not hasattr(sent, "items"):
        return []
    return [str(value) for name, value in sent.items() if is_old_password_field(name)]


@sensitive_variables()
def verify_old_password(user: Any, given: str) -> bool:
    """Whether ``given`` is the password of ``user``; each wrong one is counted, in their record.

    Counted before it is looked at: of many tries at the same time no more than the limit are looked
    at. In one request it is done once, whatever asks for it.
    """
    current = change_context.get()
    if current is not None and current.counted:
        return bool(current.knows_old)
    right = retried(partial(take_attempt, user), using=feed.using) and check_password(
        given, stored_hash(user)
    )
    if right:
        give_back_attempt(user)
    if current is not None:
        current.knows_old, current.counted = right, True
    return right


@sensitive_variables()
def verify_only_one(user: Any, given: list[str]) -> bool:
    """As ``verify_old_password``. Of several all are wrong: which the page takes is unknown."""
    if len(given) == 1:
        return verify_old_password(user, given[0])
    current = change_context.get()
    assert current is not None  # the middleware asks
    current.knows_old = False
    return False


def follow_up_wrong(request: HttpRequest) -> bool:
    """Report the wrong old password of this request, once; true if the session was ended."""
    current = change_context.get()
    if current is None or current.reported:
        return False
    current.reported = True
    return wrong_old_password(request, taken=current.counted)


@sensitive_variables()
def may_hear_of_old(user: Any) -> bool:
    """Whether something may be said that depends on the stored hashes of ``user``.

    In a session of their own nothing is said before the present password was sent as well: else
    every guess at it could be tried as a new password, uncounted. What was sent in no form and in
    no JSON cannot be looked into.
    """
    current = change_context.get()
    request = current.request if current is not None else None
    if current is None or request is None or find_changed_by(user) is not ChangedBy.OWN_SESSION:
        return True
    if current.knows_old is None:
        given = read_old_passwords(request)
        if given is None:
            return True
        # One hashing whatever is sent, so that a form cannot be stuffed with guesses.
        current.knows_old = len(given) == 1 and check_password(given[0], stored_hash(user))
    return current.knows_old

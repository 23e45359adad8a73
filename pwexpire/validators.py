"""Validators for ``AUTH_PASSWORD_VALIDATORS``: no password comes back, and none too soon."""

from __future__ import annotations

from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.hashers import check_password
from django.core.exceptions import ImproperlyConfigured, ValidationError
from django.utils import timezone
from django.utils.timesince import timeuntil
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from pwexpire.conf import conf
from pwexpire.feed import feed
from pwexpire.models import PasswordRecord
from pwexpire.policy import HISTORY_MAX
from pwexpire.services.guesses import may_hear_of_old
from pwexpire.services.history import KeepsHistory, old_hashes, policy_of, stored_hash
from pwexpire.services.password_changes import change_context, set_by_other
from pwexpire.services.status import read_password_state


class NotCurrentPasswordValidator:
    """Refuses the password that the user has; costs one hashing. Says nothing of a new user.

    Raises ``ValidationError`` with the code ``password_reused``.
    """

    # It compares with what is stored, so nothing can be said at a login.
    at_login = False

    def validate(self, password: str, user: Any = None) -> None:
        if _is_saved(user) and may_hear_of_old(user):
            _refuse_current(password, user)

    def get_help_text(self) -> str:
        return _("Your new password must not be the one that you have now.")


class PasswordHistoryValidator(KeepsHistory):
    """Refuses the password that the user has and the last ones before it, and a change too soon.

    ``length``: how many before the present one, 0 to 24; ``None`` (default): as many as the
    ``history`` of the user's policy. Each of them costs one hashing at the strength that it was
    made with, until one matches: with ``length=24`` and hashes of 0.2 s a change takes 5 s.

    The ``min_age`` of the policy counts for changes by the users themselves. It does not where a
    change is demanded of them, where somebody else chose the password, and where somebody else is
    at it now: staff, who may change users, or a command.

    Says nothing of a new user. Raises ``ValidationError`` with the code ``password_reused``
    (``length``) or ``password_too_young`` (``min_age``, ``wait``), ``ImproperlyConfigured`` for
    another ``length``.
    """

    at_login = False

    def __init__(self, length: int | None = None) -> None:
        if length is not None:
            _check_length(length)
        self.length = length

    def validate(self, password: str, user: Any = None) -> None:
        if not _is_saved(user) or not may_hear_of_old(user):
            return
        _refuse_too_young(user)
        present = _refuse_current(password, user)
        length = policy_of(user).history if self.length is None else self.length
        for encoded in old_hashes(user, length, present=present):
            if check_password(password, encoded):
                raise ValidationError(
                    _one_of_the_last(length), code="password_reused", params={"length": length}
                )

    def get_help_text(self) -> str:
        """Of a policy that depends on the user it says no number: Django asks for nobody."""
        length = self.length
        if length is None:
            asked = {policy.history for policy in conf.policies}
            known = conf.policy is None or len(asked) == 1
            if not known:
                return _("Your new password must not be one that you had before.")
            length = max(asked, default=0)
        if not length:
            return _("Your new password must not be the one that you have now.")
        return ngettext(
            "Your new password must be neither the one that you have now nor the one before it.",
            "Your new password must be neither the one that you have now "
            "nor one of the %(length)d before it.",
            length,
        ) % {"length": length}


def _check_length(length: object) -> None:
    if not isinstance(length, int) or isinstance(length, bool) or not 0 <= length <= HISTORY_MAX:
        raise ImproperlyConfigured(
            f"The option length of PasswordHistoryValidator must be a whole number from 0 to "
            f"{HISTORY_MAX}, not {length!r}."
        )


def _one_of_the_last(length: int) -> str:
    return ngettext(
        "The new password must not be the one that you had before.",
        "The new password must not be one of the last %(length)d that you had.",
        length,
    )


def _is_saved(user: Any) -> bool:
    return isinstance(user, get_user_model()) and user.pk is not None and not user._state.adding


def _refuse_current(password: str, user: Any) -> str:
    """Compare with the stored hash, and return it: on ``user`` a newer one may be already set."""
    present = stored_hash(user)
    if check_password(password, present):
        raise ValidationError(
            _("The new password must not be the one that you have now."),
            code="password_reused",
            params={"length": 0},
        )
    return present


def _refuse_too_young(user: Any) -> None:
    min_age = policy_of(user).min_age
    if min_age is None or set_by_other(user):
        return
    current, password_state = change_context.get(), read_password_state(user)
    if (
        password_state.held
        or password_state.changed_at is None
        or (current is not None and current.was_held)
    ):
        return
    # A new user has a time of change as well, but has not changed anything.
    own = PasswordRecord.objects.using(feed.using).filter(
        pk=user.pk, renewed_at__isnull=False, given_at__isnull=True
    )
    again = password_state.changed_at + min_age
    if timezone.now() < again and own.exists():
        raise ValidationError(
            _("You changed your password a short while ago. You can change it again in %(wait)s."),
            code="password_too_young",
            params={"min_age": min_age, "wait": timeuntil(again)},
        )

"""What an expiry may be made of."""

from __future__ import annotations

from typing import Any

from django.utils import timezone

from pwexpire.conf import conf
from pwexpire.constants import LOCKING, REQUIRE_ORDER
from pwexpire.exceptions import InvalidRequest
from pwexpire.models import ExpiryBatch, Reason, Require, SessionAction
from pwexpire.services.status import check_saved


def draft_batch(**given: Any) -> ExpiryBatch:
    """Return an unsaved batch of what is ``given``. Raises ``InvalidRequest``; writes nothing."""
    require = given["require"]
    _check_reason(given["reason"])
    _check_require(require)
    if require in LOCKING:
        given["sessions"] = SessionAction.END
    elif require == Require.WARN:
        given["holds"] = False
    _check_sessions(given["sessions"], require)
    if not isinstance(given["note"], str):
        raise InvalidRequest("note must be a string.")
    actor = given.pop("actor")
    if actor is not None:
        check_saved(actor)
        # By its key: the object may be from a replica, and routers refuse what that relates to.
        given["actor_id"] = actor.pk
    return ExpiryBatch(**given, created_at=timezone.now())


def _check_reason(reason: Any) -> None:
    known = {*Reason.values, *conf.reasons}
    if reason not in known:
        raise InvalidRequest(f"Unknown reason {reason!r}: use one of {', '.join(sorted(known))}.")


def _check_require(require: Any) -> None:
    if require not in Require.values:
        known = ", ".join(REQUIRE_ORDER)
        raise InvalidRequest(f"Unknown require {require!r}: use one of {known}.")
    if require in LOCKING and not conf.refuses_logins:
        lax = ", ".join(conf.lax_backends)
        raise InvalidRequest(
            f"The require {require} needs a backend that refuses the login"
            f"{f', and {lax} would not' if lax else ''}: put "
            "pwexpire.backends.PasswordExpiryBackend in place of Django's ModelBackend in "
            "AUTHENTICATION_BACKENDS, and PasswordExpiryMixin before any other."
        )


def _check_sessions(sessions: Any, require: str) -> None:
    if sessions not in SessionAction.values:
        raise InvalidRequest(f"Unknown sessions {sessions!r}: use flag or end.")
    if require == Require.WARN and sessions == SessionAction.END:
        raise InvalidRequest("The require warn ends no sessions: use flag.")

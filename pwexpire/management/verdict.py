"""Whether a user is held, and why, in sentences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from pwexpire.conf import conf
from pwexpire.constants import LOCKING
from pwexpire.feed import feed
from pwexpire.management.formats import show_plain
from pwexpire.models import Exclusion, ExpiryBatch, Reason
from pwexpire.services.password_state import PasswordState, has_password
from pwexpire.services.pruning import future_changes
from pwexpire.services.status import PasswordStatus, password_status, read_password_state

FUTURE = (
    "The stored date of the last change is still to come: a clock was wrong. It counts as now, and "
    "manage.py pwexpire prune corrects it."
)


def explain(user: Any) -> dict[str, Any]:
    status, name = password_status(user), user.get_username()
    password_state = read_password_state(user)
    # No number is 0; None would find the batches that are not in force.
    batch = ExpiryBatch.objects.using(feed.using).filter(number=password_state.demand).first()
    out = Exclusion.objects.using(feed.using).filter(user=user.pk, batch__cancelled_at=None)
    excluded = list(out.order_by("batch").values_list("batch", flat=True))
    sentences = [_explain_verdict(user, status, batch), *_explain_passing(password_state)]
    if conf.report_only:
        sentences.append('PWEXPIRE_ENFORCE is "report": nobody is held, it is only counted.')
    elif not conf.enforce:
        sentences.append("PWEXPIRE_ENFORCE is False: nobody is held.")
    if not getattr(user, "is_active", True):
        sentences.append(f"{name} is not active.")
    if excluded:
        batches = ", ".join(map(str, excluded))
        sentences.append(f"Excluded from the demand on everyone of batch {batches}.")
    if future_changes().filter(pk=user.pk).exists():
        sentences.append(FUTURE)
    if status.changed_at:
        sentences.append(f"The last change was on {show_plain(status.changed_at)}.")
    if status.expires_at:
        sentences.append(f"By its age the password expires on {show_plain(status.expires_at)}.")
    return {
        "user": name,
        "sentences": sentences,
        "batch": batch.pk if batch else None,
        "excluded_from": excluded,
        **asdict(status),
    }


def _explain_verdict(user: Any, status: PasswordStatus, batch: ExpiryBatch | None) -> str:
    name = user.get_username()
    if not has_password(user):
        return f"{name} is free: there is no usable password."
    if conf.applies_to is not None and not conf.applies_to(user):
        return f"{name} is free: PWEXPIRE_APPLIES_TO says so."
    if not status.must_change:
        return f"{name} is free: nothing is demanded."
    source = "by its age"
    if status.reason == Reason.FIRST_USE:
        source = "somebody else chose the password"
    if batch is not None:
        source = f"by batch {batch.pk}"
    since = f" since {show_plain(status.since)}" if status.since else ""
    locked = ""
    if status.require in LOCKING:
        locked = f" The password is withdrawn ({status.require}): a login with it is refused."
    grace = f" {status.grace_logins} more logins are possible." if status.grace_logins else ""
    held = "is held" if conf.enforce else "would be held"
    return f"{name} {held}{since}: {status.reason}, {source}.{grace}{locked}"


def _explain_passing(password_state: PasswordState) -> Iterator[str]:
    """Which sessions of a user pass who is held, and which are held of one who is free."""
    if not conf.enforce:
        return
    if password_state.held_by_age_alone and password_state.chosen.policy.grace_logins:
        yield "A session that a grace login opened passes."
    if password_state.held and conf.exempt_backends:
        yield f"A session that {', '.join(sorted(conf.exempt_backends))} opened passes."
    if password_state.in_doubt:
        others = "answered 503" if conf.fail_closed else "free"
        yield (
            "PWEXPIRE_POLICY cannot be read for this user: a session that carries the flag is "
            f"held, others are {others} unless something else is demanded."
        )

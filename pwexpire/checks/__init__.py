"""What ``manage.py check`` says of a site; each with an id and a hint."""

from __future__ import annotations

from collections.abc import Callable

from django.core.checks import CheckMessage

from pwexpire.checks.configuration import (
    check_backends,
    check_enforced,
    check_lockout_hook,
    check_settings,
    check_tasks,
)
from pwexpire.checks.policies import (
    check_contradictions,
    check_length,
    check_refusing,
    check_second_factor,
    check_validators,
)
from pwexpire.checks.site import (
    check_change_url,
    check_databases,
    check_dead_ends,
    check_exempt_views,
    check_middleware,
    check_session_engine,
    check_user_admin,
    check_way_out,
    check_well_known,
)

ALL: list[Callable[..., list[CheckMessage]]] = [
    check_middleware,
    check_change_url,
    check_way_out,
    check_dead_ends,
    check_well_known,
    check_session_engine,
    check_settings,
    check_exempt_views,
    check_lockout_hook,
    check_databases,
    check_user_admin,
    check_enforced,
    check_tasks,
    check_backends,
    check_contradictions,
    check_validators,
    check_refusing,
    check_length,
    check_second_factor,
]

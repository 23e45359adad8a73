from __future__ import annotations

from pwexpire.models import ExpiryBatch, PasswordRecord, Reason, Require, SessionAction
from pwexpire.services.aio import (
    aannounce_expiry,
    acancel_expiry,
    aend_sessions,
    aexpire_everyone,
    aexpire_passwords,
    aflag_sessions,
    anotify_users,
    apassword_status,
    apreview_expiry,
    arecord_password_change,
    aresume_expiry,
    astop_expiry,
)
from pwexpire.services.batches import (
    ExpiryPreview,
    end_sessions,
    expire_everyone,
    expire_passwords,
    preview_expiry,
    resume_expiry,
    stop_expiry,
)
from pwexpire.services.cancellations import cancel_expiry
from pwexpire.services.changes import record_password_change
from pwexpire.services.notices import NoticeReport, announce_expiry, notify_users
from pwexpire.services.sessions import FlagReport, flag_sessions
from pwexpire.services.status import PasswordStatus, password_status

__all__ = [
    "ExpiryBatch",
    "ExpiryPreview",
    "FlagReport",
    "NoticeReport",
    "PasswordRecord",
    "PasswordStatus",
    "Reason",
    "Require",
    "SessionAction",
    "aannounce_expiry",
    "acancel_expiry",
    "aend_sessions",
    "aexpire_everyone",
    "aexpire_passwords",
    "aflag_sessions",
    "announce_expiry",
    "anotify_users",
    "apassword_status",
    "apreview_expiry",
    "arecord_password_change",
    "aresume_expiry",
    "astop_expiry",
    "cancel_expiry",
    "end_sessions",
    "expire_everyone",
    "expire_passwords",
    "flag_sessions",
    "notify_users",
    "password_status",
    "preview_expiry",
    "record_password_change",
    "resume_expiry",
    "stop_expiry",
]

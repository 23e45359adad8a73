"""The services: expire, cancel, flag and ask. Each has a twin for async code."""

from __future__ import annotations

from asgiref.sync import sync_to_async

from pwexpire.models import ExpiryBatch, PasswordRecord, Reason, Require, SessionAction
from pwexpire.services.batches import (
    end_sessions,
    expire_everyone,
    expire_passwords,
    resume_expiry,
    stop_expiry,
)
from pwexpire.services.cancellations import cancel_expiry
from pwexpire.services.notices import NoticeReport, announce_expiry, notify_users
from pwexpire.services.password_changes import record_password_change
from pwexpire.services.preview import ExpiryPreview, preview_expiry
from pwexpire.services.sessions import FlagReport, flag_sessions
from pwexpire.services.status import PasswordStatus, password_status

# Each runs in the thread that holds the database connection.
aexpire_passwords = sync_to_async(expire_passwords)
aexpire_everyone = sync_to_async(expire_everyone)
apreview_expiry = sync_to_async(preview_expiry)
aresume_expiry = sync_to_async(resume_expiry)
astop_expiry = sync_to_async(stop_expiry)
acancel_expiry = sync_to_async(cancel_expiry)
aflag_sessions = sync_to_async(flag_sessions)
aend_sessions = sync_to_async(end_sessions)
apassword_status = sync_to_async(password_status)
arecord_password_change = sync_to_async(record_password_change)
anotify_users = sync_to_async(notify_users)
aannounce_expiry = sync_to_async(announce_expiry)

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

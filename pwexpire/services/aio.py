"""The same verbs for async code; each runs in the thread that holds the database connection."""

from __future__ import annotations

from asgiref.sync import sync_to_async

from pwexpire.services.batches import (
    end_sessions,
    expire_everyone,
    expire_passwords,
    preview_expiry,
    resume_expiry,
    stop_expiry,
)
from pwexpire.services.cancellations import cancel_expiry
from pwexpire.services.changes import record_password_change
from pwexpire.services.notices import announce_expiry, notify_users
from pwexpire.services.sessions import flag_sessions
from pwexpire.services.status import password_status

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

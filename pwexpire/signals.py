"""Signals of pwexpire. All are sent after the commit, with ``send_robust``."""

from __future__ import annotations

from django.dispatch import Signal

# sender: ExpiryBatch. batch: the ExpiryBatch that took effect;
# user_ids: list of primary keys, or None for everyone and above 1,000 users.
passwords_expired = Signal()

# sender: type(user). user: the user whose password was really changed.
password_changed = Signal()

# sender: type(user). request; user_id: primary key; response: the answer that replaces the view's.
expiry_enforced = Signal()

# sender: type(user). request; user_id: primary key of the user whose session lost its flag.
expiry_cleared = Signal()

# sender: ExpiryBatch. user_ids: list of primary keys, or None for a whole batch or above 1,000.
expiry_cancelled = Signal()

# sender: type(user). user; expires_at: aware datetime; step: the timedelta of Policy.warn_before.
password_about_to_expire = Signal()

from __future__ import annotations

SESSION_FLAG = "password_expired"
SESSION_DEMAND = "_password_expired_demand"
SESSION_STAMP = "_pwexpire"
SESSION_ENDED = "_pwexpire_ended"
EXEMPT_ATTRIBUTE = "password_expiry_exempt"
PROBLEM_CODE = "password_expired"
RESET_CODE = "password_reset_required"
DENIED_CODE = "password_denied"
ENDED_CODE = "session_ended"
# Above this many, signals carry no ids.
SIGNAL_IDS_MAX = 1_000
# How a change may be demanded, the mildest first.
REQUIRE_ORDER = ("warn", "change", "reset", "deny")
# After these the user cannot log in with the password that they have.
LOCKING = ("reset", "deny")
# What the admin actions ask for, and the command of the --actor.
PERMISSION = "pwexpire.expire_passwords"
# The admin action works for so long in a request, and finishes the chunk that it is at: two seconds
# at most.
REQUEST_SECONDS = 1.5

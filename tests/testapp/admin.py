from __future__ import annotations

from pwexpire.admin import extend_user_admin

extend_user_admin()

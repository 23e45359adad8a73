"""Holds the sessions of users whose password has to be changed."""

from __future__ import annotations

from pwexpire.middleware.password_expiry import PasswordExpiryMiddleware

__all__ = ["PasswordExpiryMiddleware"]

from __future__ import annotations


class PasswordExpiryError(Exception):
    """Base of everything that pwexpire raises on purpose."""


class InvalidRequest(PasswordExpiryError, ValueError):
    """An argument of a service cannot be meant as it was given. Nothing was written."""


class BatchNotResumable(PasswordExpiryError):
    """The batch cannot go on without its selection, or was cancelled. Nothing was written."""


class ChangeURLNotFound(PasswordExpiryError):
    """``PWEXPIRE_CHANGE_URL`` does not lead to a page that can be shown."""


class EnforcementUnavailable(PasswordExpiryError):
    """The enforcement state could not be read in time, so nothing is known about a session."""


class TasksUnavailable(PasswordExpiryError):
    """Background work was asked for, and there is nothing that could do it."""

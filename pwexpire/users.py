"""Which objects are users whom our tables know."""

from __future__ import annotations

from django.conf import settings

from pwexpire.models import PasswordRecord


def is_recorded(user: object) -> bool:
    """Return whether our tables know ``user``: a user of the model that they refer to.

    Under a swapped ``AUTH_USER_MODEL`` they still refer to the model from when they were made, and
    a user model of a site's own may have no passwords at all. Nothing is asked of either.
    """
    model = PasswordRecord._meta.get_field("user").related_model
    if not (isinstance(model, type) and isinstance(user, model)):
        return False
    known = settings.AUTH_USER_MODEL.lower() == model._meta.label_lower
    return known and hasattr(user, "has_usable_password")

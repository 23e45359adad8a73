from __future__ import annotations

from django.contrib.auth.backends import ModelBackend


class SingleSignOn(ModelBackend):
    """Somebody else asks for the password."""

    def authenticate(self, request, ticket):
        return None

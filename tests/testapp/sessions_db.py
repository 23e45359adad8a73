"""A session model with a user column, after the recipe in Django's documentation."""

from __future__ import annotations

from django.contrib.sessions.backends.db import SessionStore as DBStore

from tests.testapp.models import AccountSession


class SessionStore(DBStore):
    @classmethod
    def get_model_class(cls):
        return AccountSession

    def create_model_instance(self, data):
        row = super().create_model_instance(data)
        try:
            row.account_id = int(data.get("_auth_user_id"))
        except (TypeError, ValueError):
            row.account_id = None
        return row

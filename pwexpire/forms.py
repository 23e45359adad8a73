from __future__ import annotations

from typing import Any

from django.contrib.auth.forms import PasswordChangeForm
from django.contrib.auth.hashers import check_password
from django.core.exceptions import ValidationError
from django.utils.translation import gettext_lazy as _


class ExpiredPasswordChangeForm(PasswordChangeForm):
    """Django's form, which besides refuses the password that the user has."""

    error_messages = {
        **PasswordChangeForm.error_messages,
        "password_unchanged": _("The new password must not be the one that you have now."),
    }

    def clean(self) -> dict[str, Any] | None:
        cleaned = super().clean()
        new = self.cleaned_data.get("new_password2")
        if new and check_password(new, self.user.password):
            self.add_error(
                "new_password2",
                ValidationError(
                    self.error_messages["password_unchanged"], code="password_unchanged"
                ),
            )
        return cleaned

    @property
    def old_password_was_wrong(self) -> bool:
        return self.has_error("old_password", "password_incorrect")

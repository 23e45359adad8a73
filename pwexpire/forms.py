from __future__ import annotations

from typing import Any

from django.contrib.auth.forms import PasswordChangeForm
from django.contrib.auth.hashers import check_password
from django.core.exceptions import ValidationError
from django.utils.translation import gettext_lazy as _

from pwexpire.services.guesses import verify_old_password


class ExpiredPasswordChangeForm(PasswordChangeForm):
    """Django's form, which verifies the old password first and refuses it as the new one."""

    error_messages = {
        **PasswordChangeForm.error_messages,
        "password_unchanged": _("The new password must not be the one that you have now."),
    }

    def __init__(self, user: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(user, *args, **kwargs)
        # An empty one is a wrong one: the same answer, counted like any other.
        self.fields["old_password"].required = False
        self.fields["old_password"].widget.attrs["required"] = True

    def clean_old_password(self) -> str:
        old: str = self.cleaned_data["old_password"]
        if not verify_old_password(self.user, old):
            raise ValidationError(
                self.error_messages["password_incorrect"], code="password_incorrect"
            )
        return old

    def clean(self) -> dict[str, Any] | None:
        # Nothing is said of a new password to somebody who does not know the old one.
        if self.old_password_was_wrong:
            return self.cleaned_data
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
        return self.has_error("old_password")

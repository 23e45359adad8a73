from __future__ import annotations

import logging
from typing import Any

from django.contrib import admin
from django.contrib.auth import get_user_model
from django.core.exceptions import ImproperlyConfigured
from django.db import Error as DatabaseFault
from django.db import OperationalError, ProgrammingError
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.translation import gettext, gettext_lazy

from pwexpire.admin_actions import (
    ACTIONS,
    cancel_expiry_action,
    expire_passwords_action,
)
from pwexpire.constants import PERMISSION
from pwexpire.models import Cancellation, ExpiryBatch
from pwexpire.retries import first_line
from pwexpire.services.expired import is_expired, is_warned
from pwexpire.services.tables import read_tables

logger = logging.getLogger("pwexpire")

__all__ = [
    "PasswordExpiryUserAdminMixin",
    "cancel_expiry_action",
    "expire_passwords_action",
    "extend_user_admin",
]


class PasswordExpiredListFilter(admin.SimpleListFilter):
    title = gettext_lazy("password expired")
    parameter_name = "expiry"  # Django's UserAdmin refuses lookups that begin with "password"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return [
            ("yes", gettext_lazy("Yes")),
            ("no", gettext_lazy("No")),
            ("warned", gettext_lazy("No, but warned")),
        ]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        value = self.value()
        if value == "warned":
            return queryset.filter(is_warned(queryset))
        if value in ("yes", "no"):
            expired = is_expired(queryset)
            return queryset.filter(expired if value == "yes" else ~expired)
        return queryset


def _explain_missing(*models: Any) -> HttpResponse | None:
    """Return a page that says to migrate; ``None`` if the tables (all) are of this release."""
    try:
        read_tables(*models)
    except (OperationalError, ProgrammingError) as error:
        logger.error("The admin cannot read the tables of pwexpire: %s", first_line(error))
        said = gettext("The tables of pwexpire cannot be read: run manage.py migrate.")
        return HttpResponse(said, status=503, content_type="text/plain; charset=utf-8")
    return None


class PasswordExpiryUserAdminMixin:
    """Adds both actions and the list filter to a ``ModelAdmin`` of the user model."""

    actions: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.actions is not None:
            missing = [action for action in ACTIONS if action not in self.actions]
            self.actions = [*self.actions, *missing]

    def get_actions(self, request: HttpRequest, action_location: Any = None) -> dict[str, Any]:
        # Django 6.1 tells where the actions are offered; earlier releases do not.
        where = {} if action_location is None else {"action_location": action_location}
        actions: dict[str, Any] = super().get_actions(request, **where)  # type: ignore[misc]
        if not self.has_expire_passwords_permission(request):
            for action in ACTIONS:
                actions.pop(action.__name__, None)
        return actions

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        try:
            found: HttpResponse = super().changelist_view(request, extra_context)  # type: ignore[misc]
        except DatabaseFault:
            # The filter and the actions read our tables; the list of the users does without.
            missing = _explain_missing()
            if missing is None:
                raise
            return missing
        return found

    def has_expire_passwords_permission(self, request: HttpRequest) -> bool:
        """Whether the actions are offered; what they do asks for the permission in any case."""
        return request.user.has_perm(PERMISSION)

    def get_expirable_users(self, request: HttpRequest, users: QuerySet[Any]) -> QuerySet[Any]:
        """Return those of ``users`` whose passwords this administrator may expire.

        A hook for the ranks of a site. Superusers are left out before, unless a superuser asks;
        users who are left out here are skipped, named in a message, and kept in the log.
        """
        return users

    def get_cancellable_users(self, request: HttpRequest, users: QuerySet[Any]) -> QuerySet[Any]:
        """Return those of ``users`` whose demands this administrator may cancel.

        As ``get_expirable_users``; administrators themselves are left out before as well.
        """
        return users

    def get_list_filter(self, request: HttpRequest) -> list[Any]:
        return [*super().get_list_filter(request), PasswordExpiredListFilter]  # type: ignore[misc]


def extend_user_admin(site: admin.AdminSite | None = None) -> None:
    """Add the actions and the filter to the user admin that is registered with ``site``.

    Raises ``ImproperlyConfigured`` if the user model is not registered there.
    """
    site = site or admin.site
    model = get_user_model()
    if not site.is_registered(model):
        raise ImproperlyConfigured(
            f"{model.__name__} is not registered with this admin site: register it first."
        )
    registered = type(site.get_model_admin(model))
    if issubclass(registered, PasswordExpiryUserAdminMixin):
        return
    site.unregister(model)
    site.register(model, type(registered.__name__, (PasswordExpiryUserAdminMixin, registered), {}))


class ReadOnlyAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """To be read, by auditors; what happened cannot be edited.

    The table is looked at first: a column that is missing would fail where the page is rendered.
    """

    def changelist_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        return _explain_missing(self.model) or super().changelist_view(request, *args, **kwargs)

    def changeform_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        return _explain_missing(self.model) or super().changeform_view(request, *args, **kwargs)

    def history_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        return _explain_missing(self.model) or super().history_view(request, *args, **kwargs)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(ExpiryBatch)
class ExpiryBatchAdmin(ReadOnlyAdmin):
    list_display = (
        "pk",
        "created_at",
        "reason",
        "require",
        "everyone",
        "state",
        "actor",
        "users_expired",
        "users_already_expired",
        "users_not_applicable",
        "sessions_flagged",
        "sessions_ended",
    )
    list_filter = ("reason", "state", "everyone")
    list_select_related = ("actor",)


@admin.register(Cancellation)
class CancellationAdmin(ReadOnlyAdmin):
    list_display = ("created_at", "kind", "batch", "user", "actor", "note")
    list_filter = ("kind",)
    list_select_related = ("batch", "user", "actor")

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.auth import get_user_model
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils.translation import gettext, gettext_lazy, ngettext

from pwexpire.compat import find_tasks
from pwexpire.conf import conf
from pwexpire.models import Cancellation, ExpiryBatch, Reason, Require, SessionAction
from pwexpire.services.batches import expire_passwords, preview_expiry
from pwexpire.services.cancellations import cancel_expiry
from pwexpire.services.status import open_demand, usable_password

PERMISSION = "pwexpire.expire_passwords"
FIRST_SHOWN = {"reason": "admin", "require": "change", "sessions": "flag"}


class ExpireForm(forms.Form):
    reason = forms.ChoiceField(label=gettext_lazy("Reason"))
    require = forms.ChoiceField(
        label=gettext_lazy("What is demanded"), choices=Require.choices, required=False
    )
    sessions = forms.ChoiceField(label=gettext_lazy("Open sessions"), choices=SessionAction.choices)
    note = forms.CharField(
        label=gettext_lazy("Note"),
        required=False,
        widget=forms.Textarea(attrs={"rows": 3}),
        help_text=gettext_lazy("For the record; the users do not see it."),
    )
    keep_me_out = forms.BooleanField(label=gettext_lazy("Keep me out"), required=False)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        field = self.fields["reason"]
        assert isinstance(field, forms.ChoiceField)
        field.choices = list({**dict(Reason.choices), **conf.reasons}.items())
        if not conf.refuses_logins:  # a login could not be refused
            require = self.fields["require"]
            assert isinstance(require, forms.ChoiceField)
            require.choices = [
                choice
                for choice in Require.choices
                if choice[0] not in (Require.RESET, Require.DENY)
            ]

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        cleaned["require"] = cleaned.get("require") or Require.CHANGE
        if cleaned["require"] == Require.WARN and cleaned.get("sessions") == SessionAction.END:
            self.add_error("sessions", gettext("A warning ends no sessions."))
        return cleaned


class CancelForm(forms.Form):
    note = forms.CharField(label=gettext_lazy("Note"), required=False)


@admin.action(description=gettext_lazy("Expire passwords of selected users"))
def expire_passwords_action(
    modeladmin: admin.ModelAdmin[Any], request: HttpRequest, queryset: QuerySet[Any]
) -> HttpResponse | None:
    """Ask, then expire. Needs the permission ``pwexpire.expire_passwords``."""
    _demand_permission(request)
    confirmed = "confirm" in request.POST
    form = ExpireForm(request.POST if confirmed else FIRST_SHOWN)
    if not confirmed or not form.is_valid():
        title = gettext("Expire passwords")
        return _ask(modeladmin, request, queryset, form, "expire_passwords_action", title)
    given = form.cleaned_data
    enqueue = _find_enqueuer(queryset)
    batch = expire_passwords(
        queryset,
        reason=given["reason"],
        require=given["require"],
        sessions=given["sessions"],
        note=given["note"],
        actor=request.user,
        exclude=request.user if given["keep_me_out"] else None,
        defer=enqueue is not None,
    )
    told = _told(batch, enqueued=enqueue is not None)
    if enqueue is not None:
        enqueue(batch)
    _log(request, batch, f"{told} {given['note']}".strip())
    modeladmin.message_user(request, told, messages.SUCCESS)
    return None


@admin.action(description=gettext_lazy("Cancel expiry of selected users"))
def cancel_expiry_action(
    modeladmin: admin.ModelAdmin[Any], request: HttpRequest, queryset: QuerySet[Any]
) -> HttpResponse | None:
    """Ask, then lift the demands. Needs the permission ``pwexpire.expire_passwords``."""
    _demand_permission(request)
    form = CancelForm(request.POST)
    if "confirm" not in request.POST or not form.is_valid():
        title = gettext("Cancel the expiry of passwords")
        return _ask(modeladmin, request, queryset, form, "cancel_expiry_action", title)
    note = form.cleaned_data["note"]
    count = cancel_expiry(queryset, actor=request.user, note=note)
    told = ngettext(
        "%(count)d user does not have to change the password any more.",
        "%(count)d users do not have to change the password any more.",
        count,
    ) % {"count": count}
    _log(request, None, f"{told} {note}".strip())
    modeladmin.message_user(request, told, messages.SUCCESS)
    return None


def _find_enqueuer(queryset: QuerySet[Any]) -> Callable[[ExpiryBatch], None] | None:
    """What hands the stored sessions over to tasks, if these are many users."""
    limit = conf.enqueue_above
    if limit is None or queryset.count() <= limit or find_tasks() is None:
        return None
    from pwexpire.tasks import enqueue_expiry  # not before there is a Tasks framework

    return enqueue_expiry


def _demand_permission(request: HttpRequest) -> None:
    if not request.user.has_perm(PERMISSION):
        raise PermissionDenied


def _ask(
    modeladmin: admin.ModelAdmin[Any],
    request: HttpRequest,
    queryset: QuerySet[Any],
    form: forms.Form,
    action: str,
    title: str,
) -> HttpResponse:
    context = {
        **modeladmin.admin_site.each_context(request),
        "opts": modeladmin.model._meta,
        "title": title,
        "preview": preview_expiry(queryset),
        "form": form,
        "action": action,
        "checkbox_name": ACTION_CHECKBOX_NAME,
        "selected": request.POST.getlist(ACTION_CHECKBOX_NAME),
        "select_across": request.POST.get("select_across", "0"),
        "index": request.POST.get("index", "0"),
    }
    request.current_app = modeladmin.admin_site.name
    return TemplateResponse(request, "admin/pwexpire/confirm.html", context)


def _told(batch: ExpiryBatch, *, enqueued: bool) -> str:
    if batch.users_expired is None:
        return gettext("The passwords expire when this request is finished.")
    told = ngettext(
        "%(count)d password was expired.", "%(count)d passwords were expired.", batch.users_expired
    ) % {"count": batch.users_expired}
    if enqueued:
        return f"{told} {gettext('Their sessions are being worked at in the background.')}"
    details = gettext(
        "Already expired: %(already)d, not applicable: %(not_applicable)d, "
        "sessions flagged: %(flagged)d, sessions ended: %(ended)d."
    ) % {
        "already": batch.users_already_expired or 0,
        "not_applicable": batch.users_not_applicable or 0,
        "flagged": batch.sessions_flagged or 0,
        "ended": batch.sessions_ended or 0,
    }
    return f"{told} {details}"


def _log(request: HttpRequest, batch: ExpiryBatch | None, message: str) -> None:
    LogEntry.objects.create(
        user_id=request.user.pk or 0,
        content_type=ContentType.objects.get_for_model(ExpiryBatch),
        object_id=None if batch is None else str(batch.pk),
        object_repr="" if batch is None else str(batch),
        action_flag=CHANGE,
        change_message=message,
    )


ACTIONS = (expire_passwords_action, cancel_expiry_action)


class PasswordExpiredListFilter(admin.SimpleListFilter):
    title = gettext_lazy("password expired")
    parameter_name = "expiry"  # Django's UserAdmin refuses lookups that begin with "password"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return [("yes", gettext_lazy("Yes")), ("no", gettext_lazy("No"))]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() not in ("yes", "no"):
            return queryset
        expired = open_demand() & usable_password()
        return queryset.filter(expired if self.value() == "yes" else ~expired)


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

    def has_expire_passwords_permission(self, request: HttpRequest) -> bool:
        """Whether the actions are offered; what they do asks for the permission in any case."""
        return request.user.has_perm(PERMISSION)

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
    """To be read, by auditors; what happened cannot be edited."""

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

"""The admin actions: expire the selected users, and cancel their expiry, within a rank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils.translation import gettext, gettext_lazy, ngettext

from pwexpire.admin_log import (
    describe_batch,
    describe_staging,
    list_logged,
    log_action,
    log_refusal,
    name_users,
)
from pwexpire.compat import find_tasks
from pwexpire.conf import conf
from pwexpire.constants import LOCKING, PERMISSION, REQUEST_SECONDS
from pwexpire.exceptions import TasksUnavailable
from pwexpire.keys import key_text
from pwexpire.models import BatchState, ExpiryBatch, Reason, Require, SessionAction, TraceKind
from pwexpire.services.batches import expire_passwords
from pwexpire.services.cancellations import cancel_expiry
from pwexpire.services.preview import preview_expiry
from pwexpire.services.ranks import Lockout, find_lockout, find_outranked
from pwexpire.services.selection import Selection

# Of more users than these the page that asks counts only how many there are.
PREVIEWED_MAX = 10_000
NOT_IN_FORCE = (BatchState.STAGING, BatchState.STOPPED, BatchState.CANCELLED)
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
    force = forms.BooleanField(
        label=gettext_lazy("Lock me, or the last active superuser, out"), required=False
    )

    def __init__(self, *args: Any, find_lockout: Callable[[bool], Lockout], **kwargs: Any) -> None:
        """``find_lockout`` takes whether the administrator is kept out of the selection."""
        super().__init__(*args, **kwargs)
        self.find_lockout = find_lockout
        field = self.fields["reason"]
        assert isinstance(field, forms.ChoiceField)
        field.choices = list({**dict(Reason.choices), **conf.reasons}.items())
        if not conf.refuses_logins:  # a login could not be refused
            require = self.fields["require"]
            assert isinstance(require, forms.ChoiceField)
            require.choices = [choice for choice in Require.choices if choice[0] not in LOCKING]
            del self.fields["force"]

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        cleaned["require"] = cleaned.get("require") or Require.CHANGE
        if cleaned["require"] == Require.WARN and cleaned.get("sessions") == SessionAction.END:
            self.add_error("sessions", gettext("A warning ends no sessions."))
        if cleaned["require"] in LOCKING and not cleaned.get("force"):
            self._refuse_lockout(self.find_lockout(bool(cleaned.get("keep_me_out"))))
        return cleaned

    def _refuse_lockout(self, lockout: Lockout) -> None:
        if lockout.actor:
            self.add_error("force", gettext("This locks you out: tick here if you mean it."))
        if lockout.last_superuser:
            self.add_error(
                "force", gettext("This locks the last active superuser out: tick here to do it.")
            )


class CancelForm(forms.Form):
    note = forms.CharField(label=gettext_lazy("Note"), required=False)


@dataclass(frozen=True, kw_only=True)
class AdminAction:
    """The selected users on whom an administrator may act, and the keys of the others."""

    modeladmin: admin.ModelAdmin[Any]
    request: HttpRequest
    allowed: QuerySet[Any]
    refused: list[Any]

    def find_lockout(self, kept_out: bool) -> Lockout:
        out = self.request.user if kept_out else None
        return find_lockout(Selection(self.allowed, exclude=out), self.request.user)

    def confirm(self, form: forms.Form, action: str, title: str) -> HttpResponse:
        """Return the page that asks; it posts the selection again."""
        post, count = self.request.POST, self.allowed.count()
        context = {
            **self.modeladmin.admin_site.each_context(self.request),
            "opts": self.modeladmin.model._meta,
            "title": title,
            "count": count,
            "preview": preview_expiry(self.allowed) if count <= PREVIEWED_MAX else None,
            "lockout": self.find_lockout(kept_out=False),
            "skipped": name_users(self.refused),
            "form": form,
            "action": action,
            "checkbox_name": ACTION_CHECKBOX_NAME,
            "selected": post.getlist(ACTION_CHECKBOX_NAME),
            "select_across": post.get("select_across", "0"),
            "index": post.get("index", "0"),
        }
        self.request.current_app = self.modeladmin.admin_site.name
        return TemplateResponse(self.request, "admin/pwexpire/confirm.html", context)

    def report_refused(self, kind: TraceKind, note: str) -> None:
        if self.refused:
            log_refusal(self.request, self.refused, kind, note)
            skipped = gettext("Skipped, because you may not do this to them: %(names)s.")
            words = skipped % {"names": name_users(self.refused)}
            self.modeladmin.message_user(self.request, words, messages.WARNING)

    def report_done(
        self,
        logged: list[Any],
        summary: str,
        note: str,
        batch: ExpiryBatch | None = None,
        level: int = messages.SUCCESS,
    ) -> None:
        log_action(self.request, logged, summary, note, batch)
        self.modeladmin.message_user(self.request, summary, level)


@admin.action(description=gettext_lazy("Expire passwords of selected users"))
def expire_passwords_action(
    modeladmin: admin.ModelAdmin[Any], request: HttpRequest, queryset: QuerySet[Any]
) -> HttpResponse | None:
    """Ask, then expire. Needs the permission ``pwexpire.expire_passwords``."""
    action = _split_by_rank(modeladmin, request, queryset, cancelling=False)
    confirmed = "confirm" in request.POST
    given = request.POST if confirmed else FIRST_SHOWN
    form = ExpireForm(given, find_lockout=action.find_lockout)
    if not confirmed or not form.is_valid():
        return action.confirm(form, "expire_passwords_action", gettext("Expire passwords"))
    action.report_refused(TraceKind.EXPIRY_REFUSED, form.cleaned_data["note"])
    if action.allowed.exists():
        _expire_allowed(action, form.cleaned_data)
    return None


def _expire_allowed(action: AdminAction, given: dict[str, Any]) -> None:
    actor = action.request.user
    out = actor if given["keep_me_out"] else None
    logged = list_logged(Selection(action.allowed, exclude=out))
    enqueue = _find_enqueuer(action.allowed)
    values = {name: given[name] for name in ("reason", "require", "sessions", "note")}
    batch = expire_passwords(
        action.allowed,
        **values,
        actor=actor,
        exclude=out,
        defer=enqueue is not None,
        seconds=REQUEST_SECONDS,
    )
    if batch.number is None and batch.state in NOT_IN_FORCE:
        action.report_done(logged, describe_staging(batch), given["note"], batch, messages.ERROR)
        return
    summary = describe_batch(batch, deferred=enqueue is not None)
    # After the summary, which the tasks would change while it is read.
    if enqueue is not None:
        summary = f"{summary} {_hand_over(action, batch, enqueue)}"
    action.report_done(logged, summary, given["note"], batch)


@admin.action(description=gettext_lazy("Cancel expiry of selected users"))
def cancel_expiry_action(
    modeladmin: admin.ModelAdmin[Any], request: HttpRequest, queryset: QuerySet[Any]
) -> HttpResponse | None:
    """Ask, then cancel the demands. Needs the permission ``pwexpire.expire_passwords``."""
    action = _split_by_rank(modeladmin, request, queryset, cancelling=True)
    form = CancelForm(request.POST)
    if "confirm" not in request.POST or not form.is_valid():
        title = gettext("Cancel the expiry of passwords")
        return action.confirm(form, "cancel_expiry_action", title)
    note = form.cleaned_data["note"]
    action.report_refused(TraceKind.CANCELLATION_REFUSED, note)
    if action.allowed.exists():
        logged = list_logged(Selection(action.allowed))
        count = cancel_expiry(action.allowed, actor=request.user, note=note)
        summary = ngettext(
            "%(count)d user does not have to change the password any more.",
            "%(count)d users do not have to change the password any more.",
            count,
        ) % {"count": count}
        action.report_done(logged, summary, note)
    return None


def _split_by_rank(
    modeladmin: admin.ModelAdmin[Any],
    request: HttpRequest,
    queryset: QuerySet[Any],
    *,
    cancelling: bool,
) -> AdminAction:
    """Apply the permission, the rule on superusers and oneself, then the hook of the site."""
    if not request.user.has_perm(PERMISSION):
        raise PermissionDenied
    selection = Selection(queryset)
    own = selection.among([key_text(request.user.pk)]) if cancelling else set()
    refused = find_outranked(request.user, selection) | own
    allowed = queryset.exclude(pk__in=refused) if refused else queryset
    name = "get_cancellable_users" if cancelling else "get_expirable_users"
    hook = getattr(modeladmin, name, None)  # a ModelAdmin without the mixin has none
    narrowed = allowed if hook is None else hook(request, allowed)
    if narrowed is not allowed:
        for pks in Selection(allowed, exclude=narrowed).chunks():
            refused.update(pks)
        # A hook can leave users out, and never add any.
        allowed = allowed.filter(pk__in=narrowed.values("pk"))
    return AdminAction(
        modeladmin=modeladmin, request=request, allowed=allowed, refused=sorted(refused)
    )


def _find_enqueuer(users: QuerySet[Any]) -> Callable[[ExpiryBatch], None] | None:
    """Return what hands the stored sessions over to tasks, if these are many users."""
    limit = conf.enqueue_above
    if limit is None or users.count() <= limit or find_tasks() is None:
        return None
    from pwexpire.tasks import enqueue_expiry  # not before there is a Tasks framework

    return enqueue_expiry


def _hand_over(
    action: AdminAction, batch: ExpiryBatch, enqueue: Callable[[ExpiryBatch], None]
) -> str:
    """Leave the stored sessions to tasks; return what the summary says of them."""
    try:
        enqueue(batch)
    except TasksUnavailable as error:
        action.modeladmin.message_user(action.request, str(error), messages.WARNING)
        words = gettext(
            "Each open session is held at its next request; "
            "manage.py pwexpire resume %(batch)d works at the stored ones."
        )
        return words % {"batch": batch.pk}
    return gettext("Their sessions are being worked at in the background.")


ACTIONS = (expire_passwords_action, cancel_expiry_action)

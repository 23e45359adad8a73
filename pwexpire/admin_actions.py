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

from pwexpire.admin_log import list_logged, log_action, log_refusal, name_users
from pwexpire.compat import find_tasks
from pwexpire.conf import conf
from pwexpire.constants import LOCKING
from pwexpire.models import ExpiryBatch, Reason, Require, SessionAction, TraceKind
from pwexpire.services.batches import expire_passwords, preview_expiry
from pwexpire.services.cancellations import cancel_expiry
from pwexpire.services.ranks import Lockout, find_lockout, find_outranked
from pwexpire.services.selection import Selection, key_text

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
class Ranked:
    """The selected users whom the administrator may act on, and the keys of the others."""

    allowed: QuerySet[Any]
    refused: list[Any]


@admin.action(description=gettext_lazy("Expire passwords of selected users"))
def expire_passwords_action(
    modeladmin: admin.ModelAdmin[Any], request: HttpRequest, queryset: QuerySet[Any]
) -> HttpResponse | None:
    """Ask, then expire. Needs the permission ``pwexpire.expire_passwords``."""
    _check_permission(request)
    ranked = _split_by_rank(modeladmin, request, queryset, cancelling=False)

    def find(kept_out: bool) -> Lockout:
        out = request.user if kept_out else None
        return find_lockout(Selection(ranked.allowed, exclude=out), request.user)

    confirmed = "confirm" in request.POST
    form = ExpireForm(request.POST if confirmed else FIRST_SHOWN, find_lockout=find)
    if not confirmed or not form.is_valid():
        title = gettext("Expire passwords")
        return _ask_to_confirm(modeladmin, request, ranked, form, "expire_passwords_action", title)
    given = form.cleaned_data
    _report_refused(modeladmin, request, ranked, TraceKind.EXPIRY_REFUSED, given["note"])
    if ranked.allowed.exists():
        _expire_allowed(modeladmin, request, ranked.allowed, given)
    return None


def _expire_allowed(
    modeladmin: admin.ModelAdmin[Any],
    request: HttpRequest,
    users: QuerySet[Any],
    given: dict[str, Any],
) -> None:
    out = request.user if given["keep_me_out"] else None
    logged, enqueue = list_logged(Selection(users, exclude=out)), _find_enqueuer(users)
    batch = expire_passwords(
        users,
        reason=given["reason"],
        require=given["require"],
        sessions=given["sessions"],
        note=given["note"],
        actor=request.user,
        exclude=out,
        defer=enqueue is not None,
    )
    summary = _describe_batch(batch, enqueued=enqueue is not None)
    # After the summary, which the tasks would change while it is read.
    if enqueue is not None:
        enqueue(batch)
    log_action(request, logged, summary, given["note"], batch)
    modeladmin.message_user(request, summary, messages.SUCCESS)


@admin.action(description=gettext_lazy("Cancel expiry of selected users"))
def cancel_expiry_action(
    modeladmin: admin.ModelAdmin[Any], request: HttpRequest, queryset: QuerySet[Any]
) -> HttpResponse | None:
    """Ask, then cancel the demands. Needs the permission ``pwexpire.expire_passwords``."""
    _check_permission(request)
    ranked = _split_by_rank(modeladmin, request, queryset, cancelling=True)
    form = CancelForm(request.POST)
    if "confirm" not in request.POST or not form.is_valid():
        title = gettext("Cancel the expiry of passwords")
        return _ask_to_confirm(modeladmin, request, ranked, form, "cancel_expiry_action", title)
    note = form.cleaned_data["note"]
    _report_refused(modeladmin, request, ranked, TraceKind.CANCELLATION_REFUSED, note)
    if not ranked.allowed.exists():
        return None
    logged = list_logged(Selection(ranked.allowed))
    count = cancel_expiry(ranked.allowed, actor=request.user, note=note)
    summary = ngettext(
        "%(count)d user does not have to change the password any more.",
        "%(count)d users do not have to change the password any more.",
        count,
    ) % {"count": count}
    log_action(request, logged, summary, note)
    modeladmin.message_user(request, summary, messages.SUCCESS)
    return None


def _split_by_rank(
    modeladmin: admin.ModelAdmin[Any],
    request: HttpRequest,
    queryset: QuerySet[Any],
    *,
    cancelling: bool,
) -> Ranked:
    """Apply the rule on superusers and oneself first, then the hook of the site."""
    selection = Selection(queryset)
    own = selection.among([key_text(request.user.pk)]) if cancelling else set()
    refused = find_outranked(request.user, selection) | own
    allowed = queryset.exclude(pk__in=refused) if refused else queryset
    name = "get_cancellable_users" if cancelling else "get_expirable_users"
    hook = getattr(modeladmin, name, None)  # a ModelAdmin without the mixin has none
    if hook is not None:
        narrowed = hook(request, allowed)
        if narrowed is not allowed:
            for pks in Selection(allowed, exclude=narrowed).chunks():
                refused.update(pks)
            # A hook can leave users out, and never add any.
            allowed = allowed.filter(pk__in=narrowed.values("pk"))
    return Ranked(allowed=allowed, refused=sorted(refused))


def _report_refused(
    modeladmin: admin.ModelAdmin[Any],
    request: HttpRequest,
    ranked: Ranked,
    kind: TraceKind,
    note: str,
) -> None:
    if not ranked.refused:
        return
    log_refusal(request, ranked.refused, kind, note)
    skipped = gettext("Skipped, because you may not do this to them: %(names)s.")
    words = skipped % {"names": name_users(ranked.refused)}
    modeladmin.message_user(request, words, messages.WARNING)


def _find_enqueuer(users: QuerySet[Any]) -> Callable[[ExpiryBatch], None] | None:
    """Return what hands the stored sessions over to tasks, if these are many users."""
    limit = conf.enqueue_above
    if limit is None or users.count() <= limit or find_tasks() is None:
        return None
    from pwexpire.tasks import enqueue_expiry  # not before there is a Tasks framework

    return enqueue_expiry


def _check_permission(request: HttpRequest) -> None:
    if not request.user.has_perm(PERMISSION):
        raise PermissionDenied


def _ask_to_confirm(
    modeladmin: admin.ModelAdmin[Any],
    request: HttpRequest,
    ranked: Ranked,
    form: forms.Form,
    action: str,
    title: str,
) -> HttpResponse:
    context = {
        **modeladmin.admin_site.each_context(request),
        "opts": modeladmin.model._meta,
        "title": title,
        "preview": preview_expiry(ranked.allowed),
        "lockout": find_lockout(Selection(ranked.allowed), request.user),
        "skipped": name_users(ranked.refused),
        "form": form,
        "action": action,
        "checkbox_name": ACTION_CHECKBOX_NAME,
        "selected": request.POST.getlist(ACTION_CHECKBOX_NAME),
        "select_across": request.POST.get("select_across", "0"),
        "index": request.POST.get("index", "0"),
    }
    request.current_app = modeladmin.admin_site.name
    return TemplateResponse(request, "admin/pwexpire/confirm.html", context)


def _describe_batch(batch: ExpiryBatch, *, enqueued: bool) -> str:
    warning = batch.require == Require.WARN
    if batch.users_expired is None:
        if warning:
            return gettext("The users are warned when this request is finished.")
        return gettext("The passwords expire when this request is finished.")
    if warning:
        summary = ngettext(
            "%(count)d user was warned.", "%(count)d users were warned.", batch.users_expired
        )
    else:
        summary = ngettext(
            "%(count)d password was expired.",
            "%(count)d passwords were expired.",
            batch.users_expired,
        )
    summary %= {"count": batch.users_expired}
    if enqueued:
        return f"{summary} {gettext('Their sessions are being worked at in the background.')}"
    details = gettext(
        "Already expired: %(already)d, not applicable: %(not_applicable)d, "
        "sessions flagged: %(flagged)d, sessions ended: %(ended)d."
    ) % {
        "already": batch.users_already_expired or 0,
        "not_applicable": batch.users_not_applicable or 0,
        "flagged": batch.sessions_flagged or 0,
        "ended": batch.sessions_ended or 0,
    }
    return f"{summary} {details}"


ACTIONS = (expire_passwords_action, cancel_expiry_action)

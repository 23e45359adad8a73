from __future__ import annotations

from typing import Any

from django.conf import settings
from django.contrib.auth import REDIRECT_FIELD_NAME, views
from django.http import (
    HttpRequest,
    HttpResponse,
    HttpResponseBase,
    HttpResponseRedirect,
)
from django.shortcuts import resolve_url
from django.utils.decorators import method_decorator
from django.views.decorators.cache import never_cache

from pwexpire.conf import conf
from pwexpire.decorators import password_expiry_exempt
from pwexpire.exceptions import ChangeURLNotFound
from pwexpire.exemptions import is_no_destination
from pwexpire.forms import ExpiredPasswordChangeForm
from pwexpire.pages import find_logout_url, find_reset_url, find_url
from pwexpire.responses import impersonated_response, unavailable, unprocessed_text
from pwexpire.services.mails import reason_label
from pwexpire.services.saves import find_hasher
from pwexpire.services.status import password_status
from pwexpire.session_state import is_impersonated


@method_decorator(never_cache, name="dispatch")
class PasswordChangeView(views.RedirectURLMixin, views.PasswordChangeView):
    """Asks for the old password, refuses it as the new one, and returns to ``next``."""

    form_class = ExpiredPasswordChangeForm
    template_name = "pwexpire/password_change.html"
    next_page = "pwexpire:password_change_done"
    success_url = None

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        # A user who acts as another one must not choose that one's password.
        if is_impersonated(request):
            return impersonated_response()
        return super().dispatch(request, *args, **kwargs)

    def get_success_url(self) -> str:
        return views.RedirectURLMixin.get_success_url(self)

    def get_redirect_url(self, *args: Any, **kwargs: Any) -> str:
        url = super().get_redirect_url(*args, **kwargs)  # Django 6.1 takes a request here
        if url and is_no_destination(self.request, url):
            return resolve_url(settings.LOGIN_REDIRECT_URL)
        return url

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        context = super().get_context_data(**kwargs)
        user: Any = self.request.user
        status = password_status(user)
        form = context["form"]
        urlconf = getattr(self.request, "urlconf", None)
        reset = find_reset_url(urlconf) or ""
        # No old password is right for a hash that none of the site's hashers made.
        lost = find_hasher(user.password) is None
        lost = lost or (form.is_bound and form.old_password_was_wrong)
        return {
            **context,
            "status": status,
            "reason": reason_label(status.reason),
            "unprocessed": unprocessed_text() if "unprocessed" in self.request.GET else "",
            "reset_url": reset if lost else "",
            "logout_url": find_logout_url(urlconf) or "",
            "next_field": REDIRECT_FIELD_NAME,
            "next": self.get_redirect_url(),
        }


@method_decorator(never_cache, name="dispatch")
class PasswordChangeDoneView(views.PasswordChangeDoneView):
    template_name = "pwexpire/password_change_done.html"

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        on = resolve_url(settings.LOGIN_REDIRECT_URL)
        return {**super().get_context_data(**kwargs), "go_on_url": on}


class LogoutView(views.LogoutView):
    """For sites whose own log-out is no view that pwexpire knows."""

    def get_default_redirect_url(self) -> str:
        return resolve_url(settings.LOGOUT_REDIRECT_URL or settings.LOGIN_URL)


@password_expiry_exempt
def well_known(request: HttpRequest) -> HttpResponse:
    """W3C "A Well-Known URL for Changing Passwords": leads to the change page."""
    try:
        return HttpResponseRedirect(find_url(conf.change_url, getattr(request, "urlconf", None)))
    except ChangeURLNotFound as error:
        return unavailable(str(error))

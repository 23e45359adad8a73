"""A change page of the site's own, whose form is none of Django's."""

from __future__ import annotations

from django.contrib.auth import update_session_auth_hash
from django.http import HttpRequest, HttpResponse
from django.urls import path

from tests.urls import urlpatterns as base


def change(request: HttpRequest) -> HttpResponse:
    if not request.user.check_password(request.POST.get("old", "")):
        return HttpResponse("wrong")
    request.user.set_password(request.POST["new"])
    request.user.save()
    update_session_auth_hash(request, request.user)
    return HttpResponse("changed")


urlpatterns = [path("other/", change, name="other-change"), *base]

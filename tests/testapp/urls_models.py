from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.urls import include, path


def home(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.user.get_username() or "anonymous")


urlpatterns = [
    path("", home),
    path("account/", include("pwexpire.urls")),
    path("accounts/", include("django.contrib.auth.urls")),
]

from __future__ import annotations

from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, HttpResponse
from django.urls import include, path


def home(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.user.username)


@login_not_required
def plain(request: HttpRequest) -> HttpResponse:
    return HttpResponse("plain")


urlpatterns = [
    path("", home),
    path("plain/", plain),
    path("login/", plain, name="login"),
    path("logout/", plain, name="logout"),
    path("account/", include("pwexpire.urls")),
    path("change/", plain, name="password_change"),
    path("force/", plain, name="force_password_change"),
]

from __future__ import annotations

from django.contrib.auth import authenticate, login
from django.http import HttpRequest, HttpResponse
from django.urls import include, path


def home(request: HttpRequest) -> HttpResponse:
    if not request.user.is_authenticated:
        return HttpResponse("log in", status=401)
    return HttpResponse(request.user.get_username())


def log_in(request: HttpRequest) -> HttpResponse:
    form = request.POST
    user = authenticate(request, username=form.get("username"), password=form.get("password"))
    if user is None:
        return HttpResponse("wrong", status=403)
    login(request, user)
    return HttpResponse("logged in")


urlpatterns = [
    path("", home),
    path("login/", log_in, name="login"),
    path("account/", include("pwexpire.urls")),
]

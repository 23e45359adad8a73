"""Logins as sites write them beside Django's own."""

from __future__ import annotations

import base64

from django.contrib.auth import aauthenticate, alogin, authenticate, login
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import include, path
from django.views.decorators.csrf import csrf_exempt


@csrf_exempt
def json_login(request: HttpRequest) -> HttpResponse:
    user = authenticate(request, **request.POST.dict())
    if user is None:
        return JsonResponse({"error": "no"}, status=401)
    login(request, user)
    return JsonResponse({"user": user.get_username()})


@csrf_exempt
async def async_login(request: HttpRequest) -> HttpResponse:
    user = await aauthenticate(request, **request.POST.dict())
    if user is None:
        return JsonResponse({"error": "no"}, status=401)
    await alogin(request, user)
    return JsonResponse({"user": user.get_username()})


@csrf_exempt
def basic(request: HttpRequest) -> HttpResponse:
    given = base64.b64decode(request.headers["authorization"].removeprefix("Basic ")).decode()
    username, _, password = given.partition(":")
    user = authenticate(request, username=username, password=password)
    return HttpResponse(user.get_username(), status=200) if user else HttpResponse(status=401)


urlpatterns = [
    path("api/login/", json_login),
    path("api/async-login/", async_login),
    path("api/basic/", basic),
    path("", include("tests.urls")),
]

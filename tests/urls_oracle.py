"""A change page of the site's own, whose form is none of Django's."""

from __future__ import annotations

import json
from typing import Any

from django.contrib.auth import update_session_auth_hash
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path

from tests.urls import urlpatterns as base


def change(request: HttpRequest) -> HttpResponse:
    if not request.user.check_password(request.POST.get("old", "")):
        return HttpResponse("wrong")
    request.user.set_password(request.POST["new"])
    request.user.save()
    update_session_auth_hash(request, request.user)
    return HttpResponse("changed")


def change_by_json(request: HttpRequest) -> JsonResponse:
    """As the endpoints of API packages: what is wrong with both passwords is one answer."""
    try:
        sent = dict(json.loads(request.body))
    except (TypeError, ValueError):
        sent = {}
    old = next((value for name, value in sent.items() if name != "new_password"), "")
    errors = [] if request.user.check_password(old) else ["wrong"]
    errors += _refusals(sent.get("new_password", ""), request.user)
    if not errors:
        request.user.set_password(sent["new_password"])
        request.user.save()
        update_session_auth_hash(request, request.user)
    return JsonResponse({"errors": errors})


def validated(request: HttpRequest) -> JsonResponse:
    new = json.loads(request.body)["new_password"]
    return JsonResponse({"errors": _refusals(new, request.user)})


def _refusals(new: str, user: Any) -> list[str]:
    try:
        validate_password(new, user)
    except ValidationError as refused:
        return [str(one.code) for one in refused.error_list]
    return []


urlpatterns = [
    path("json-change/", change_by_json, name="json-change"),
    path("validated/", validated),
    path("other/", change, name="other-change"),
    *base,
]

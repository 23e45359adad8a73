from __future__ import annotations

import time

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import include, path
from django.views.decorators.csrf import csrf_exempt


@csrf_exempt
def cart(request: HttpRequest) -> HttpResponse:
    """Slow between the session that it read and the one that it writes."""
    user = request.user.pk
    before = request.session.get("cart", [])
    time.sleep(float(request.POST.get("pause", 0)))
    if request.method == "POST":
        request.session["cart"] = [*before, request.POST["item"]]
    return JsonResponse({"user": user, "cart": request.session.get("cart", [])})


urlpatterns = [
    path("", cart),
    path("cart/", cart),
    path("account/", include("pwexpire.urls")),
    path("accounts/", include("django.contrib.auth.urls")),
]

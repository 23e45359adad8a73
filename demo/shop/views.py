"""A shop that knows nothing of expired passwords: the middleware does all of it."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods, require_safe

from shop.seed import PEOPLE, PRODUCTS


def lines(request: HttpRequest) -> list[dict[str, Any]]:
    cart: dict[str, int] = request.session.get("cart", {})
    return [
        {"item": item, "name": PRODUCTS[item], "quantity": quantity}
        for item, quantity in sorted(cart.items())
    ]


@require_safe
def home(request: HttpRequest) -> HttpResponse:
    return render(request, "shop/home.html", {"people": PEOPLE, "products": PRODUCTS})


@login_required
@require_http_methods(["GET", "HEAD", "POST"])
def cart(request: HttpRequest) -> HttpResponse:
    if request.method == "POST":
        item = request.POST.get("item", "")
        if item in PRODUCTS:
            contents = dict(request.session.get("cart", {}))
            contents[item] = contents.get(item, 0) + 1
            request.session["cart"] = contents
        return redirect("cart")
    return render(request, "shop/cart.html", {"lines": lines(request), "products": PRODUCTS})


@require_safe
def api_cart(request: HttpRequest) -> JsonResponse:
    if not request.user.is_authenticated:
        return JsonResponse({"detail": "Log in first."}, status=401)
    return JsonResponse({"lines": lines(request)})

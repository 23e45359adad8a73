from __future__ import annotations

from django.contrib import admin
from django.contrib.auth import authenticate, get_user_model, update_session_auth_hash
from django.contrib.auth.forms import BaseUserCreationForm
from django.contrib.auth.hashers import make_password
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect
from django.urls import include, path
from django.views.decorators.csrf import csrf_exempt
from django.views.i18n import JavaScriptCatalog

from pwexpire.decorators import password_expiry_exempt
from pwexpire.services import record_password_change


def home(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.user.get_username() or "anonymous")


async def ahome(request: HttpRequest) -> HttpResponse:
    user = await request.auser()
    return HttpResponse(user.get_username() or "anonymous")


def plain(request: HttpRequest) -> HttpResponse:
    return HttpResponse("plain")


def ran() -> None:
    """Called where a view has run."""


def flag(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(request.session.get("password_expired")))


def cycle(request: HttpRequest) -> HttpResponse:
    request.session.cycle_key()
    return HttpResponse("another key")


@csrf_exempt
def cart(request: HttpRequest) -> HttpResponse:
    ran()
    if request.method == "POST":
        request.session["cart"] = [*request.session.get("cart", []), request.POST["item"]]
    return JsonResponse({"cart": request.session.get("cart", [])})


def json(request: HttpRequest) -> HttpResponse:
    return JsonResponse({"user": request.user.get_username()})


@password_expiry_exempt
def exempt(request: HttpRequest) -> HttpResponse:
    return HttpResponse("exempt")


@password_expiry_exempt
@csrf_exempt
def sudo(request: HttpRequest) -> HttpResponse:
    """Asks for the password again, and keeps the session alive when its hash was upgraded."""
    user = authenticate(request, username=request.user.username, password=request.POST["password"])
    update_session_auth_hash(request, user)
    return HttpResponse("sudo")


@password_expiry_exempt
@csrf_exempt
def set_hash(request: HttpRequest) -> HttpResponse:
    """A change that Django's model does not see, with a session that is kept alive."""
    user = request.user
    hashed = make_password(request.POST["password"])
    get_user_model().objects.filter(pk=user.pk).update(password=hashed)
    user.refresh_from_db()
    update_session_auth_hash(request, user)
    if "record" in request.POST:
        record_password_change(user)
    return HttpResponse("changed")


@csrf_exempt
def signup(request: HttpRequest) -> HttpResponse:
    form = BaseUserCreationForm(request.POST)
    if not form.is_valid():
        return JsonResponse(form.errors, status=400)
    form.save()
    return redirect("/")


urlpatterns = [
    path("", home, name="home"),
    path("ahome/", ahome),
    path("plain/", plain, name="plain"),
    path("cart/", cart),
    path("cycle/", cycle),
    path("flag/", flag),
    path("json/", json),
    path("exempt/", exempt),
    path("signup/", signup),
    path("exempt/sudo/", sudo),
    path("exempt/hash/", set_hash),
    path("account/", include("pwexpire.urls")),
    path("", include("pwexpire.urls.well_known")),
    path("accounts/", include("django.contrib.auth.urls")),
    path("admin/", admin.site.urls),
    path("i18n/", include("django.conf.urls.i18n")),
    path("jsi18n/", JavaScriptCatalog.as_view()),
]

from __future__ import annotations

from django.contrib import admin
from django.urls import include, path
from two_factor.urls import urlpatterns as two_factor_urls

from tests.urls import home, plain

urlpatterns = [
    path("", home, name="home"),
    path("plain/", plain, name="logout"),
    path("account/", include("pwexpire.urls")),
    path("accounts/", include("allauth.urls")),
    path("api/", include("djoser.urls")),
    path("cms/", include("wagtail.admin.urls")),
    path("two/", include(two_factor_urls)),
    path("oidc/", include("mozilla_django_oidc.urls")),
    path("admin/", admin.site.urls),
]

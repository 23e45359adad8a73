from __future__ import annotations

from django.urls import include, path

from tests.urls import urlpatterns as site

urlpatterns = [*site, path("hijack/", include("hijack.urls"))]

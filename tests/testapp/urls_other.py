from __future__ import annotations

from django.urls import include, path

from tests.urls import cart, home

urlpatterns = [
    path("", home),
    path("exempt/", cart),
    path("inner/", include("pwexpire.urls")),
]

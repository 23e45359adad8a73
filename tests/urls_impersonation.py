from __future__ import annotations

from importlib.util import find_spec

from django.urls import include, path

from tests.urls import urlpatterns as site

urlpatterns = [
    *site,
    *(
        path(f"{name}/", include(f"{name}.urls"))
        for name in ("hijack", "impersonate", "loginas")
        if find_spec(name)
    ),
]

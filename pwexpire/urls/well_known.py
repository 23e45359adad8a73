"""To be included at the site's root: ``path("", include("pwexpire.urls.well_known"))``."""

from __future__ import annotations

from django.urls import path

from pwexpire.views import well_known

urlpatterns = [path(".well-known/change-password", well_known, name="pwexpire_well_known")]

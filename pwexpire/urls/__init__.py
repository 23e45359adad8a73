from __future__ import annotations

from django.urls import path

from pwexpire.views import LogoutView, PasswordChangeDoneView, PasswordChangeView, well_known

app_name = "pwexpire"
urlpatterns = [
    path("password-change/", PasswordChangeView.as_view(), name="password_change"),
    path("password-change/done/", PasswordChangeDoneView.as_view(), name="password_change_done"),
    path("log-out/", LogoutView.as_view(), name="logout"),
    # Of use where this module is included at the site's root; see pwexpire.urls.well_known.
    path(".well-known/change-password", well_known, name="well_known"),
]

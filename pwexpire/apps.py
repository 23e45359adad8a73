from __future__ import annotations

from django.apps import AppConfig, apps
from django.contrib.auth import get_user_model
from django.contrib.auth.signals import user_logged_in, user_logged_out
from django.core import checks as django_checks
from django.core.signals import setting_changed
from django.db.models.signals import post_delete, post_migrate, post_save, pre_save
from django.utils.translation import gettext_lazy as _


class PasswordExpiryConfig(AppConfig):
    name = "pwexpire"
    verbose_name = _("Password expiry")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from pwexpire import checks, receivers

        setting_changed.connect(receivers.on_setting_changed, dispatch_uid="pwexpire.settings")
        user_logged_in.connect(receivers.on_login, dispatch_uid="pwexpire.login")
        user_logged_out.connect(receivers.on_logout, dispatch_uid="pwexpire.logout")
        pre_save.connect(receivers.before_user_saved, dispatch_uid="pwexpire.before_user_saved")
        post_save.connect(receivers.after_user_saved, dispatch_uid="pwexpire.after_user_saved")
        users = get_user_model()
        # For a sender each: with a receiver for all models Django deletes no rows at once any more.
        for model in (one for one in apps.get_models() if issubclass(one, users)):
            uid = f"pwexpire.after_deleted.{model._meta.label}"
            post_delete.connect(receivers.after_user_deleted, sender=model, dispatch_uid=uid)
        post_migrate.connect(
            receivers.after_migrate, sender=self, dispatch_uid="pwexpire.after_migrate"
        )
        for check in checks.ALL:
            django_checks.register(check, django_checks.Tags.security)
        if apps.is_installed("axes"):  # pragma: no branch
            from axes.signals import user_locked_out

            from pwexpire.contrib.axes import on_lockout

            user_locked_out.connect(on_lockout, dispatch_uid="pwexpire.lockout")

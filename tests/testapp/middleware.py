from __future__ import annotations

from django.contrib.auth import get_user, get_user_model, login
from django.utils.deprecation import MiddlewareMixin
from django.utils.functional import SimpleLazyObject

from pwexpire.middleware import PasswordExpiryMiddleware


class OtherWorld(MiddlewareMixin):
    """The URLconf of another host."""

    def process_request(self, request):
        name = request.headers.get("x-urlconf")
        if name:
            request.urlconf = name


class LogsIn(MiddlewareMixin):
    """Logs a user in by a header, behind everybody else."""

    def process_request(self, request):
        name = request.headers.get("x-login")
        if name:
            user = get_user_model().objects.get(username=name)
            login(request, user, backend="django.contrib.auth.backends.ModelBackend")


class OwnExpiry(PasswordExpiryMiddleware):
    """A site's own rules: service accounts are not held."""

    def should_enforce(self, request, user):
        return not user.get_username().startswith("service-")


def passing(get_response):
    return get_response


class Behind(MiddlewareMixin):
    """Stands behind, and keeps the paths that reached it."""

    seen: list[str] = []

    def process_request(self, request):
        self.seen.append(request.path)


class OtherSession(MiddlewareMixin):
    """Takes the session from a header, behind everybody else."""

    def process_request(self, request):
        key = request.headers.get("x-session")
        if key:
            request.session = type(request.session)(key)
            request.user = SimpleLazyObject(lambda: get_user(request))


class OtherUser(MiddlewareMixin):
    """Puts the user of a header in front of the view, as a token or an impersonation does."""

    def process_request(self, request):
        name = request.headers.get("x-user")
        if name:
            request.user = get_user_model().objects.get(username=name)

from __future__ import annotations

import uuid

from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.contrib.sessions.base_session import AbstractBaseSession
from django.db import models


class AccountSession(AbstractBaseSession):
    account_id = models.IntegerField(null=True, db_index=True)

    @classmethod
    def get_session_store_class(cls):
        from tests.testapp.sessions_db import SessionStore

        return SessionStore


class Manager(BaseUserManager):
    def create_user(self, email, password=None, **fields):
        user = self.model(email=email, **fields)
        user.set_password(password)
        user.save()
        return user


class Person(AbstractBaseUser):
    """No username, no date_joined, no is_staff, no groups; a manager that hides some."""

    email = models.EmailField(unique=True)
    hidden = models.BooleanField(default=False)

    objects = Manager()
    USERNAME_FIELD = "email"
    EMAIL_FIELD = "email"

    class Meta:
        abstract = True


class Visible(Manager):
    def get_queryset(self):
        return super().get_queryset().filter(hidden=False)


class UUIDUser(Person):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    objects = Visible()


class NamedUser(Person):
    code = models.CharField(primary_key=True, max_length=20)


class PrefixedKey(models.UUIDField):
    """Sessions and URLs have it as ``usr_`` and its digits."""

    def to_python(self, value):
        return super().to_python(value.removeprefix("usr_") if isinstance(value, str) else value)

    def value_to_string(self, obj):
        return f"usr_{self.value_from_object(obj).hex}"


class PrefixedUser(Person):
    id = PrefixedKey(primary_key=True, default=uuid.uuid4)
    objects = Visible()

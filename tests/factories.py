from __future__ import annotations

import factory
from django.contrib.auth import get_user_model

from tests.support import OLD


class UserFactory(factory.django.DjangoModelFactory):
    class Meta:
        model = get_user_model()
        django_get_or_create = ("username",)
        skip_postgeneration_save = True

    username = factory.Sequence(lambda n: f"user{n}")
    email = factory.LazyAttribute(lambda user: f"{user.username}@example.com")

    @classmethod
    def _create(cls, model_class, *args, **kwargs):
        kwargs.setdefault("password", OLD)
        return model_class._default_manager.create_user(*args, **kwargs)


class StaffFactory(UserFactory):
    is_staff = True


class AdminFactory(StaffFactory):
    is_superuser = True

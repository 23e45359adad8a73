"""The example of the README, inside a TestCase that never commits."""

from __future__ import annotations

from django.contrib.auth import get_user_model
from django.test import TestCase

from pwexpire import services, testing
from tests.factories import UserFactory
from tests.support import change_password


class HoldTest(TestCase):
    def setUp(self):
        testing.reset()
        with testing.committed():
            self.alice = UserFactory(username="alice")

    def test_is_held(self):
        self.client.force_login(self.alice)
        testing.expire(self.alice)
        self.assertRedirects(self.client.get("/"), "/account/password-change/?next=/")

    def test_is_released(self):
        testing.expire(self.alice)
        self.client.force_login(self.alice)
        with testing.committed():
            change_password(self.client)
        self.assertEqual(self.client.get("/").status_code, 200)

    def test_ages_and_everyone(self):
        with self.settings(PWEXPIRE_POLL_SECONDS=None):
            self.client.force_login(self.alice)
            self.assertEqual(self.client.get("/").status_code, 200)
            with testing.committed():
                services.expire_everyone()
            self.assertEqual(self.client.get("/").status_code, 302)

    def test_nothing_is_left_of_the_other_tests(self):
        self.client.force_login(self.alice)
        self.assertEqual(self.client.get("/").status_code, 200)
        self.assertEqual(get_user_model().objects.count(), 1)

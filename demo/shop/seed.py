"""The people and the goods of the demo."""

from __future__ import annotations

from dataclasses import dataclass

from django.contrib.auth.models import User


@dataclass(frozen=True)
class Person:
    name: str
    password: str
    role: str
    staff: bool = False


PEOPLE = (
    Person("admin", "admin-Pass-2026", "may expire passwords in the admin", staff=True),
    Person("alice", "alice-Pass-2026", "a customer"),
    Person("bob", "bob-Pass-2026", "another customer"),
)
PRODUCTS = {"tea": "Green tea", "coffee": "Coffee beans", "honey": "Heather honey"}


def password_of(name: str) -> str:
    return next(person.password for person in PEOPLE if person.name == name)


def seed() -> list[str]:
    """Make who is missing, leave everybody else alone. The names of those who were made."""
    made = []
    for person in PEOPLE:
        if User.objects.filter(username=person.name).exists():
            continue
        make = User.objects.create_superuser if person.staff else User.objects.create_user
        make(person.name, f"{person.name}@example.com", person.password)
        made.append(person.name)
    return made

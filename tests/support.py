"""What tests do as a person with a browser would, and what they look at behind the scenes."""

from __future__ import annotations

from copy import copy
from importlib import import_module
from typing import Any

from django.conf import settings

OLD = "old-Password-1"
NEW = "new-Password-2"


def made(what: Any, **values: Any) -> Any:
    """A state of a session or a request, which are made without arguments; or one like another."""
    found = what() if isinstance(what, type) else copy(what)
    for name, value in values.items():
        setattr(found, name, value)
    return found


def is_held(browser: Any, path: str = "/") -> bool:
    response = browser.get(path)
    if response.status_code == 302:
        assert response["Location"].startswith("/account/password-change/"), response["Location"]
        return True
    assert response.status_code == 200, response.status_code
    return False


def change_password(
    browser: Any,
    *,
    old: str = OLD,
    new: str = NEW,
    url: str = "/account/password-change/",
    next: str = "",
) -> Any:
    data = {"old_password": old, "new_password1": new, "new_password2": new}
    return browser.post(url, {**data, "next": next} if next else data)


def open_session(browser: Any) -> Any:
    cookie = browser.cookies.get("sessionid")
    return import_module(settings.SESSION_ENGINE).SessionStore(cookie and cookie.value)


def session_of(browser: Any) -> dict[str, Any]:
    return dict(open_session(browser).items())


def store_session(browser: Any, *, set_expiry: Any = None, **values: Any) -> None:
    """Write into the stored session as a view of the site would; ``None`` takes a key out."""
    session = open_session(browser)
    for name, value in values.items():
        if value is None:
            session.pop(name, None)
        else:
            session[name] = value
    if set_expiry is not None:
        session.set_expiry(set_expiry)
    session.save()
    browser.cookies["sessionid"] = session.session_key

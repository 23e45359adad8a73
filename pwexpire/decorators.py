from __future__ import annotations

from typing import Any, TypeVar

from pwexpire.constants import EXEMPT_ATTRIBUTE

ViewT = TypeVar("ViewT", bound=Any)


def password_expiry_exempt(view: ViewT) -> ViewT:
    """Let held sessions reach ``view``: a function, an async function, a class or ``as_view()``.

    The view itself is returned, marked; it is not wrapped, so it stays what it was.
    """
    setattr(view, EXEMPT_ATTRIBUTE, True)
    return view

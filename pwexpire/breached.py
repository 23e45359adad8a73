"""Passwords that were found in breaches: by a list on disk, or by the range API.

Both take SHA-1 hashes, since that is what the lists of Have I Been Pwned are made of.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    UnknownHandler,
)

from django.core.exceptions import ImproperlyConfigured, ValidationError
from django.utils.module_loading import import_string
from django.utils.translation import gettext as _
from django.views.decorators.debug import sensitive_variables

logger = logging.getLogger("pwexpire")

CODE = "password_breached"
HASH_LENGTH, PREFIX_LENGTH = 40, 5
HEX_DIGITS = b"0123456789ABCDEF"
# Longer than any line, so that a file that has none does not fill the memory.
LINE_MAX = 100
SAMPLES = 16
RANGE_URL = "https://api.pwnedpasswords.com/range/"
# A padded answer has up to 1,000 lines of some 40 bytes.
ANSWER_MAX, READ_SIZE = 1_000_000, 65_536
# None for plain HTTP, and none that follows a redirect to somewhere else.
HANDLERS: tuple[Callable[[], Any], ...] = (
    ProxyHandler,
    HTTPSHandler,
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    UnknownHandler,
)

Client = Callable[[str, float], str]


@sensitive_variables()
def _sha1(password: str) -> str:
    data = password.encode(errors="surrogatepass")
    return hashlib.sha1(data, usedforsecurity=False).hexdigest().upper()


class _Refuses:
    """The texts of both. ``threshold``: in how many breaches a password must have been seen."""

    threshold: int

    def get_help_text(self) -> str:
        return _("Your password can’t be one that was found in a data breach.")

    def refuse(self, seen: int) -> None:
        """Raises ``ValidationError`` with the code ``password_breached``."""
        if seen >= max(1, self.threshold):
            raise ValidationError(
                _("This password was found in a data breach. Choose another one."), code=CODE
            )


class BreachedPasswordListValidator(_Refuses):
    """Refuses the passwords of a list on disk: lines of ``SHA1`` or ``SHA1:COUNT``, in order.

    ``path``: the file, as the downloader of Have I Been Pwned writes it, ordered by hash; it is
    searched where it lies, whatever its size. ``threshold``: how often a password must be in it.
    Raises ``ImproperlyConfigured`` for a file that cannot be read or is not such a list. A file
    that is lost later lets passwords pass, and is logged.
    """

    def __init__(self, path: str | Path, threshold: int = 1) -> None:
        self.path, self.threshold = Path(path), threshold
        try:
            with self.path.open("rb") as file:
                ordered = _is_ordered(file)
        except OSError as error:
            raise ImproperlyConfigured(
                f"The list of breached passwords {self.path} cannot be read ({error.strerror}): "
                "give the path of a file that the server may read."
            ) from None
        if not ordered:
            raise ImproperlyConfigured(
                f"{self.path} is no list of SHA-1 hashes in ascending order: download the one that "
                "is ordered by hash, or sort it (LC_ALL=C sort)."
            )

    @sensitive_variables()
    def validate(self, password: str, user: Any = None) -> None:
        try:
            with self.path.open("rb") as file:
                seen = _find_count(file, _sha1(password).encode())
        except OSError as error:
            logger.error("The list of breached passwords was not asked: %s", error)
            return
        self.refuse(seen)


def _line_after(file: BinaryIO, at: int) -> tuple[int, bytes]:
    """Return the start of the first line that begins at ``at`` or later, and its text."""
    file.seek(max(0, at - 1))
    if at:
        file.readline(LINE_MAX)
    return file.tell(), file.readline(LINE_MAX).strip().upper()


def _is_ordered(file: BinaryIO) -> bool:
    """Return whether a handful of lines are hashes in ascending order."""
    size = file.seek(0, 2)
    lines = [_line_after(file, size * sample // SAMPLES)[1] for sample in range(SAMPLES)]
    found = [line.partition(b":")[0] for line in lines if line]
    hashes = all(len(one) == HASH_LENGTH and not one.strip(HEX_DIGITS) for one in found)
    return bool(found) and hashes and found == sorted(found)


@sensitive_variables()
def _find_count(file: BinaryIO, digest: bytes) -> int:
    """Return how often it was seen, 0 if it is not there; without a count it was seen once."""
    low, high = 0, file.seek(0, 2)
    while low < high:
        middle = (low + high) // 2
        start, line = _line_after(file, middle)
        key, _colon, count = line.partition(b":")
        if key == digest:
            return int(count) if count.isdigit() else 1
        if start >= high or not key or key > digest:  # empty lines are at the end
            high = middle
        else:
            low = file.tell()
    return 0


class HIBPValidator(_Refuses):
    """Asks the range API of Have I Been Pwned, which gets 5 of the 40 digits of a SHA-1 hash.

    ``client``: who asks it, a callable ``(prefix, timeout) -> str`` or the path to one; by default
    the standard library does. ``timeout``: seconds. ``threshold``: in how many breaches a password
    must have been seen. Where there is no answer the password passes, and that is logged.
    """

    def __init__(
        self, client: Client | str | None = None, timeout: float = 2.0, threshold: int = 1
    ) -> None:
        self.client: Client = import_string(client) if isinstance(client, str) else client or fetch
        self.timeout, self.threshold = timeout, threshold

    @sensitive_variables()
    def validate(self, password: str, user: Any = None) -> None:
        digest = _sha1(password)
        try:
            answer = self.client(digest[:PREFIX_LENGTH], self.timeout)
            seen = _count_suffix(answer, digest[PREFIX_LENGTH:])
        except Exception as error:  # whatever a client raises; its message may have the address
            logger.warning("Breached passwords could not be asked for: %s", type(error).__name__)
            return
        self.refuse(seen)


@sensitive_variables()
def _count_suffix(answer: str, suffix: str) -> int:
    """Return the count of ``suffix``; lines of padding have the count 0."""
    for line in answer.splitlines():
        found, _colon, count = line.strip().partition(":")
        if found.upper() == suffix:
            return int(count)
    return 0


@sensitive_variables()
def fetch(prefix: str, timeout: float) -> str:
    """Ask the range API. ``timeout``: seconds, for the whole of the answer.

    Raises ``OSError`` or ``http.client.HTTPException`` where it does not answer as it should.
    """
    opener = OpenerDirector()
    for handler in HANDLERS:
        opener.add_handler(handler())
    headers = {"Add-Padding": "true", "User-Agent": "pwexpire"}
    deadline = time.monotonic() + timeout
    answer = bytearray()
    with opener.open(Request(RANGE_URL + prefix, headers=headers), timeout=timeout) as response:
        while part := response.read1(READ_SIZE):
            answer += part
            if len(answer) > ANSWER_MAX:
                raise OSError("The answer is too long.")
            if time.monotonic() > deadline:
                raise TimeoutError("The answer takes too long.")
    return answer.decode("ascii")

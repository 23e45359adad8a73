"""A browser as far as the tour needs one: cookies of its own, and forms that are really fetched."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx

HTML = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
NAVIGATE = {"Accept": HTML, "Sec-Fetch-Mode": "navigate"}
FETCH = {"Accept": "application/json", "Sec-Fetch-Mode": "cors"}
UNSEEN = ("script", "style", "head")


class TourError(Exception):
    """The tour cannot go on: a page is not what the next step needs."""


@dataclass
class Form:
    action: str = ""
    method: str = "get"
    fields: list[tuple[str, str]] = field(default_factory=list)
    buttons: dict[str, list[str]] = field(default_factory=dict)
    options: dict[str, dict[str, str]] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)

    def option(self, name: str, label: str) -> str:
        """The value of the option of the select ``name`` that reads ``label``."""
        for value, text in self.options.get(name, {}).items():
            if text.casefold() == label.casefold():
                return value
        raise TourError(f'The select "{name}" offers no "{label}": {self.options.get(name)}')

    def filled(self, values: Mapping[str, str]) -> dict[str, list[str]]:
        """What is sent: the fields as they came, with ``values`` typed over them."""
        sent: dict[str, list[str]] = {}
        for name, value in self.fields:
            sent.setdefault(name, []).append(value)
        sent.update({name: [value] for name, value in values.items()})
        return sent


class Page(HTMLParser):
    """The forms, the title and the visible text of an HTML page; lists of text by their class."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.forms: list[Form] = []
        self.title = ""
        self.text: list[str] = []
        self.lists: dict[str, list[str]] = {}
        self._list: list[str] = []
        self._form: Form | None = None
        self._select: tuple[str, bool] | None = None
        self._option: tuple[str, bool] | None = None
        self._option_text = ""
        self._textarea: str | None = None
        self._inside: list[str] = []
        self.feed(html)
        self.close()

    def form_with(self, name: str) -> Form:
        for form in self.forms:
            if name in form.names:
                return form
        raise TourError(f'The page "{self.title}" has no form with a "{name}"')

    def listed(self, name: str) -> str:
        """What the lists with this class say: the errors of a form, the messages of the admin."""
        return " ".join(self.lists.get(name, ()))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag in (*UNSEEN, "title"):
            self._inside.append(tag)
        elif tag == "form":
            self._form = Form(given.get("action", ""), given.get("method", "get").lower())
            self.forms.append(self._form)
        elif tag == "ul":
            self._list = given.get("class", "").split()
        elif self._form is not None and "disabled" not in given:
            self._control(self._form, tag, given)

    def _control(self, form: Form, tag: str, given: dict[str, str]) -> None:
        name, value = given.get("name", ""), given.get("value", "")
        kind = given.get("type", "submit" if tag == "button" else "text").lower()
        if tag == "option" and self._select is not None:
            self._end_option()
            self._option, self._option_text = (value, "selected" in given), ""
            return
        if tag not in ("input", "button", "select", "textarea") or not name:
            return
        form.names.add(name)
        if tag == "select":
            self._select = (name, False)
            form.options[name] = {}
        elif tag == "textarea":
            self._textarea = name
            form.fields.append((name, ""))
        elif kind in ("submit", "image"):
            form.buttons.setdefault(name, []).append(value)
        elif kind in ("checkbox", "radio"):
            if "checked" in given:
                form.fields.append((name, value or "on"))
        elif kind not in ("button", "reset", "file"):
            form.fields.append((name, value))

    def _end_option(self) -> None:
        if self._option is None or self._select is None or self._form is None:
            return
        (value, chosen), (name, found) = self._option, self._select
        options = self._form.options[name]
        options[value] = " ".join(self._option_text.split())
        if chosen or len(options) == 1:
            if not found:
                self._form.fields = [pair for pair in self._form.fields if pair[0] != name]
            self._form.fields.append((name, value))
            self._select = (name, chosen)
        self._option = None

    def handle_endtag(self, tag: str) -> None:
        if tag in (*UNSEEN, "title") and tag in self._inside:
            self._inside.remove(tag)
        elif tag == "form":
            self._form = None
        elif tag == "ul":
            self._list = []
        elif tag == "option":
            self._end_option()
        elif tag == "select":
            self._end_option()
            self._select = None
        elif tag == "textarea":
            self._textarea = None

    def handle_data(self, data: str) -> None:
        words = " ".join(data.split())
        if "title" in self._inside:
            self.title = f"{self.title} {words}".strip()
        elif self._option is not None:
            self._option_text += data
        elif self._textarea is not None and self._form is not None:
            name, value = self._form.fields.pop()
            self._form.fields.append((name, value + data))
        elif words and not self._inside:
            self.text.append(words)
            for name in self._list:
                self.lists.setdefault(name, []).append(words)


@dataclass
class Answer:
    response: httpx.Response

    @property
    def status(self) -> int:
        return self.response.status_code

    @property
    def path(self) -> str:
        return _target(str(self.response.request.url))

    @property
    def page(self) -> Page:
        return Page(self.response.text)

    @property
    def kind(self) -> str:
        value: str = self.response.headers.get("Content-Type", "")
        return value.partition(";")[0]

    @property
    def location(self) -> str:
        """Where it leads, as path and query; a site of its own stays visible."""
        where = self.response.headers.get("Location", "")
        if not where:
            return ""
        here = str(self.response.request.url)
        there = urljoin(here, where)
        return _target(there) if urlsplit(there).netloc == urlsplit(here).netloc else there

    @property
    def json(self) -> dict[str, Any]:
        try:
            found = self.response.json()
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def described(self) -> list[str]:
        """The answer, as the tour prints it."""
        headers = self.response.headers
        html = self.kind in ("text/html", "")
        first = f"{self.status} {self.response.reason_phrase}"
        if html and not self.location:
            page = self.page
            first = f'{first} "{page.title or " ".join(page.text)[:100]}"'
        out = [first]
        if self.location:
            out.append(f"Location: {headers['Location']}")
        if not html:
            out.append(f"Content-Type: {headers['Content-Type']}")
        if self.status >= 300 and "Cache-Control" in headers:
            out.append(f"Cache-Control: {headers['Cache-Control']}")
        if self.kind.endswith("json"):
            out.append(json.dumps(self.json, ensure_ascii=False))
        return out


class Browser:
    """One cookie jar. ``tell`` prints what was sent and what came back."""

    def __init__(self, name: str, url: str, tell: Callable[[str, str, list[str]], None]) -> None:
        self.name = name
        self.tell = tell
        self.client = httpx.Client(
            base_url=url, timeout=60, trust_env=False, headers={"User-Agent": "pwexpire-tour"}
        )

    @property
    def session_key(self) -> str:
        return self.client.cookies.get("sessionid") or ""

    def get(self, path: str) -> Answer:
        return self._send("GET", path, NAVIGATE)

    def fetch(self, path: str) -> Answer:
        return self._send("GET", path, FETCH, how="fetch")

    def submit(self, at: Answer, form: Form, values: Mapping[str, str], show: str = "") -> Answer:
        """Send a form of the page ``at`` as a browser would. ``show``: what of it is printed."""
        path = _target(urljoin(str(at.response.request.url), form.action))
        return self._send(form.method.upper(), path, NAVIGATE, form.filled(values), show)

    def follow(self, answer: Answer, limit: int = 5) -> Answer:
        while answer.location and limit:
            answer, limit = self.get(answer.location), limit - 1
        return answer

    def log_in(self, name: str, password: str, path: str = "/accounts/login/") -> Answer:
        at = self.get(path)
        form = at.page.form_with("password")
        values = {"username": name, "password": password}
        return self.submit(at, form, values, show=f"username={name} password=***")

    def _send(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        data: Mapping[str, list[str]] | None = None,
        show: str = "",
        how: str = "",
    ) -> Answer:
        sent = {"params": data} if method == "GET" and data else {"data": data}
        answer = Answer(self.client.request(method, path, headers=headers, **sent))
        line = " ".join(part for part in (how or method, path, show and f"[{show}]") if part)
        self.tell(self.name, line, answer.described())
        return answer


def _target(url: str) -> str:
    parts = urlsplit(url)
    return parts.path + (f"?{parts.query}" if parts.query else "")

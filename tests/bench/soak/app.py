"""What the servers serve. Where it is loaded before a fork, the parent has answered a request."""

from __future__ import annotations

import os

from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.bench.soak.settings")
application = get_wsgi_application()
asgi = get_asgi_application()

if key := os.environ.get("PWEXPIRE_SOAK_WARM"):
    from django.db import connections
    from django.test import Client

    visitor = Client()
    visitor.cookies["sessionid"] = key
    visitor.get("/")
    connections.close_all()  # a connection must not be shared by a fork

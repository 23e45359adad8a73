"""One HTTP server process with pwexpire's middleware: ``python -m tests.bench.servers``.

It says its port on the first line of its output, and serves until it is ended.
"""

from __future__ import annotations

from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server


class Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


def main() -> None:
    import django

    django.setup()
    from tests.bench.idle import OURS, Served

    server = make_server("127.0.0.1", 0, Served(OURS).handler, handler_class=Quiet)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()

"""A receiver of webhooks, as a process of its own: ``python receiver.py FILE [FAMILY]``.

It prints its port, and writes a line of JSON to the file for each request before it answers. The path says how:
``/STATUS,STATUS,…`` for the first attempts of a message one after another, and the last one for all others;
``/silent`` not at all; ``/redirect?to=ADDRESS`` by that redirect; ``/endless`` with a body that never ends.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import parse_qs, urlsplit

RETRY_AFTER = "1"
"""Of every 429 and 503."""


class Handler(BaseHTTPRequestHandler):
    """Answers a request as its path says."""

    attempts: ClassVar[Counter[str]] = Counter()
    lock = threading.Lock()
    file: Path

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        headers = {name.lower(): value for name, value in self.headers.items()}
        message = headers.get("webhook-id", "")
        with self.lock:
            count = self.attempts[message]
            self.attempts[message] += 1
            line = {"path": self.path, "headers": headers, "body": body, "time": time.time()}
            with self.file.open("a") as file:
                file.write(json.dumps(line) + "\n")
        where = urlsplit(self.path)
        if where.path == "/silent":
            threading.Event().wait()
        elif where.path == "/redirect":
            self.answer(302, {"Location": parse_qs(where.query)["to"][0]})
        elif where.path == "/endless":
            self.answer(200, {}, close=False)
            while True:
                self.wfile.write(b"x" * 65_536)
        else:
            statuses = [int(part) for part in where.path.strip("/").split(",")]
            status = statuses[min(count, len(statuses) - 1)]
            self.answer(status, {"Retry-After": RETRY_AFTER} if status in {429, 503} else {})

    def do_GET(self) -> None:
        """Note what nobody should ask for."""
        self.do_POST()

    def answer(self, status: int, headers: dict[str, str], *, close: bool = True) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if close:
            self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Say nothing: a client that hangs up is what some tests are about."""


if __name__ == "__main__":
    Handler.file = Path(sys.argv[1])
    server = Server(("127.0.0.1", 0), Handler)
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()

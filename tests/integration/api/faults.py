"""A proxy before the API server that spoils single answers, as a slow etcd, a broken connection and a proxy do."""

from __future__ import annotations

import base64
import contextlib
import http.client
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

CUT = 0
"""In the place of a status: the connection ends without an answer."""


@dataclass
class Faults:
    """What is spoilt.

    Attributes:
        creations: A status for each of the next creations of a job; None lets one through.
        committed: Whether a creation reaches the API server before its answer is spoilt.
        away: While set, no connection is answered at all.
        patches_away: While set, no PATCH is answered.
        away_after: Whether it is away once an answer has been spoilt.
        echo: A status for every answer, 0 for none. What is answered quotes the request, as some proxies do.
        echoed: Requests that were answered so.
    gone: Watches that are answered next by 410: what they would go on from is too old.
    """

    creations: list[int | None] = field(default_factory=list)
    committed: bool = True
    away: threading.Event = field(default_factory=threading.Event)
    patches_away: threading.Event = field(default_factory=threading.Event)
    away_after: bool = False
    echo: int = 0
    echoed: int = 0
    gone: int = 0


@dataclass(frozen=True)
class FaultyServer:
    """The API server, with faults.

    Attributes:
        kubeconfig: For a client that meets the faults.
        faults: What is spoilt from now on.
    """

    kubeconfig: Path
    faults: Faults


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, faults: Faults, address: str, context: ssl.SSLContext) -> None:
        super().__init__(("127.0.0.1", 0), _Proxy)
        self.faults = faults
        self._address = address
        self._context = context

    def connection(self) -> http.client.HTTPSConnection:
        """Connect to the API server."""
        return http.client.HTTPSConnection(self._address, context=self._context, timeout=60)


class _Proxy(BaseHTTPRequestHandler):
    """One request on its way to the API server."""

    server: _Server

    def relay(self) -> None:
        faults = self.server.faults
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if faults.echo:
            faults.echoed += 1
            self.quote(faults.echo)
            return
        if faults.gone and "watch=true" in self.path:
            faults.gone -= 1
            self.spoil(410)
            return
        creation = self.command == "POST" and self.path.partition("?")[0].endswith("/generationjobs")
        status = faults.creations.pop(0) if creation and faults.creations else None
        if faults.patches_away.is_set() and self.command == "PATCH":
            self.spoil(CUT)
            return
        if faults.away.is_set() or (status is not None and not faults.committed):
            self.spoil(CUT if status is None else status)
            return
        with contextlib.closing(self.server.connection()) as upstream:
            headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
            upstream.request(self.command, self.path, body, headers)
            answer = upstream.getresponse()
            if status is not None:
                answer.read()
                if faults.away_after:
                    faults.away.set()
                self.spoil(status)
                return
            self.pass_on(answer)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = relay  # noqa: N815 - the server's names

    def pass_on(self, answer: http.client.HTTPResponse) -> None:
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in {"transfer-encoding", "connection", "content-length"}:
                self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):
            while piece := answer.read1(65_536):
                self.wfile.write(piece)
                if self.server.faults.echo:
                    # A watch ends with its next event.
                    break

    def quote(self, status: int) -> None:
        """Answer with the request, and where it is to be repeated: here."""
        page = f"cannot forward {self.requestline}\n{self.headers}".encode()
        self.send_response(status)
        self.send_header("Location", self.path)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def spoil(self, status: int) -> None:
        if status == CUT:
            return
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def faulty_server(kubeconfig: Path, folder: Path) -> Iterator[FaultyServer]:
    """Serve a proxy that has the rights of a kubeconfig with a client certificate."""
    config = yaml.safe_load(kubeconfig.read_text())
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    faults = Faults()
    with _Server(faults, urlsplit(cluster["server"]).netloc, _context(cluster, user, folder)) as server:
        cluster.pop("certificate-authority-data")
        cluster["server"] = f"http://127.0.0.1:{server.server_port}"
        user.clear()
        spoilt = folder / "faulty.kubeconfig"
        spoilt.write_text(yaml.safe_dump(config))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield FaultyServer(spoilt, faults)
        server.shutdown()


def _context(cluster: dict[str, Any], user: dict[str, Any], folder: Path) -> ssl.SSLContext:
    authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
    context = ssl.create_default_context(cadata=authority)
    files = []
    for part in ("client-certificate-data", "client-key-data"):
        file = folder / f"proxy-{part}.pem"
        file.write_bytes(base64.b64decode(user[part]))
        files.append(str(file))
    context.load_cert_chain(*files)
    return context

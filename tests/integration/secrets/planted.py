"""Credentials that a test plants in a part's settings, and the search for them in all that the part writes."""

from __future__ import annotations

import base64
import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import httpx

from integration.api.api_kit import free_port
from kubediffusion.local import installation
from kubediffusion.local.testing import Namespace, wait_for

MARK = "pLaNtEd"
"""Is in every planted value, and nowhere else."""


def secret(name: str) -> str:
    """Make a value that is written otherwise in a URL, in JSON and by Python."""
    return f"{name}/{MARK}+'of=ours"


def in_url(name: str) -> str:
    """Return credentials as they stand in a URL."""
    return f"somebody:{quote(secret(name), safe='')}"


def _in_base64(before: int) -> str:
    """Return what of the mark stands in the Base64 of a text in which so many bytes come before it."""
    length = before + len(MARK)
    return base64.b64encode(bytes(before) + MARK.encode())[-(-before * 8 // 6) : length * 8 // 6].decode()


FORMS = [MARK, MARK.lower(), MARK.encode().hex(), *map(_in_base64, range(3))]


def found(outputs: dict[str, str]) -> list[str]:
    """Return where a planted value is, and what stands around it."""
    return [
        f"{name}: …{text[max(0, at - 200) : at + 40]}…"
        for name, text in outputs.items()
        for form in FORMS
        if (at := text.find(form)) >= 0
    ]


class Part:
    """The API or the operator as a process of its own, under the rights of its service account.

    Args:
        name: ``api`` or ``operator``.
        namespace: What it serves.
        folder: Where its log is written.
        environment: Settings that differ from those of an installation.
        host: Address that it serves on.
        prefix: What its command is run by.
    """

    def __init__(
        self,
        name: str,
        namespace: Namespace,
        folder: Path,
        environment: dict[str, str],
        host: str = "127.0.0.1",
        prefix: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        port = free_port()
        self.log = folder / f"{name}-{port}.log"
        self.http = httpx.Client(
            base_url=f"http://{f'[{host}]' if ':' in host else host}:{port}", timeout=30, trust_env=False
        )
        account = {"api": installation.API, "operator": installation.OPERATOR}[name]
        plane = namespace.cluster.control_plane
        self._environment = {
            "PATH": os.environ["PATH"],
            "KUBECONFIG": str(plane.kubeconfig(f"system:serviceaccount:{namespace.name}:{account}")),
            "KUBEDIFFUSION_ALLOW_UNAUTHENTICATED": "true",
            "KUBEDIFFUSION_NAMESPACE": namespace.name,
            "KUBEDIFFUSION_NAMESPACES": namespace.name,
            "KUBEDIFFUSION_BIND_ADDRESS": host,
            "KUBEDIFFUSION_PORT": str(port),
            "KUBEDIFFUSION_LOG_LEVEL": "DEBUG",
            "KUBEDIFFUSION_S3_BUCKET": installation.BUCKET,
            "KUBEDIFFUSION_S3_PREFIX": installation.PREFIX,
            "NO_PROXY": "127.0.0.1",
            **namespace.cluster.store.settings,
            **environment,
        }
        command = Path(sys.executable).with_name(f"kubediffusion-{name}")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([*prefix, command], env=self._environment, stdout=log, stderr=log)

    def wait_ready(self) -> None:
        def ready() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return self.get("/readyz").startswith("200")

        wait_for(f"{self.name} to be ready", ready)

    def recovers(self) -> bool:
        """Wait until it is ready, and return whether it is: not where it ended, which kopf does without credentials."""

        def ready_or_ended() -> bool:
            return self.process.poll() is not None or self.get("/readyz").startswith("200")

        wait_for(f"{self.name} to be ready, or to end", ready_or_ended)
        return self.process.poll() is None

    def get(self, path: str) -> str:
        """Return status, headers and body of an answer; empty while nobody answers."""
        try:
            answer = self.http.get(path)
        except httpx.TransportError:
            return ""
        return f"{answer.status_code} {answer.headers} {answer.text}"

    def outputs(self) -> dict[str, str]:
        """Return all that it writes: the log and what it serves to anybody."""
        paths: tuple[str, ...] = ("/metrics", "/readyz", "/livez")
        if self.name == "api":
            paths += ("/openapi.json", "/health", "/v1/models", "/v1/jobs")
        return {"log": self.log.read_text(), **{path: self.get(path) for path in paths}}

    def end(self) -> int:
        """End it by SIGTERM, while a connection to it is being closed, and return its exit code."""
        self.http.close()
        self.process.terminate()
        return self.process.wait(30)

    def close(self) -> None:
        self.http.close()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class _Refusing(BaseHTTPRequestHandler):
    """A proxy that wants another password, and quotes the request, as some do."""

    def do_GET(self) -> None:
        page = f"{self.requestline}\n{self.headers}".encode()
        self.send_response(407)
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    do_CONNECT = do_PUT = do_POST = do_DELETE = do_HEAD = do_GET  # noqa: N815 - the server's names

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def refusing_proxy() -> Iterator[int]:
    """Serve a proxy that refuses everything, and yield its port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()

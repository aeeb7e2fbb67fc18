"""Serves the output of containers to the API server, so that ``kubectl logs`` works."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from aiohttp import web

from kubediffusion.local.node.runner import PodRunner
from kubediffusion.local.reservations import LOOPBACK

CHUNK_BYTES = 64 * 1024
FOLLOW_SECONDS = 0.2
# The common name of the certificate that the API server shows to nodes.
READER = "kube-apiserver-kubelet-client"

# Finds a pod that is here, by namespace and name.
FindPod = Callable[[str, str], PodRunner | None]


class LogServer:
    """The one part of kubelet's interface that this node has."""

    def __init__(self, find: FindPod) -> None:
        self._find = find
        application = web.Application()
        application.router.add_get("/containerLogs/{namespace}/{pod}/{container}", self._logs)
        self._runner = web.AppRunner(application, access_log=None)

    async def start(self, port: int, certificate: Path, key: Path, authority: Path) -> None:
        """Start to serve, to holders of a certificate of this cluster alone."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=authority)
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(certificate, key)
        await self._runner.setup()
        await web.TCPSite(self._runner, LOOPBACK, port, ssl_context=context).start()

    async def stop(self) -> None:
        """Stop serving."""
        await self._runner.cleanup()

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        if _user(request) != READER:
            raise web.HTTPForbidden
        where = request.match_info
        previous = request.query.get("previous") == "true"
        pod = self._find(where["namespace"], where["pod"])
        path = pod.log(where["container"], previous=previous) if pod else None
        if pod is None or path is None or not path.exists():
            raise web.HTTPNotFound(text="the container has no log")
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(request)
        tail = request.query.get("tailLines")
        follow = request.query.get("follow") == "true"
        start = _offset(path, int(tail)) if tail is not None else 0
        async for chunk in _read(path, start, lambda: follow and pod.active):
            await response.write(chunk)
        return response


async def _read(path: Path, start: int, more: Callable[[], bool]) -> AsyncIterator[bytes]:
    """Yield a file's content from a place on, and what is added to it for as long as there may be more."""
    with path.open("rb") as file:
        file.seek(start)
        while True:
            going_on = more()  # before reading: what is written until the end is read after it
            while chunk := file.read(CHUNK_BYTES):
                yield chunk
            if not going_on:
                return
            await asyncio.sleep(FOLLOW_SECONDS)


def _offset(path: Path, lines: int) -> int:
    """Return where the last lines of a file begin."""
    content = path.read_bytes()
    kept = content.splitlines(keepends=True)[-lines:] if lines else []
    return len(content) - sum(map(len, kept))


def _user(request: web.Request) -> str:
    certificate = request.transport.get_extra_info("peercert") if request.transport else None
    subject = (certificate or {}).get("subject", ())
    return next((value for part in subject for key, value in part if key == "commonName"), "")

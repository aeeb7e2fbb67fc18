"""The HTTP endpoint of a process without an API of its own: ``/livez``, ``/readyz`` and ``/metrics``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import REGISTRY, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

Check = Callable[[], str | None]
"""Returns what is wrong in a few words, or None when all is well. It must not block."""


@asynccontextmanager
async def serve_probes(
    host: str, port: int, *, live: Check, ready: Check, detail: Check = lambda: None
) -> AsyncIterator[int]:
    """Serve the endpoint while the context lasts; its value is the port that it listens on.

    Args:
        host: Address to bind.
        port: Port to bind; 0 for any free one.
        live: Decides ``/livez``: 200, or 503 when the process should be restarted.
        ready: Decides ``/readyz``: 200, or 503 while it should get no work.
        detail: What ``/readyz`` says beside ``ok``, of parts that do not work while the process does.

    Raises:
        OSError: The port cannot be bound.
    """
    app = web.Application()
    app.router.add_get("/livez", _probe(live))
    app.router.add_get("/readyz", _probe(ready, detail))
    app.router.add_get("/metrics", _metrics)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def _probe(check: Check, detail: Check = lambda: None) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def answer(_: web.Request) -> web.Response:
        if problem := check():
            return web.Response(text=problem, status=503)
        return web.Response(text=f"ok; {more}" if (more := detail()) else "ok")

    return answer


async def _metrics(_: web.Request) -> web.Response:
    return web.Response(body=generate_latest(REGISTRY), headers={"Content-Type": CONTENT_TYPE_LATEST})

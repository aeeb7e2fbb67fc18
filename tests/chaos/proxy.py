"""A network that can be broken: HTTP proxies before the API server and the S3 server, which disturb what they carry.

What a proxy does to a request is decided when it arrives and, for a watch, at every event: a disturbance that begins
hits watches that are open. TLS ends here, with a certificate of the cluster's own authority; clients prove who they are
by tokens and signatures in headers, which go through untouched.
"""

from __future__ import annotations

import asyncio
import json
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import aiohttp
from aiohttp import web
from yarl import URL

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "upgrade", "expect", "te", "trailer", "proxy-connection"}
LOOPBACK = "127.0.0.1"


@dataclass(eq=False)
class Disturbance:
    """What happens to requests for a while.

    Attributes:
        client: Only clients whose User-Agent begins so.
        path: Only paths that begin so.
        share: The part of the requests that it hits, drawn for each.
        delay: Seconds before a request goes on, at most; drawn for each, so that one may overtake another.
        hold: Neither requests nor answers get through, and nobody is told; they do once this is over.
        refuse: The connection is reset before the request goes on.
        lose: The connection is reset after the request was carried out: its answer is lost.
        answer: Status and body to answer with instead; a Retry-After of a second comes with them.
        gone: Watches end with 410 Gone, whether they begin or are open.
        jumble: Events of watches come twice or change places.
    """

    client: str = ""
    path: str = ""
    share: float = 1.0
    delay: float = 0.0
    hold: bool = False
    refuse: bool = False
    lose: bool = False
    answer: tuple[int, bytes] | None = None
    gone: bool = False
    jumble: bool = False


PutObserver = Callable[[str, int], Awaitable[None]]
"""Called after the server has answered a PUT and before the client knows, with the path and the answer's status."""


@dataclass(eq=False)
class _Exchange:
    """One request on its way.

    Attributes:
        request: The request.
        draw: A number in [0, 1) that decides which disturbances hit it.
        watch: Whether it is a watch of the Kubernetes API.
    """

    request: web.Request
    draw: float
    watch: bool


class Proxy:
    """Stands before one server.

    Args:
        server: Where the server answers.
        port: Where this answers, on 127.0.0.1.
        seed: For what is left to chance.
        tls: How to serve, and how to reach the server; None for neither.
    """

    def __init__(
        self, server: str, port: int, seed: int, tls: tuple[ssl.SSLContext, ssl.SSLContext] | None = None
    ) -> None:
        self._server = server
        self._port = port
        self._tls = tls
        self._dice = random.Random(seed)  # noqa: S311 - reproducible, no secret
        self._disturbances: list[Disturbance] = []
        self._changed = asyncio.Event()
        self.url = f"{'https' if tls else 'http'}://{LOOPBACK}:{port}"
        self._put_observers: list[PutObserver] = []

    @contextmanager
    def disturbed(self, disturbance: Disturbance) -> Iterator[None]:
        """Disturb for as long as the block runs."""
        self._disturbances.append(disturbance)
        self._notify()
        try:
            yield
        finally:
            self._disturbances.remove(disturbance)
            self._notify()

    @contextmanager
    def observed(self, observer: PutObserver) -> Iterator[None]:
        """Call the observer at each PUT for as long as the block runs."""
        self._put_observers.append(observer)
        try:
            yield
        finally:
            self._put_observers.remove(observer)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Serve for as long as the block runs."""
        served, reached = self._tls or (None, None)
        connector = aiohttp.TCPConnector(limit=0, ssl=reached if reached is not None else True)
        # An answer goes on as it came: compressed, and however long a watch lasts.
        self._session = aiohttp.ClientSession(
            connector=connector, auto_decompress=False, timeout=aiohttp.ClientTimeout(total=None, sock_connect=10)
        )
        application = web.Application(client_max_size=2**30)
        application.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(application, handler_cancellation=True, access_log=None, shutdown_timeout=1)
        await runner.setup()
        try:
            await web.TCPSite(runner, LOOPBACK, self._port, ssl_context=served, backlog=1024).start()
            yield
        finally:
            await runner.cleanup()
            await self._session.close()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _hits(self, exchange: _Exchange) -> list[Disturbance]:
        agent, path = exchange.request.headers.get("User-Agent", ""), exchange.request.path
        return [
            disturbance
            for disturbance in self._disturbances
            if agent.startswith(disturbance.client)
            and path.startswith(disturbance.path)
            and exchange.draw < disturbance.share
        ]

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        exchange = _Exchange(request, self._dice.random(), request.query.get("watch") in {"true", "1"})
        body = await request.read()
        for disturbance in self._hits(exchange):
            await asyncio.sleep(disturbance.delay * self._dice.random())
            if disturbance.refuse:
                return self._reset(request)
            if disturbance.answer is not None:
                status, content = disturbance.answer
                return web.Response(status=status, body=content, headers={"Retry-After": "1"})
        await self._let_through(exchange)
        headers = [(name, value) for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP]
        try:
            async with self._session.request(
                request.method,
                URL(self._server + request.raw_path, encoded=True),
                headers=headers,
                data=body or None,
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
                allow_redirects=False,
            ) as answer:
                return await self._answer(exchange, answer)
        except (aiohttp.ClientError, OSError):
            return self._reset(request)

    async def _answer(self, exchange: _Exchange, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        request = exchange.request
        if request.method == "PUT":
            for observer in tuple(self._put_observers):
                await observer(request.path, answer.status)
        if not exchange.watch and any(d.lose for d in self._hits(exchange)):
            await answer.read()
            return self._reset(request)
        response = web.StreamResponse(status=answer.status, reason=answer.reason)
        for name, value in answer.headers.items():
            if name.lower() not in HOP_BY_HOP:
                response.headers.add(name, value)
        if exchange.watch and answer.status == 200:
            return await self._stream(exchange, answer, response)
        content = await answer.read()
        await self._let_through(exchange)
        await response.prepare(request)
        if request.method != "HEAD":
            await response.write(content)
        await response.write_eof()
        return response

    async def _stream(
        self, exchange: _Exchange, answer: aiohttp.ClientResponse, response: web.StreamResponse
    ) -> web.StreamResponse:
        """Carry a watch, line by line; a disturbance that begins is noticed between two lines."""
        await response.prepare(exchange.request)
        async for lines in self._lines(exchange, answer):
            await self._let_through(exchange)
            if any(d.gone for d in self._hits(exchange)):
                await response.write(GONE)
                break
            if lines:
                if any(d.jumble for d in self._hits(exchange)):
                    lines = self.jumbled(lines)
                await response.write(b"".join(line + b"\n" for line in lines))
        await response.write_eof()
        return response

    async def _lines(self, exchange: _Exchange, answer: aiohttp.ClientResponse) -> AsyncIterator[list[bytes]]:
        """Yield whole lines as they come, and an empty list when disturbances have changed."""
        rest = b""
        reading = asyncio.ensure_future(answer.content.readany())
        try:
            yield []
            while True:
                changed = asyncio.ensure_future(self._changed.wait())
                done, _ = await asyncio.wait((reading, changed), return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
                if reading not in done:
                    yield []
                    continue
                data = reading.result()
                if not data:
                    return
                *lines, rest = (rest + data).split(b"\n")
                reading = asyncio.ensure_future(answer.content.readany())
                if any(d.jumble for d in self._hits(exchange)):
                    # What comes within a moment is told together, so that there is something to change places.
                    await asyncio.sleep(0.02)
                if lines:
                    yield lines
        finally:
            reading.cancel()

    def jumbled(self, lines: list[bytes]) -> list[bytes]:
        """Repeat a third of the events, and let a third change places with the one after it.

        The Kubernetes API keeps the order of one object's versions, so those stay in order among themselves; a repeated
        event is one that its object was told before.
        """
        events = [line for line in lines for _ in range(1 + (self._dice.random() < 1 / 3))]
        for place in range(len(events) - 1):
            if self._dice.random() < 1 / 3 and _uid(events[place]) != _uid(events[place + 1]):
                events[place], events[place + 1] = events[place + 1], events[place]
        return events

    async def _let_through(self, exchange: _Exchange) -> None:
        while any(d.hold for d in self._hits(exchange)):
            await self._changed.wait()

    def _reset(self, request: web.Request) -> web.StreamResponse:
        """Reset the client's connection; what is returned reaches nobody."""
        if request.transport is not None:
            request.transport.abort()
        return web.Response()


GONE = (
    json.dumps(
        {
            "type": "ERROR",
            "object": {
                "kind": "Status",
                "apiVersion": "v1",
                "status": "Failure",
                "message": "too old resource version",
                "reason": "Expired",
                "code": 410,
            },
        }
    ).encode()
    + b"\n"
)


def _uid(line: bytes) -> str:
    if not line.strip():
        return ""
    return str(json.loads(line)["object"].get("metadata", {}).get("uid", ""))

"""A small HTTP/1.1 client: connections that stay, and nothing that would cost more than what is measured.

It knows what our servers and the plain one send: a Content-Length with every answer.
"""

from __future__ import annotations

import asyncio
import json
import time
from types import TracebackType
from typing import Any, Self, cast

IDLE_SECONDS = 2.0
"""After so long a connection is not used again: servers close theirs after some seconds, uvicorn after 5, and a request
that is on its way then is lost."""

HEAD_END = b"\r\n\r\n"
LENGTH = b"content-length:"


class Connection(asyncio.Protocol):
    """One kept connection, with one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport of the open connection."""
        # uvloop's transports are no asyncio.Transport by inheritance.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Add a part of the answer."""
        self._buffer += data
        head, end, body = self._buffer.partition(HEAD_END)
        if not end or self._answer is None:
            return
        if len(body) < int(head.lower().split(LENGTH, 1)[1].split(b"\r\n", 1)[0]):
            return
        answer, self._answer, self._buffer = self._answer, None, b""
        if not answer.done():
            # Otherwise whoever asked has been cancelled.
            answer.set_result((int(head.split(b" ", 2)[1]), body))

    def connection_lost(self, error: Exception | None) -> None:
        """Fail the request under way."""
        self._transport = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error or ConnectionResetError("the server closed the connection"))

    @property
    def open(self) -> bool:
        """Whether the connection can still be used."""
        return self._transport is not None

    async def send(self, request: bytes) -> tuple[int, bytes]:
        """Send a request, and return the answer's status and body.

        Raises:
            OSError: The connection broke.
        """
        if self._transport is None:
            raise ConnectionResetError("the server closed the connection")
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()


class Client:
    """As many connections as there are requests under way. Use as an async context manager.

    Args:
        host: Address of the server.
        port: Its port.
    """

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self._idle: list[tuple[float, Connection]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _, connection in self._idle:
            connection.close()

    async def request(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        """Make a request with a JSON body, and return the answer's status and body.

        Raises:
            OSError: The server cannot be reached, or the connection broke.
        """
        connection = await self._connection()
        answer = await connection.send(message(method, path, body))
        self._idle.append((time.monotonic(), connection))
        return answer

    async def _connection(self) -> Connection:
        while self._idle:
            since, connection = self._idle.pop()
            if connection.open and time.monotonic() < since + IDLE_SECONDS:
                return connection
            connection.close()
        return await connect(self.host, self.port)


async def connect(host: str, port: int) -> Connection:
    """Open a connection.

    Raises:
        OSError: The server cannot be reached.
    """
    _, connection = await asyncio.get_running_loop().create_connection(Connection, host, port)
    return connection


def message(method: str, path: str, body: Any = None) -> bytes:
    """Return the bytes of a request with a JSON body, or with none."""
    content = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n"
    if body is not None:
        head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
    return f"{head}\r\n".encode() + content

"""A gate between a client and the API server: closed, the connection is gone, as when a network is."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from kubediffusion.local.cluster import LocalCluster
from kubediffusion.local.testing import connect
from kubediffusion.resources.apiserver.client import KubernetesClient


class Gate:
    """Forwards connections while it is open.

    Args:
        port: Where the API server listens.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._open = True
        self._writers: set[asyncio.StreamWriter] = set()

    def close(self) -> None:
        """Break every connection and take no other."""
        self._open = False
        for writer in self._writers:
            writer.transport.abort()

    def open(self) -> None:
        """Take connections again."""
        self._open = True

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward one connection."""
        if not self._open:
            writer.transport.abort()
            return
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, server_writer}
        with contextlib.suppress(OSError):
            await asyncio.gather(_copy(reader, server_writer), _copy(server_reader, writer))
        self._writers -= {writer, server_writer}


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()


@asynccontextmanager
async def gated(cluster: LocalCluster) -> AsyncIterator[tuple[Gate, KubernetesClient]]:
    """Connect as an administrator through a gate."""
    gate = Gate(urlsplit(cluster.control_plane.url).port or 0)
    server = await asyncio.start_server(gate.take, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, await connect(cluster.admin) as client:
        client.configuration.host = f"https://127.0.0.1:{port}"
        yield gate, client
        gate.close()

"""What the client is given to show itself with is used as it was meant, and told to nobody else."""

from __future__ import annotations

import asyncio
import traceback

import pytest

from kubediffusion.client import AsyncClient, InvalidRequestError, KubeDiffusionError
from kubediffusion.client.aio import usable_key

KEY = "planted/key+of=ours"
NOWHERE = "127.0.0.1:1"


@pytest.mark.parametrize("around", ["{}", "{}\n", "{}\r\n", " {} ", "\t{}"])
def test_a_key_is_read_without_the_whitespace_around_it(around: str) -> None:
    assert usable_key(around.format(KEY)) == KEY


@pytest.mark.parametrize("empty", [None, "", "\n", " "])
def test_an_empty_key_is_none(empty: str | None) -> None:
    assert usable_key(empty) is None


@pytest.mark.parametrize("server", [f"http://{NOWHERE}", None], ids=["HTTP", "Kubernetes"])
@pytest.mark.parametrize("wrong", [f"{KEY}\n{KEY}", f"{KEY}\u00e9", f"{KEY}\x00", f"\u201c{KEY}\u201d"])
def test_a_key_that_no_header_carries_is_refused_and_not_quoted(wrong: str, server: str | None) -> None:
    with pytest.raises(InvalidRequestError, match="printable ASCII") as raised:
        AsyncClient(server, wrong, namespace=None if server else "ns")
    assert raised.value.field == "api_key"
    assert "planted" not in "".join(traceback.format_exception(raised.value))


@pytest.mark.parametrize(
    "server", ["http://us%40er:planted@{}/", "us:planted@{}", "http://planted@{}/x\n", "ftp://:planted@{}"]
)
async def test_an_address_is_told_without_its_credentials(server: str) -> None:
    client = AsyncClient(server.format(NOWHERE), retry_seconds=0)
    async with client:
        assert NOWHERE in client.transport.place
        with pytest.raises(KubeDiffusionError) as raised:
            await client.models.list()
        assert "planted" not in f"{client.transport.place} {raised.value}"


async def test_credentials_of_an_address_reach_its_server() -> None:
    """They are kept out of words, not out of requests."""
    asked: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 13\r\nConnection: close\r\n\r\n{"models":[]}')
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with AsyncClient(f"http://user:planted@127.0.0.1:{port}") as client:
            assert await client.models.list() == []
    assert b"Authorization: Basic dXNlcjpwbGFudGVk" in asked[0]

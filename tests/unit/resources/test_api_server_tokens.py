"""A token for the API server is sent as it was meant, from wherever it was read, and quoted nowhere."""

from __future__ import annotations

import asyncio
import json
import traceback
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes.aio.config import kube_config

from kubediffusion.resources.apiserver.errors import KubernetesError
from kubediffusion.resources.apiserver.rest import RestClient

TOKEN = "planted-token"


class Server:
    """Answers every request with an empty object, and keeps its head."""

    def __init__(self) -> None:
        self.port = 0
        self.asked: list[str] = []

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
        await writer.drain()
        writer.close()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    async with await asyncio.start_server(server.answer, "127.0.0.1", 0) as listening:
        server.port = listening.sockets[0].getsockname()[1]
        yield server


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose ``kubeconfig`` is read: the library reads ``KUBECONFIG`` when it is imported, before any test."""
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig"))
    return tmp_path


def write_kubeconfig(home: Path, port: int, user: dict[str, Any]) -> None:
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "it",
        "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
        "clusters": [{"name": "it", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "it", "user": user}],
    }
    (home / "kubeconfig").write_text(json.dumps(content))


def user_of(way: str, token: str, folder: Path) -> dict[str, Any]:
    """Return how a kubeconfig names a token: itself, its file, or a program that prints it."""
    if way == "token":
        return {"token": token}
    file = folder / "token"
    file.write_text(token)
    if way == "tokenFile":
        return {"tokenFile": str(file)}
    status = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {"token": token}}
    (folder / "credential").write_text(json.dumps(status))
    return {
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": "cat",
            "args": [str(folder / "credential")],
            "interactiveMode": "Never",
        }
    }


WAYS = ("token", "tokenFile", "exec")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("around", ["{}", "{}\n", " {}\r\n"], ids=["alone", "newline", "spaces"])
async def test_a_token_is_sent_without_the_whitespace_around_it(
    way: str, around: str, server: Server, home: Path
) -> None:
    write_kubeconfig(home, server.port, user_of(way, around.format(TOKEN), home))
    async with await RestClient.connect("test") as client:
        assert await client.request("GET", "/version") == {}
    (asked,) = server.asked
    assert f"Authorization: Bearer {TOKEN}\r\n".lower() in asked.lower()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("token", [f"{TOKEN}\n{TOKEN}", f"{TOKEN}\u2026"], ids=["two lines", "no ASCII"])
async def test_a_token_that_no_header_carries_is_a_missing_credential(
    way: str, token: str, server: Server, home: Path
) -> None:
    write_kubeconfig(home, server.port, user_of(way, token, home))
    async with await RestClient.connect("test") as client:
        with pytest.raises(KubernetesError) as raised:
            await client.request("GET", "/version")
    assert raised.value.reason == "NoCredentials"
    assert TOKEN not in "".join(traceback.format_exception(raised.value))
    assert server.asked == []

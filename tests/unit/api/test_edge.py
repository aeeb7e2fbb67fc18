"""Paths, methods, origins and prefixes: what reaches a route, from whatever stands before the API."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from kubediffusion.api.app import create_app
from kubediffusion.api.main import listening_sockets
from kubediffusion.api.settings import Settings

Connect = Callable[..., httpx.AsyncClient]

OPEN_PATHS = ["/", "/health", "/livez", "/readyz", "/metrics", "/docs", "/openapi.json"]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Connects a client to an app of some settings, as far as it gets without a cluster."""
    async with AsyncExitStack() as stack:

        def to(**settings: Any) -> httpx.AsyncClient:
            transport = httpx.ASGITransport(create_app(Settings(**settings)))
            http = httpx.AsyncClient(transport=transport, base_url="http://inside:8000")
            stack.push_async_callback(http.aclose)
            return http

        yield to


@pytest.mark.parametrize("path", OPEN_PATHS)
async def test_a_slash_at_the_end_changes_nothing(connect: Connect, path: str) -> None:
    http = connect()
    plain = await http.get(path)
    for slashes in ("/", "//"):
        answer = await http.get(path.rstrip("/") + slashes)
        assert answer.status_code == plain.status_code
        assert answer.headers["Content-Type"] == plain.headers["Content-Type"]


@pytest.mark.parametrize("path", ["/generate/", "/v1/jobs/", "/results/x/", "/v1/models/", "/nowhere/"])
async def test_nothing_redirects_and_loses_the_key_on_the_way(connect: Connect, tmp_path: Path, path: str) -> None:
    http = connect(api_keys_file=tmp_path)
    for method in ("GET", "POST"):
        answer = await http.request(method, path, headers={"X-API-Key": "key"}, json={"prompt": "a cat"})
        # 403, as this app has read no keys: but it was asked for one, and here.
        assert answer.status_code == 403
        assert "Location" not in answer.headers


async def test_the_page_of_the_documentation_finds_its_files_behind_a_slash_too(connect: Connect) -> None:
    http = connect()
    for page, script in (("/docs", '"docs/assets/'), ("/docs/", '"../docs/assets/')):
        assert script in (await http.get(page)).text


@pytest.mark.parametrize("path", [*OPEN_PATHS, "/page/page.js", "/docs/assets/swagger-ui.css", "/nowhere", "/generate"])
async def test_head_is_get_without_the_body(connect: Connect, path: str) -> None:
    http = connect()
    head, get = await http.head(path), await http.get(path)
    assert head.status_code == get.status_code
    # Metrics differ from one request to the next.
    differing = {"x-request-id"} | ({"content-length"} if path == "/metrics" else set())
    assert {n: v for n, v in head.headers.items() if n not in differing} == {
        n: v for n, v in get.headers.items() if n not in differing
    }


async def test_head_is_counted_as_such(connect: Connect) -> None:
    http = connect()
    await http.head("/health")
    line = 'kubediffusion_api_requests_total{method="HEAD",route="/health",status="200"} 1.0'
    assert line in (await http.get("/metrics")).text


async def test_pages_of_other_origins_may_use_it_when_they_are_named(connect: Connect, tmp_path: Path) -> None:
    page = "https://app.example.com"
    http = connect(api_keys_file=tmp_path, cors_origins=f"https://other.example.com, {page}")
    asked = {
        "Origin": page,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type, idempotency-key, x-api-key",
    }
    leave = await http.options("/generate", headers=asked)
    assert (leave.status_code, leave.headers["Access-Control-Allow-Origin"]) == (200, page)
    # A refusal can be read by the page as well, with the headers that say what to do.
    refused = await http.post("/generate", json={"prompt": "a cat"}, headers={"Origin": page})
    assert (refused.status_code, refused.headers["Access-Control-Allow-Origin"]) == (401, page)
    assert "X-Request-ID" in refused.headers["Access-Control-Expose-Headers"]
    assert "Access-Control-Allow-Credentials" not in refused.headers
    stranger = await http.options("/generate", headers={**asked, "Origin": "https://evil.example.com"})
    assert "Access-Control-Allow-Origin" not in stranger.headers


async def test_without_the_setting_no_page_of_another_origin_may_use_it(connect: Connect) -> None:
    answer = await connect().get("/health", headers={"Origin": "https://app.example.com"})
    assert not [name for name in answer.headers if name.lower().startswith("access-control-")]


@pytest.mark.parametrize("path", OPEN_PATHS)
async def test_a_prefix_is_optional(connect: Connect, path: str) -> None:
    """Some proxies strip it, some do not."""
    http = connect(root_path="/images")
    for address in (path, f"/images{path}"):
        assert (await http.get(address)).status_code in {200, 503}, address
    assert (await http.get(f"/imagesx{path}")).status_code == 404
    assert (await http.get("/openapi.json")).json()["servers"] == [{"url": "/images"}]


async def test_a_prefix_does_not_open_what_needs_a_key(connect: Connect, tmp_path: Path) -> None:
    http = connect(root_path="/images", api_keys_file=tmp_path)
    assert (await http.get("/images/health")).status_code == 200
    for path in ("/v1/jobs", "/images/v1/jobs", "/images/images/health", "/images//v1/jobs", "//v1/jobs"):
        assert (await http.get(path)).status_code == 401, path


async def test_the_page_is_sent_to_where_its_relative_addresses_begin(connect: Connect) -> None:
    http = connect(root_path="/images")
    assert (await http.get("/images")).headers["Location"] == "/images/"
    assert (await http.get("/images/")).status_code == 200


def test_it_listens_on_every_address_that_there_is() -> None:
    listening = listening_sockets("", 0)
    ports = {each.getsockname()[1] for each in listening}
    assert len(ports) == 1
    loopback = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
    try:
        for each in listening:
            each.listen()
            peer = (loopback[each.family], ports.copy().pop())
            with socket.create_connection(peer, timeout=5) as client:
                accepted, address = each.accept()
                accepted.close()
                # An IPv4 client has its own address, not one within IPv6.
                assert address[0] == client.getsockname()[0]
    finally:
        for each in listening:
            each.close()


def test_it_listens_on_the_address_that_is_named() -> None:
    (listening,) = listening_sockets("127.0.0.1", 0)
    with listening:
        assert listening.getsockname()[0] == "127.0.0.1"
        listening.listen()
        with pytest.raises(OSError, match="in use"):
            listening_sockets("127.0.0.1", listening.getsockname()[1])

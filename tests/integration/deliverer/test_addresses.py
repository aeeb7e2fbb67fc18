"""No address that is not public is connected to: listeners prove it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp.abc import ResolveResult

from integration.deliverer.deliverers import Jobs, Receiver
from kubediffusion.api.webhook_urls import AllowedHosts
from kubediffusion.api.webhooks.addresses import PublicResolver
from kubediffusion.api.webhooks.sender import WebhookSender


class Listener:
    """A server that nobody should connect to, on every address of this machine."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        self._socket.setblocking(False)
        self.port: int = self._socket.getsockname()[1]

    def connected(self) -> bool:
        """Return whether somebody has connected."""
        try:
            self._socket.accept()[0].close()
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def listener() -> Iterator[Listener]:
    with contextlib.closing(Listener()) as listening:
        yield listening


PRIVATE = [
    "127.0.0.1",
    "127.1",
    "2130706433",
    "0x7f000001",
    "0177.0.0.1",
    "0.0.0.0",  # noqa: S104 - an address to refuse
    "localhost",
    "LOCALHOST.",
    "[::1]",
    "[::]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::127.0.0.1]",
    "[2002:7f00:1::]",
    "[64:ff9b::7f00:1]",
    "169.254.169.254",
    "[fe80::1%25lo]",
    "[fd00:ec2::254]",
    "10.0.0.1",
    "100.100.100.200",
    "168.63.129.16",
    "224.0.0.1",
]


@pytest.mark.parametrize("host", PRIVATE)
async def test_a_private_address_is_refused_however_it_is_written(host: str, listener: Listener) -> None:
    async with WebhookSender(AllowedHosts("")) as sender:
        answer = await sender.send(f"https://{host}:{listener.port}/", {}, b"{}")
    assert not listener.connected()
    assert (answer.status, answer.problem is None) == (None, False)


def resolver_of(*answers: list[str]) -> PublicResolver:
    """Make a resolver for which names have the addresses that a test says, one answer after the other."""
    remaining = iter(answers)

    def look_up(_host: str, port: int, _family: int) -> list[Any]:
        found = [
            socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
            for address in next(remaining)
        ]
        return [entry for entries in found for entry in entries]

    return PublicResolver(lookup=look_up)


@pytest.mark.parametrize(
    "addresses",
    [["127.0.0.1"], ["::1"], ["192.0.2.1", "127.0.0.1"], ["10.1.2.3"], ["::ffff:127.0.0.1"], ["169.254.169.254"]],
    ids=",".join,
)
async def test_a_name_with_a_private_address_is_refused(addresses: list[str], listener: Listener) -> None:
    async with WebhookSender(AllowedHosts(""), resolver=resolver_of(addresses)) as sender:
        answer = await sender.send(f"https://hooks.example:{listener.port}/", {}, b"{}")
    assert answer.refused
    assert answer.problem is not None
    assert "no public address" in answer.problem
    assert not listener.connected()


async def test_a_name_that_is_public_first_and_private_then_is_refused(listener: Listener) -> None:
    """What was checked is what is called: a name is resolved once for a request, and anew for the next."""
    resolver = resolver_of(["2001:4860:4860::8888"], ["127.0.0.1"])
    async with WebhookSender(AllowedHosts(""), timeout=0.5, resolver=resolver) as sender:
        first = await sender.send(f"https://hooks.example:{listener.port}/", {}, b"{}")
        second = await sender.send(f"https://hooks.example:{listener.port}/", {}, b"{}")
    assert (first.refused, second.refused) == (False, True)
    assert not listener.connected()


async def test_the_socket_is_the_last_to_ask(listener: Listener) -> None:
    """A resolver that says what is not so opens no connection either."""

    class Lying(PublicResolver):
        async def resolve(self, host: str, port: int = 0, *_: object, **__: object) -> list[ResolveResult]:
            where = {"host": "127.0.0.1", "port": port, "family": socket.AF_INET, "proto": 0, "flags": 0}
            return [ResolveResult(hostname=host, **where)]  # type: ignore[typeddict-item]

    async with WebhookSender(AllowedHosts(""), resolver=Lying()) as sender:
        answer = await sender.send(f"https://hooks.example:{listener.port}/", {}, b"{}")
    assert answer.refused
    assert not listener.connected()


async def test_a_redirect_is_not_followed(receiver: Receiver, listener: Listener) -> None:
    async with WebhookSender(AllowedHosts(receiver.host)) as sender:
        answer = await sender.send(receiver.url(f"redirect?to=http://127.0.0.1:{listener.port}/"), {}, b"{}")
    assert answer.status == 302
    assert answer.problem == "the receiver answered 302; redirects are not followed"
    assert not listener.connected()


async def test_no_proxy_of_the_environment_is_used(
    receiver: Receiver, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{listener.port}")
    async with WebhookSender(AllowedHosts(receiver.host)) as sender:
        assert (await sender.send(receiver.url("204"), {}, b"{}")).status == 204
    assert not listener.connected()


async def test_a_host_is_allowed_with_its_port_alone(receiver: Receiver, listener: Listener) -> None:
    async with WebhookSender(AllowedHosts(receiver.host)) as sender:
        assert (await sender.send(receiver.url("204"), {}, b"{}")).status == 204
        answer = await sender.send(f"http://127.0.0.1:{listener.port}/", {}, b"{}")
        assert answer.refused
        answer = await sender.send(f"https://127.0.0.1:{listener.port}/", {}, b"{}")
        assert answer.refused
    assert not listener.connected()


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://example.com/", "it is not https"),
        ("https://localhost:{port}/", "no public address"),
        ("https://127.0.0.1:{port}/", "no public address"),
        ("https://[::ffff:127.0.0.1]:{port}/?token=secret", "no public address"),
    ],
)
def test_a_job_says_why_its_address_is_not_called(jobs: Jobs, listener: Listener, url: str, reason: str) -> None:
    name = f"refused-{listener.port}"
    jobs.ended(name, url.format(port=listener.port))
    state = jobs.wait_told(name, lambda state: "failure" in state)
    assert state["failure"]["code"] == "Refused"
    assert reason in state["failure"]["message"]
    assert "secret" not in state["failure"]["message"]
    assert not listener.connected()

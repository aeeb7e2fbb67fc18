"""Sends one request of a webhook: to a public address that was checked, or to a host that is allowed by name."""

from __future__ import annotations

import asyncio
import datetime as dt
import socket
from collections.abc import Iterable, Mapping
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import NamedTuple, Self

import aiohttp
from aiohttp import ClientSession, ClientTimeout, TCPConnector
from aiohttp.abc import AbstractResolver
from aiohttp.connector import AddrInfoType

from kubediffusion.api.webhook_urls import AllowedHosts, host_and_port, refusal
from kubediffusion.api.webhooks.addresses import Network, PrivateAddressError, PublicResolver, check_public

USER_AGENT = "kubediffusion-webhooks"

RETRY_AFTER_STATUSES = frozenset({429, 503})

LONGEST_HEADER = 8190
"""Bytes of an answer's header; its body is not read at all."""


class Answer(NamedTuple):
    """What became of a request.

    Attributes:
        status: HTTP status; None where there was no answer.
        problem: Why it had no success; None where it had.
        retry_after: Seconds after which the receiver asks to be tried again, if it says.
        refused: Whether the address may not be called at all.
    """

    status: int | None
    problem: str | None
    retry_after: float | None = None
    refused: bool = False


class WebhookSender:
    """Sends requests; an async context manager.

    Args:
        allowed: Hosts that may be private and speak http.
        denied: Networks that may not be called besides those that are not public.
        timeout: Seconds for a whole request: name, connection, TLS and answer.
        resolver: Resolves names to public addresses.
    """

    def __init__(
        self,
        allowed: AllowedHosts,
        denied: Iterable[Network] = (),
        timeout: float = 15.0,
        resolver: AbstractResolver | None = None,
    ) -> None:
        self._allowed = allowed
        self._denied = tuple(denied)
        self._timeout = ClientTimeout(total=timeout)
        self._resolver = resolver or PublicResolver(self._denied)

    async def __aenter__(self) -> Self:
        # Names are looked up for each request, and no connection is used twice: what was checked is what is called.
        self._public = self._session(
            TCPConnector(
                limit=0,
                use_dns_cache=False,
                force_close=True,
                resolver=self._resolver,
                socket_factory=self._checked_socket,
            )
        )
        self._by_name = self._session(TCPConnector(limit=0, use_dns_cache=False, force_close=True))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._public.close()
        await self._by_name.close()
        await self._resolver.close()

    async def send(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """POST a body, follow no redirect, and read of the answer its status and headers alone.

        Args:
            url: The address.
            headers: Headers, content type included.
            body: The body.
        """
        if (reason := refusal(url, self._allowed)) is not None:
            return Answer(None, f"the address may not be called: {reason}", refused=True)
        session = self._by_name if self._allowed.has(url) else self._public
        try:
            if session is self._public:
                self._check_literal(host_and_port(url)[0])
            async with session.post(url, data=body, headers=headers, allow_redirects=False) as response:
                return _answer_of(response)
        except PrivateAddressError as error:
            return Answer(None, f"the address may not be called: {error}", refused=True)
        except TimeoutError:
            return Answer(None, f"no answer within {self._timeout.total:g} seconds")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            if (private := _private_address_in(error)) is not None:
                return Answer(None, f"the address may not be called: {private}", refused=True)
            return Answer(None, _words_of(error))

    def _session(self, connector: TCPConnector) -> ClientSession:
        return ClientSession(
            connector=connector,
            timeout=self._timeout,
            trust_env=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            max_line_size=LONGEST_HEADER,
            max_field_size=LONGEST_HEADER,
            headers={"User-Agent": USER_AGENT},
        )

    def _check_literal(self, host: str) -> None:
        """Check a host that is an address: no name of it is looked up."""
        try:
            socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host.partition("%")[0])
        except OSError:  # a name: what it leads to is checked when it is looked up
            return
        check_public(host, self._denied)

    def _checked_socket(self, address: AddrInfoType) -> socket.socket:
        """Make the socket of a connection: the last place, which every way passes."""
        family, kind, protocol, _, where = address
        check_public(str(where[0]), self._denied)
        return socket.socket(family, kind, protocol)


def _answer_of(response: aiohttp.ClientResponse) -> Answer:
    status = response.status
    if 200 <= status < 300:
        return Answer(status, None)
    if 300 <= status < 400:
        return Answer(status, f"the receiver answered {status}; redirects are not followed")
    wait = retry_after_seconds(response.headers.get("Retry-After")) if status in RETRY_AFTER_STATUSES else None
    return Answer(status, f"the receiver answered {status}", wait)


def retry_after_seconds(text: str | None) -> float | None:
    """Return the seconds of a ``Retry-After`` header, which may also be a date; None where it is neither."""
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            moment = parsedate_to_datetime(text).astimezone(dt.UTC)
        except (ValueError, OverflowError):
            # Days, years and zones of any size are read before they are found to be none.
            return None
        seconds = (moment - dt.datetime.now(dt.UTC)).total_seconds()
    return seconds if 0 < seconds < float("inf") else None


def _private_address_in(error: BaseException | None) -> PrivateAddressError | None:
    """Find the refusal of an address among what the HTTP client has wrapped around it."""
    while error is not None:
        if isinstance(error, PrivateAddressError):
            return error
        error = getattr(error, "os_error", None) or error.__cause__ or error.__context__
    return None


def _words_of(error: Exception) -> str:
    """Say why there was no answer, without the address: what is secret may stand in its query."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return "its certificate is not trusted"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "its name cannot be resolved"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"it cannot be reached: {error.os_error.strerror or type(error.os_error).__name__}"
    if isinstance(error, asyncio.IncompleteReadError | aiohttp.ServerDisconnectedError):
        return "the connection ended without an answer"
    return f"there was no answer: {type(error).__name__}"

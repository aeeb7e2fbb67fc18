"""The address that a request came from, behind proxies that may be believed.

Each proxy appends the address of whoever called it to ``X-Forwarded-For``. What stands to the left of the first address
that no trusted proxy vouches for may be anything that a client wrote, so the header is read from the right.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import NamedTuple

from starlette.types import Scope

EVERYBODY = "*"

CLIENT_PREFIX = 64
"""Bits of an IPv6 address that tell clients apart."""

_Address = IPv4Address | IPv6Address


class Origin(NamedTuple):
    """Where a request came from; ``scheme`` is the one that the client used."""

    address: str | None
    scheme: str


class TrustedProxies:
    """The proxies whose ``X-Forwarded-For`` and ``X-Forwarded-Proto`` are believed.

    Args:
        networks: Addresses and networks, separated by commas. ``*`` trusts whoever connects, and nobody further away:
            the client is the last address of the header. Empty trusts nobody.

    Raises:
        ValueError: One of them is neither an address nor a network.
    """

    def __init__(self, networks: str) -> None:
        listed = [part.strip() for part in networks.split(",") if part.strip()]
        self._everybody = EVERYBODY in listed
        self._networks = [ip_network(part) for part in listed if part != EVERYBODY]

    def __bool__(self) -> bool:
        """Whether any proxy is trusted."""
        return self._everybody or bool(self._networks)

    def origin(self, scope: Scope) -> Origin:
        """Return where a request came from."""
        peer = scope["client"][0] if scope.get("client") else None
        address = _parsed(peer) if peer else None
        if address is None or not (self._everybody or self._trusts(address)):
            return Origin(peer, scope["scheme"])
        scheme = next(reversed(_listed(scope["headers"], b"x-forwarded-proto")), "").lower()
        return Origin(
            self._forwarded(address, _listed(scope["headers"], b"x-forwarded-for")),
            scheme if scheme in {"http", "https"} else scope["scheme"],
        )

    def _forwarded(self, peer: _Address, hops: list[str]) -> str:
        client = peer
        for hop in reversed(hops):
            address = _parsed(hop)
            if address is None:
                # A trusted proxy writes addresses; this is a client's.
                break
            client = address
            if self._everybody or not self._trusts(address):
                break
        return str(client)

    def _trusts(self, address: _Address) -> bool:
        return any(address in network for network in self._networks)


def client_of(address: str) -> str:
    """Return whom an address stands for where clients are counted.

    Of IPv6 that is a network of /64: one machine may have all of it, and would be another client at each request.

    Args:
        address: The address of an :class:`Origin`.
    """
    # Most are IPv4, and each request passes here.
    if ":" not in address:
        return address
    parsed = _parsed(address)
    if isinstance(parsed, IPv6Address):
        return str(IPv6Network((int(parsed), CLIENT_PREFIX), strict=False))
    return str(parsed or address)


def _listed(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> list[str]:
    """Return the values of a header that may come several times, each with several values (RFC 9110, section 5.3)."""
    lines = (value.decode("latin-1") for found, value in headers if found == name)
    return [part.strip() for line in lines for part in line.split(",") if part.strip()]


def _parsed(text: str) -> _Address | None:
    """Parse an address as proxies write it: with a port, in brackets, or an IPv4 address within IPv6."""
    for candidate in _spellings(text):
        try:
            address = ip_address(candidate)
        except ValueError:  # not of this spelling
            continue
        return getattr(address, "ipv4_mapped", None) or address
    return None


def _spellings(text: str) -> Iterator[str]:
    yield text
    if text.startswith("["):
        yield text[1:].partition("]")[0]
    elif text.count(":") == 1:
        yield text.partition(":")[0]

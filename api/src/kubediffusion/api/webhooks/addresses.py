"""Which addresses of the network may be called: none that is not of the public internet, whatever a name says."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

Network = IPv4Network | IPv6Network

MORE_PRIVATE = tuple(
    ip_network(network)
    for network in (
        # Azure's machine agent, and its DNS.
        "168.63.129.16/32",
        # IETF protocol assignments; Oracle's metadata is among them.
        "192.0.0.0/24",
        # Relays of 6to4, which was given up.
        "192.88.99.0/24",
    )
)
"""What :mod:`ipaddress` takes for public, in some version or in all, and is not."""

IPV6_PUBLIC = IPv6Network("2000::/3")
"""All that is assigned of IPv6's global addresses: site-local and IPv4-compatible addresses are not in it."""

NAT64 = IPv6Network("64:ff9b::/96")
"""Its last four bytes are an IPv4 address, which a gateway calls."""

RESOLVER_THREADS = 64
"""Names that are looked up at the same time: each waits in a thread, and a slow server of names holds it."""


class PrivateAddressError(OSError):
    """An address that may not be called."""


def is_public(address: str, denied: Iterable[Network] = ()) -> bool:
    """Return whether an address is one of the public internet, and not in a network that is denied besides.

    Addresses of IPv6 that stand for one of IPv4 (mapped, 6to4, NAT64) are judged by that.

    Args:
        address: An address of IPv4 or IPv6, with or without a zone.
        denied: Networks that are private to the installation although their addresses are public.
    """
    parsed: IPv4Address | IPv6Address = ip_address(address.partition("%")[0])
    if isinstance(parsed, IPv6Address):
        inner = parsed.ipv4_mapped or parsed.sixtofour
        if inner is None and parsed in NAT64:
            inner = IPv4Address(int(parsed) & 0xFFFF_FFFF)
        if inner is not None:
            if any(parsed in network for network in denied):
                return False
            parsed = inner
        elif parsed not in IPV6_PUBLIC:
            return False
    if any(parsed in network for network in (*MORE_PRIVATE, *denied)):
        return False
    return parsed.is_global and not parsed.is_multicast and not parsed.is_reserved


def check_public(address: str, denied: Iterable[Network] = ()) -> None:
    """Check that an address may be called.

    Raises:
        PrivateAddressError: It may not.
    """
    if not is_public(address, denied):
        raise PrivateAddressError(f"{address} is no public address")


Lookup = Callable[[str, int, int], list[Any]]
"""Returns the addresses of a name as :func:`socket.getaddrinfo` does, for a name, a port and a family."""


def _look_up(host: str, port: int, family: int) -> list[Any]:
    return socket.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)


class PublicResolver(AbstractResolver):
    """Resolves names once, and refuses one with an address that is not public: what it returns is what is called.

    Args:
        denied: Networks that are denied besides.
        lookup: Asks for the addresses of a name; it may take long.
    """

    def __init__(self, denied: Iterable[Network] = (), lookup: Lookup = _look_up) -> None:
        self._denied = tuple(denied)
        self._lookup = lookup
        self._threads = ThreadPoolExecutor(RESOLVER_THREADS, "resolver")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Resolve a name to its addresses.

        Raises:
            OSError: It has none.
            PrivateAddressError: One of them is not public.
        """
        found = await asyncio.get_running_loop().run_in_executor(self._threads, self._lookup, host, port, family)
        results = []
        for kind, _, protocol, _, address in found:
            if not is_public(str(address[0]), self._denied):
                # Not which: who may set a webhook need not see what names mean within the cluster.
                raise PrivateAddressError(f"{host} has an address that is no public address")
            results.append(
                ResolveResult(
                    hostname=host,
                    host=str(address[0]),
                    port=port,
                    family=kind,
                    proto=protocol,
                    flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
                )
            )
        return results

    async def close(self) -> None:
        """End the threads that do nothing."""
        self._threads.shutdown(wait=False, cancel_futures=True)

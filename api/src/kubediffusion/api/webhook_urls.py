"""Which addresses webhooks may have, as far as can be said of an address alone."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

DEFAULT_PORTS = {"http": 80, "https": 443}

_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:(?P<port>\d{1,5}))?")


class AllowedHosts:
    """Hosts that may be called although they are private or speak http.

    Args:
        hosts: Names or addresses, separated by commas, each of all ports or, as in ``hooks.example:8080``, of one.

    Raises:
        ValueError: One of them is no host.
    """

    def __init__(self, hosts: str) -> None:
        self._allowed: set[tuple[str, int | None]] = set()
        for host in filter(None, (part.strip().lower() for part in hosts.split(","))):
            found = _HOST.fullmatch(host)
            if found is None:
                raise ValueError(f"{host!r} is no host; write name or name:port")
            self._allowed.add((found["name"].strip("[]").rstrip("."), int(found["port"]) if found["port"] else None))

    def has(self, url: str) -> bool:
        """Return whether the host of an address is one of them."""
        host, port = host_and_port(url)
        return bool(self._allowed & {(host, None), (host, port)})


def host_and_port(url: str) -> tuple[str, int]:
    """Return the host of an address, in lower case, and its port.

    Raises:
        ValueError: It has none, or a port that cannot be.
    """
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    if not host or parts.username is not None or parts.password is not None or parts.scheme not in DEFAULT_PORTS:
        raise ValueError("it is no address of http or https")
    port = DEFAULT_PORTS[parts.scheme] if parts.port is None else parts.port
    if not port:
        raise ValueError("its port is 0")
    return host, port


def refusal(url: str, allowed: AllowedHosts) -> str | None:
    """Say why an address may not be called, whatever its name resolves to; None where it may.

    Args:
        url: The address.
        allowed: Hosts that the installation allows by name.
    """
    try:
        host_and_port(url)
    except ValueError as error:
        return f"{error}; correct it"
    if urlsplit(url).scheme != "https" and not allowed.has(url):
        return "it is not https, and its host is not one that the installation allows by name"
    return None

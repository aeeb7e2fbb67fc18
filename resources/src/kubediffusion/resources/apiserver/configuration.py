"""Where the API server is, and the credentials for it: of the Pod's service account or of a kubeconfig."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from kubernetes.aio import client as kubernetes_client
from kubernetes.aio import config as kubernetes_config
from yaml import YAMLError

from kubediffusion.resources.runtime.no_proxy import in_no_proxy_network

TOKEN_PERIOD = 60.0
"""Seconds after which a token that lies in a file is read again, as the in-cluster configuration does."""


class Configuration(kubernetes_client.Configuration):
    """The library's, whose token has no whitespace around it: a file often ends with a newline, as client-go knows."""

    async def get_api_key_with_prefix(self, identifier: str, alias: str | None = None) -> str | None:
        """Return the value of the header that shows who asks.

        Raises:
            ValueError: No header of HTTP can carry it.
        """
        header: str | None = await super().get_api_key_with_prefix(identifier, alias)
        if not header:
            return None
        scheme, _, token = header.partition(" ")
        header = f"{scheme} {token.strip()}".strip()
        if not (header.isascii() and header.isprintable()):
            raise ValueError("the token has characters that are no printable ASCII")
        return header


async def load_configuration() -> kubernetes_client.Configuration:
    """Read the Pod's service account, or else the kubeconfig (``KUBECONFIG``, ``~/.kube/config``).

    Raises:
        kubernetes.aio.config.ConfigException: Neither is there.
    """
    configuration = Configuration()
    if os.environ.get("KUBECONFIG") or not os.environ.get("KUBERNETES_SERVICE_HOST"):
        try:
            await kubernetes_config.load_kube_config(client_configuration=configuration)
        except YAMLError:
            # Its words quote the line, on which a token may be.
            raise kubernetes_config.ConfigException("the kubeconfig is not valid YAML") from None
        configuration.refresh_api_key_hook = _renew_from_kubeconfig()  # type: ignore[assignment] # untyped there
    else:
        kubernetes_config.load_incluster_config(client_configuration=configuration)
    return configuration


def _renew_from_kubeconfig() -> Callable[[kubernetes_client.Configuration], Awaitable[None]]:
    """Make the hook that reads the kubeconfig again once a minute: its token may be a file that gets rotated."""
    renewed = time.monotonic()

    async def renew(configuration: kubernetes_client.Configuration) -> None:
        nonlocal renewed
        if time.monotonic() - renewed < TOKEN_PERIOD:
            return
        renewed = time.monotonic()
        fresh = kubernetes_client.Configuration()
        await kubernetes_config.load_kube_config(client_configuration=fresh)
        configuration.api_key = fresh.api_key

    return renew


def proxy_for(url: str) -> str | None:
    """Return the proxy that the environment names for an address (``HTTPS_PROXY``, ``NO_PROXY``), as curl reads it."""
    address = urlsplit(url)
    if proxy_bypass(address.hostname or "") or in_no_proxy_network(url):
        return None
    return getproxies().get(address.scheme)

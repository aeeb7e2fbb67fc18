"""Run the API: ``kubediffusion-api``."""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import socket
import sys

import uvicorn
from kubernetes.aio.config import ConfigException

from kubediffusion.api.app import AGENT, create_app
from kubediffusion.api.dependencies import AppState
from kubediffusion.api.job_events.streams import JobStreams
from kubediffusion.api.middleware import RequestIdFilter
from kubediffusion.api.settings import Settings
from kubediffusion.resources.apiserver.client import KubernetesClient
from kubediffusion.resources.runtime import garbage, logs
from kubediffusion.resources.runtime.settings import EX_CONFIG, read_settings

logger = logging.getLogger(__name__)


class _Server(uvicorn.Server):
    """A server that ends the streams of events when it stops: it would else wait for them in vain."""

    def __init__(self, config: uvicorn.Config, streams: JobStreams) -> None:
        super().__init__(config)
        self._streams = streams

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, end the streams, and let what else is under way come to its end."""
        self._streams.close()
        await super().shutdown(sockets)


def main() -> None:
    """Serve until SIGTERM or SIGINT, then answer what is under way and go."""
    settings = read_settings(Settings)
    # Keys of the API's own are not among them: of those it keeps digests only.
    logs.configure_logging(settings.log_level, settings.secrets)
    for handler in logging.getLogger().handlers:
        handler.addFilter(RequestIdFilter())
    if not settings.authenticates and not settings.allow_unauthenticated:
        logger.critical(
            "nobody would be asked who they are: set KUBEDIFFUSION_API_KEYS_FILE; or, where whoever reaches it may use "
            "it, KUBEDIFFUSION_ALLOW_UNAUTHENTICATED=true"
        )
        sys.exit(EX_CONFIG)
    try:
        asyncio.run(_find_cluster())
    except ConfigException as error:
        logger.critical("no Kubernetes API server is configured, neither a Pod's nor by KUBECONFIG: %s", error)
        sys.exit(EX_CONFIG)
    app = create_app(settings)
    state: AppState = app.state.app_state
    server = _Server(
        uvicorn.Config(
            app,
            loop="uvloop",
            http="httptools",
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            # Of uvicorn's own, `*` believes the first address of the header, which the client writes.
            proxy_headers=False,
            timeout_graceful_shutdown=settings.shutdown_seconds,
        ),
        state.streams,
    )
    # uvicorn raises the signal again when it is done; the process has then done what was asked, and exits with 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    sockets = listening_sockets(settings.bind_address, settings.port)
    garbage.freeze_startup_objects()
    server.run(sockets)


def listening_sockets(address: str, port: int) -> list[socket.socket]:
    """Bind the sockets to serve on.

    Args:
        address: Address to listen on; empty for every address, of IPv4 and IPv6, as far as the machine has them.
        port: Port to listen on; 0 for a free one.

    Raises:
        OSError: The address cannot be bound.
    """
    if address:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return [_bound(family, address, port)]
    sockets: list[socket.socket] = []
    # Two sockets instead of one for both: an IPv4 client of an IPv6 socket would have another address.
    for family, anywhere in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):  # noqa: S104 - a Pod's port
        try:
            sockets.append(_bound(family, anywhere, port))
        except OSError as error:
            # Machines and Pods have the one, the other, or both.
            if error.errno not in {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}:
                raise
        else:
            port = sockets[-1].getsockname()[1]
    if not sockets:
        raise OSError(errno.EADDRNOTAVAIL, "there is neither IPv4 nor IPv6")
    return sockets


def _bound(family: socket.AddressFamily, address: str, port: int) -> socket.socket:
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family is socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind((address, port))
    except OSError:
        listening.close()
        raise
    listening.set_inheritable(True)
    return listening


async def _find_cluster() -> None:
    # Once for nothing: within uvicorn's start a mistake here would be a traceback, not a line.
    async with await KubernetesClient.connect(AGENT):
        pass


if __name__ == "__main__":
    main()

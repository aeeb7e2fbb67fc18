"""Run the API: ``kubediffusion-api``."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys

import uvicorn
from kubernetes.aio.config import ConfigException

from kubediffusion.api.app import AGENT, create_app
from kubediffusion.api.middleware import RequestIdFilter
from kubediffusion.api.settings import Settings
from kubediffusion.resources.apiserver.client import KubernetesClient
from kubediffusion.resources.runtime import garbage, logs
from kubediffusion.resources.runtime.settings import EX_CONFIG, read_settings

logger = logging.getLogger(__name__)


def main() -> None:
    """Serve until SIGTERM or SIGINT, then answer what is under way and go."""
    settings = read_settings(Settings)
    # Keys of the API's own are not among them: of those it keeps digests only.
    logs.configure_logging(settings.log_level, settings.secrets)
    for handler in logging.getLogger().handlers:
        handler.addFilter(RequestIdFilter())
    try:
        asyncio.run(_find_cluster())
    except ConfigException as error:
        logger.critical("no Kubernetes API server is configured, neither a Pod's nor by KUBECONFIG: %s", error)
        sys.exit(EX_CONFIG)
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(settings),
            host=settings.bind_address,
            port=settings.port,
            loop="uvloop",
            http="httptools",
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=bool(settings.trusted_proxies),
            forwarded_allow_ips=settings.trusted_proxies or None,
            timeout_graceful_shutdown=settings.shutdown_seconds,
        )
    )
    # uvicorn raises the signal again when it is done; the process has then done what was asked, and exits with 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    garbage.freeze_startup_objects()
    server.run()


async def _find_cluster() -> None:
    # Once for nothing: within uvicorn's start a mistake here would be a traceback, not a line.
    async with await KubernetesClient.connect(AGENT):
        pass


if __name__ == "__main__":
    main()

"""Run the deliverer of webhooks: ``kubediffusion-webhooks``."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys

import uvloop
from kubernetes.aio.config import ConfigException

from kubediffusion.api.webhooks.deliverer import Deliverer
from kubediffusion.api.webhooks.leadership import Leadership
from kubediffusion.api.webhooks.metrics import Metrics
from kubediffusion.api.webhooks.sender import WebhookSender
from kubediffusion.api.webhooks.settings import WebhookSettings
from kubediffusion.resources.apiserver.client import KubernetesClient
from kubediffusion.resources.runtime import garbage, logs
from kubediffusion.resources.runtime.probes import serve_probes
from kubediffusion.resources.runtime.settings import EX_CONFIG, read_settings

logger = logging.getLogger(__name__)


async def run(settings: WebhookSettings) -> None:
    """Deliver webhooks while this replica leads, until SIGTERM; what is under way then comes to its end."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - a coroutine runs in a task
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    identity = settings.pod_name or f"{socket.gethostname()}-{os.getpid()}"
    metrics = Metrics()
    sender = WebhookSender(settings.allowed_hosts, settings.denied_networks, settings.webhook_timeout_seconds)
    async with await KubernetesClient.connect("kubediffusion-webhooks") as client, sender:
        leadership = Leadership(client, settings.lease_name, settings.lease_namespace, identity)
        deliverer = Deliverer(client, settings, sender, metrics)
        metrics.leading.set_function(lambda: leadership.leading)
        probes = serve_probes(
            settings.bind_address,
            settings.port,
            live=lambda: None,
            ready=leadership.problem,
            detail=leadership.detail,
        )
        async with probes:
            garbage.freeze_startup_objects()
            logger.info("serving", extra={"identity": identity})
            await leadership.run(deliverer.run)


def main() -> None:
    """Run the process."""
    settings = read_settings(WebhookSettings)
    logs.configure_logging(settings.log_level)
    # Until the loop takes it over, SIGTERM ends the process as the shell expects.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        uvloop.run(run(settings))
    except (KeyboardInterrupt, asyncio.CancelledError):
        logger.info("interrupted")
    except ConfigException as error:
        logger.critical("no Kubernetes API server is configured, neither a Pod's nor by KUBECONFIG: %s", error)
        sys.exit(EX_CONFIG)


if __name__ == "__main__":
    main()

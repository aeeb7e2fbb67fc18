"""The operator's process: everything is put together here, and nothing happens on import."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence

import kopf
import uvloop
from kubernetes.aio.config import ConfigException

from kubediffusion.operator.composition import Operator, compose
from kubediffusion.operator.handlers import register
from kubediffusion.operator.settings import Settings
from kubediffusion.operator.watching import configure_kopf, watch_jobs
from kubediffusion.resources.apiserver.client import KubernetesClient
from kubediffusion.resources.apiserver.errors import KubernetesError
from kubediffusion.resources.runtime import garbage, logs, nesting
from kubediffusion.resources.runtime.probes import serve_probes
from kubediffusion.resources.runtime.settings import EX_CONFIG, read_settings
from kubediffusion.resources.storage import ImageStorage

logger = logging.getLogger(__name__)

SYNC_PAUSE = 1.0
"""Seconds between tries of the first list while the API server is away."""


async def run(settings: Settings) -> None:
    """Run the operator until it is told to stop.

    Returns only after kopf and the loop have ended; kopf itself handles SIGTERM and SIGINT.
    """
    # Until kopf takes it over. A handler that raises would not do: the loop's callbacks swallow what is raised in them.
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - a coroutine runs in a task
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    storage = ImageStorage(settings.s3_bucket) if settings.s3_bucket else None
    async with await KubernetesClient.connect("kubediffusion-operator") as client:
        instance = os.environ.get("POD_NAME") or socket.gethostname()
        operator = compose(client, settings, storage, instance)

        probes = serve_probes(
            settings.bind_address,
            settings.port,
            live=operator.loop.problem,
            ready=operator.resync.problem,
            detail=operator.resync.refusals,
        )
        async with probes:
            await _list_all(operator)
            registry = kopf.OperatorRegistry()
            register(registry, operator.store)
            kopf_settings = kopf.OperatorSettings()
            configure_kopf(registry, kopf_settings, client)
            watches = kopf.operator(
                registry=registry,
                settings=kopf_settings,
                # kopf's own would name the user, and one that a cluster made up for the Pod has no name.
                identity=instance,  # type: ignore[arg-type] # a NewType of str that kopf does not export
                standalone=True,
                namespaces=settings.namespace_list,
                clusterwide=not settings.namespace_list,
            )
            store = operator.store
            namespaces: Sequence[str | None] = settings.namespace_list or [None]
            jobs = [watch_jobs(client, name, store.observe_job, store.unfinished_jobs(name)) for name in namespaces]
            garbage.freeze_startup_objects()
            await operator.run(watches, *(watch.run() for watch in jobs))


async def _list_all(operator: Operator) -> None:
    while True:
        try:
            await operator.resync.list_all()
        except KubernetesError as error:
            logger.warning("cannot list the cluster yet, trying again: %s", error)
            await asyncio.sleep(error.retry_after or SYNC_PAUSE)
        else:
            return


def main() -> None:
    """Run the operator process."""
    settings = read_settings(Settings)
    nesting.allow_deepest_objects()
    logs.configure_logging(settings.log_level, settings.secrets)
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

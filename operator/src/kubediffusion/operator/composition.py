"""The operator put together: every room once, each given those that it calls."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from kubediffusion.operator.cluster import Cluster
from kubediffusion.operator.events import EventRecorder
from kubediffusion.operator.executor import ActionExecutor
from kubediffusion.operator.image_releases import ImageReleases
from kubediffusion.operator.images import ImageRemover
from kubediffusion.operator.loop import SchedulingLoop
from kubediffusion.operator.manifests import WorkerDefaults, template_hash
from kubediffusion.operator.resync import Resync
from kubediffusion.operator.retention import Retention, RetentionPauses, RetentionPolicy
from kubediffusion.operator.settings import Settings
from kubediffusion.operator.snapshots import SchedulerOptions
from kubediffusion.operator.start_warnings import StartWarnings
from kubediffusion.operator.store import Store
from kubediffusion.resources.apiserver.client import KubernetesClient
from kubediffusion.resources.generation_job import GenerationJob
from kubediffusion.resources.storage import ImageStorage
from kubediffusion.resources.time_to_live import time_to_live


@dataclass(frozen=True)
class Operator:
    """The operator without its watches, which report to the store.

    Attributes:
        store: What is known of the cluster.
        loop: Decides.
        resync: Lists the cluster.
        retention: Deletes finished jobs and their images.
        recorder: Writes Events.
        start_warnings: Reads why workers do not start.
    """

    store: Store
    loop: SchedulingLoop
    resync: Resync
    retention: Retention
    recorder: EventRecorder
    start_warnings: StartWarnings

    async def run(self, *watches: Coroutine[Any, Any, None]) -> None:
        """Run all of it, and the watches, until one ends: then the others are cancelled, and its error is raised.

        The first list (:meth:`Resync.list_all`) must have come before.
        """
        works = [*watches, self.loop.run(), self.resync.run(), self.retention.run(), self.recorder.run()]
        works.append(self.start_warnings.run())
        tasks = [asyncio.create_task(work) for work in works]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            task.result()


def compose(client: KubernetesClient, settings: Settings, storage: ImageStorage | None, instance: str) -> Operator:
    """Put the operator together.

    Args:
        client: The connection.
        settings: The operator's settings.
        storage: Where images lie; None where the operator has no storage settings.
        instance: Name of this operator's Pod.
    """
    defaults = WorkerDefaults(
        image=settings.worker_image,
        service_account=settings.worker_service_account,
        port=settings.worker_port,
        s3_secret=settings.s3_secret,
        log_level=settings.worker_log_level,
        run_as_user=settings.worker_run_as_user or None,
        ca_config_map=settings.worker_ca_config_map,
        environment=settings.worker_environment,
        template=settings.worker_template,
    )
    options = SchedulerOptions(
        batches_ahead=settings.batches_ahead,
        explain_after=dt.timedelta(seconds=settings.explain_after_seconds),
        model_grace=dt.timedelta(seconds=settings.model_grace_seconds),
    )
    node_grace = dt.timedelta(seconds=settings.node_grace_seconds)
    cluster = Cluster(client, settings.namespace_list, defaults, settings.concurrent_requests)
    store = Store(lambda model: template_hash(model, defaults), node_grace)
    recorder = EventRecorder(client, instance)

    def ttl_of(job: GenerationJob) -> int | None:
        return time_to_live(job.spec, store.model_of(job), settings.default_ttl_seconds)

    images = ImageRemover(storage, settings.s3_prefix)
    retention = Retention(
        cluster,
        ImageReleases(cluster, images, recorder, store.worker_end),
        RetentionPolicy(ttl_of, settings.finished_jobs_per_namespace, settings.webhook_hold_seconds),
        store.unfinished_count,
        RetentionPauses(quotas=settings.resync_seconds),
    )
    executor = ActionExecutor(cluster, store, recorder)
    loop = SchedulingLoop(store, executor, retention, recorder, options, settings.explanations_per_second)
    resync = Resync(cluster, store, settings.resync_seconds)
    return Operator(store, loop, resync, retention, recorder, StartWarnings(cluster, store))

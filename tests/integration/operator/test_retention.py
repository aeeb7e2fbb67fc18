"""Finished jobs go when their time is over, however many are due in one moment, a few at a time."""

from __future__ import annotations

import asyncio
import datetime as dt
from contextlib import suppress

from kubediffusion.local.testing import Namespace, eventually
from kubediffusion.operator.cluster import Cluster
from kubediffusion.operator.events import EventRecorder
from kubediffusion.operator.images import ImageRemover
from kubediffusion.operator.manifests import WorkerDefaults
from kubediffusion.operator.retention import AT_ONCE, Retention
from kubediffusion.resources import meta
from kubediffusion.resources.apiserver.client import KubernetesClient
from kubediffusion.resources.generation_job import GenerationJob, Phase
from kubediffusion.resources.schema import format_time

DEFAULTS = WorkerDefaults(image="none", service_account="default", port=8080, s3_secret="none", log_level="INFO")


class CountingCluster(Cluster):
    """A cluster that notes how many jobs were deleted at the same time."""

    def __init__(self, client: KubernetesClient, namespace: str) -> None:
        super().__init__(client, [namespace], DEFAULTS, 32)
        self.at_once = 0
        self.most = 0

    async def delete_job(self, job: GenerationJob) -> None:
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            await super().delete_job(job)
        finally:
            self.at_once -= 1


async def cancelled(client: KubernetesClient, namespace: Namespace, ttl: int, **metadata: object) -> GenerationJob:
    body = {
        "apiVersion": meta.API_VERSION,
        "kind": "GenerationJob",
        "metadata": {"generateName": "job-", **metadata},
        "spec": {"prompt": "a fox", "ttlSecondsAfterFinished": ttl},
    }
    job = await client.generation_jobs.create(namespace.name, body)
    status = {"phase": Phase.CANCELLED, "completionTime": format_time(dt.datetime.now(dt.UTC))}
    return await client.generation_jobs.patch(namespace.name, job.name, {"status": status}, subresource="status")


async def test_many_that_are_due_together_go_a_few_at_a_time(namespace: Namespace, client: KubernetesClient) -> None:
    due = [await cancelled(client, namespace, ttl=0) for _ in range(5 * AT_ONCE)]
    later = await cancelled(client, namespace, ttl=3600)
    # What was noted may have got another time to live since.
    changed = await cancelled(client, namespace, ttl=0)
    await client.generation_jobs.patch(namespace.name, changed.name, {"spec": {"ttlSecondsAfterFinished": 3600}})
    cluster = CountingCluster(client, namespace.name)
    retention = Retention(cluster, ImageRemover(None, ""), EventRecorder(client, "test"))
    for job in (later, changed, *due):
        retention.add(job)
    task = asyncio.create_task(retention.run())
    try:

        async def only_the_later() -> bool:
            jobs, _ = await client.generation_jobs.list(namespace.name)
            return {job.name for job in jobs} == {later.name, changed.name}

        await eventually("the jobs to be deleted", only_the_later, 20)
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    assert 1 <= cluster.most <= AT_ONCE


async def test_a_deleted_job_goes_once_its_images_have(namespace: Namespace, client: KubernetesClient) -> None:
    job = await cancelled(client, namespace, ttl=3600, finalizers=[meta.IMAGES_FINALIZER])
    await client.generation_jobs.delete(namespace.name, job.name)
    held = await client.generation_jobs.get(namespace.name, job.name)
    retention = Retention(
        CountingCluster(client, namespace.name), ImageRemover(None, ""), EventRecorder(client, "test")
    )
    # The watch tells of it again and again.
    for _ in range(3):
        retention.add(held)
    task = asyncio.create_task(retention.run())
    try:

        async def gone() -> bool:
            return not (await client.generation_jobs.list(namespace.name))[0]

        await eventually("the job to be gone", gone, 20)
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

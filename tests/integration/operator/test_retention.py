"""Finished jobs go when their time is over, however many are due in one moment, a few at a time."""

from __future__ import annotations

import asyncio
import datetime as dt
from contextlib import suppress
from functools import partial

from kubediffusion.local.testing import Namespace, eventually
from kubediffusion.operator.cluster import Cluster
from kubediffusion.operator.events import EventRecorder
from kubediffusion.operator.image_releases import AT_ONCE, ImageReleases
from kubediffusion.operator.images import ImageRemover
from kubediffusion.operator.manifests import WorkerDefaults
from kubediffusion.operator.retention import Retention, RetentionPauses, RetentionPolicy
from kubediffusion.resources import meta
from kubediffusion.resources.apiserver.client import KubernetesClient
from kubediffusion.resources.apiserver.errors import ForbiddenError
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


def releases(cluster: Cluster, client: KubernetesClient) -> ImageReleases:
    return ImageReleases(cluster, ImageRemover(None, ""), EventRecorder(client, "test"))


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
    retention = Retention(cluster, releases(cluster, client))
    for job in (later, changed, *due):
        retention.add(job)
    task = asyncio.create_task(retention.run())
    try:

        async def only_the_later() -> bool:
            jobs, _ = await client.generation_jobs.list(namespace.name)
            return {job.name for job in jobs} == {later.name, changed.name}

        await eventually("the jobs to be deleted", only_the_later)
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    assert 1 <= cluster.most <= AT_ONCE


async def test_a_deleted_job_goes_once_its_images_have(namespace: Namespace, client: KubernetesClient) -> None:
    job = await cancelled(client, namespace, ttl=3600, finalizers=[meta.IMAGES_FINALIZER])
    await client.generation_jobs.delete(namespace.name, job.name)
    held = await client.generation_jobs.get(namespace.name, job.name)
    cluster = CountingCluster(client, namespace.name)
    retention = Retention(cluster, releases(cluster, client))
    # The watch tells of it again and again.
    for _ in range(3):
        retention.add(held)
    task = asyncio.create_task(retention.run())
    try:

        async def gone() -> bool:
            return not (await client.generation_jobs.list(namespace.name))[0]

        await eventually("the job to be gone", gone)
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def unnamed(client: KubernetesClient, namespace: Namespace, name: str, seconds_ago: float) -> GenerationJob:
    """Create a job that has finished and names no time to live."""
    body = {"apiVersion": meta.API_VERSION, "kind": "GenerationJob", "metadata": {"name": name}}
    await client.generation_jobs.create(namespace.name, body | {"spec": {"prompt": "a fox"}})
    finished = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=seconds_ago)
    status = {"phase": Phase.CANCELLED, "completionTime": format_time(finished)}
    return await client.generation_jobs.patch(namespace.name, name, {"status": status}, subresource="status")


async def test_a_job_that_names_no_time_to_live_gets_the_default_which_its_spec_shows(
    namespace: Namespace, client: KubernetesClient
) -> None:
    ttls = {"kept": None, "model": 1800, "old": 5}
    cluster = CountingCluster(client, namespace.name)
    retention = Retention(cluster, releases(cluster, client), RetentionPolicy(lambda job: ttls.get(job.name, 3600)))
    for name in ("kept", "model", "operator", "old"):
        retention.add(await unnamed(client, namespace, name, seconds_ago=60))
    task = asyncio.create_task(retention.run())
    try:

        async def named() -> bool:
            jobs, _ = await client.generation_jobs.list(namespace.name)
            shown = {job.name: job.spec.ttl_seconds_after_finished for job in jobs}
            return shown == {"kept": None, "model": 1800, "operator": 3600}

        await eventually("the defaults to be shown, and the old job to go", named)
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_of_too_many_finished_jobs_of_a_namespace_the_oldest_go(
    namespace: Namespace, client: KubernetesClient
) -> None:
    cluster = CountingCluster(client, namespace.name)
    retention = Retention(cluster, releases(cluster, client), RetentionPolicy(most_finished=2))
    ages = {"b": 30, "a": 40, "d": 10, "c": 20}
    for name, age in ages.items():
        retention.add(await unnamed(client, namespace, name, seconds_ago=age))
    task = asyncio.create_task(retention.run())
    try:

        async def newest() -> bool:
            jobs, _ = await client.generation_jobs.list(namespace.name)
            return {job.name for job in jobs} == {"c", "d"}

        await eventually("the oldest to go", newest)
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_a_quota_full_of_finished_jobs_makes_room_for_new_ones(
    namespace: Namespace, client: KubernetesClient
) -> None:
    quota = {"count/generationjobs.kubediffusion.io": "10"}
    manifest = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "jobs"}, "spec": {"hard": quota}}
    namespace.apply(manifest)
    ages = {f"{number}": 600 - number for number in range(9)} | {"young": 0}
    jobs = [
        await eventually("a creation", partial(admitted, client, namespace, name, age)) for name, age in ages.items()
    ]

    async def full() -> bool:
        used = (await asyncio.to_thread(namespace.list, "resourcequota"))[0]["status"].get("used", {})
        return bool(used == quota)

    await eventually("the quota to be full", full, 60)
    assert await admitted(client, namespace, "refused", 0) is None
    cluster = CountingCluster(client, namespace.name)
    pauses = RetentionPauses(quotas=0.5, counting=0.1)
    retention = Retention(cluster, releases(cluster, client), RetentionPolicy(lambda _: 86_400), pauses=pauses)
    for job in jobs:
        retention.add(job)
    task = asyncio.create_task(retention.run())
    try:
        await eventually("room for a new job", partial(admitted, client, namespace, "new", 0), 60)
        left = {job.name for job in (await client.generation_jobs.list(namespace.name))[0]}
        # The oldest went, one tenth; who has just ended can still be read.
        assert left == (ages.keys() - {"0"}) | {"new"}
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def admitted(client: KubernetesClient, namespace: Namespace, name: str, age: float) -> GenerationJob | None:
    """Create a finished job; return None where the quota does not admit it, or is not counted yet."""
    try:
        return await unnamed(client, namespace, name, seconds_ago=age)
    except ForbiddenError:
        return None


async def test_a_job_stays_until_its_receiver_has_been_told(namespace: Namespace, client: KubernetesClient) -> None:
    """Or until its time has passed: a receiver that is gone keeps no job."""

    async def ended(**webhook: object) -> GenerationJob:
        body = {
            "apiVersion": meta.API_VERSION,
            "kind": "GenerationJob",
            "metadata": {"generateName": "job-"},
            "spec": {"prompt": "a fox", "ttlSecondsAfterFinished": 0, "webhook": {"url": "https://a.example"}},
        }
        job = await client.generation_jobs.create(namespace.name, body)
        status = {"phase": Phase.CANCELLED, "completionTime": format_time(dt.datetime.now(dt.UTC)), **webhook}
        return await client.generation_jobs.patch(namespace.name, job.name, {"status": status}, subresource="status")

    async def there() -> set[str]:
        jobs, _ = await client.generation_jobs.list(namespace.name)
        return {job.name for job in jobs}

    owed, told = await ended(), await ended(webhook={"delivered": ["completed"], "attempts": 1})
    cluster = CountingCluster(client, namespace.name)
    retention = Retention(cluster, releases(cluster, client), RetentionPolicy(most_finished=1, webhook_hold=3600))
    short = Retention(cluster, releases(cluster, client), RetentionPolicy(webhook_hold=2))
    task = asyncio.create_task(retention.run())
    try:
        for job in (owed, told):
            retention.add(job)

        async def only_the_owed() -> bool:
            return await there() == {owed.name}

        await eventually("the told one to go", only_the_owed)
        # The watch shows that it has been told.
        patch = {"status": {"webhook": {"delivered": ["completed"], "attempts": 1}}}
        retention.add(await client.generation_jobs.patch(namespace.name, owed.name, patch, subresource="status"))

        async def nothing() -> bool:
            return not await there()

        await eventually("the other to go", nothing)
        given_up_on = await ended()
        ending = asyncio.create_task(short.run())
        short.add(given_up_on)
        await eventually("one that nobody tells to go", nothing)
        ending.cancel()
        with suppress(asyncio.CancelledError):
            await ending
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

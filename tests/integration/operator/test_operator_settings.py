"""Settings of the operator that no other test is about: each changes what a cluster sees."""

from __future__ import annotations

import asyncio
import datetime as dt

from integration.operator.operators import JOB, MODEL, without_watches
from kubediffusion.local.testing import Namespace, eventually
from kubediffusion.resources.apiserver.client import KubernetesClient
from kubediffusion.resources.conditions import Condition, find_condition
from kubediffusion.resources.testing import present


async def reasons(namespace: Namespace, client: KubernetesClient) -> list[Condition]:
    """The conditions Scheduled of all jobs that have one."""
    jobs, _ = await client.generation_jobs.list(namespace.name)
    found = (find_condition(job.status.conditions, "Scheduled") for job in jobs)
    return [condition for condition in found if condition is not None]


async def test_the_port_of_workers(namespace: Namespace, client: KubernetesClient) -> None:
    await client.diffusion_models.create(namespace.name, MODEL)
    async with without_watches(namespace, client, worker_port=9123):

        async def ports() -> set[int]:
            jobs = await asyncio.to_thread(namespace.list, "job.batch")
            containers = (job["spec"]["template"]["spec"]["containers"][0] for job in jobs)
            return {port["containerPort"] for container in containers for port in container["ports"]}

        assert await eventually("a worker's Job", ports) == {9123}


async def test_how_long_a_job_waits_before_it_says_why(namespace: Namespace, client: KubernetesClient) -> None:
    await client.diffusion_models.create(namespace.name, MODEL)
    job = await client.generation_jobs.create(namespace.name, JOB)
    async with without_watches(namespace, client, explain_after_seconds=4):
        [said] = await eventually("it to say why it waits", lambda: reasons(namespace, client))
        created = present(job.metadata.creation_timestamp)
        # Both are whole seconds, rounded down.
        assert present(said.last_transition_time) - created >= dt.timedelta(seconds=3)


async def test_how_many_jobs_a_second_say_why_they_wait(namespace: Namespace, client: KubernetesClient) -> None:
    count = 60
    suspended = {**JOB, "spec": {"prompt": "a fox", "suspend": True}}
    for _ in range(count):
        await client.generation_jobs.create(namespace.name, suspended)
    async with without_watches(namespace, client, explanations_per_second=1000):

        async def all_told() -> list[Condition] | None:
            told = await reasons(namespace, client)
            return told if len(told) == count else None

        moments = [present(said.last_transition_time) for said in await eventually("all to say so", all_told)]
    # At the default, five a second, it takes eleven seconds at least.
    assert max(moments) - min(moments) < dt.timedelta(seconds=count / 5 - 2)


async def test_how_many_finished_jobs_of_a_namespace_are_kept(namespace: Namespace, client: KubernetesClient) -> None:
    cancelled = {**JOB, "spec": {"prompt": "a fox", "cancel": True}}
    for _ in range(5):
        await client.generation_jobs.create(namespace.name, cancelled)
    async with without_watches(namespace, client, finished_jobs_per_namespace=2):

        async def two_left() -> bool:
            jobs, _ = await client.generation_jobs.list(namespace.name)
            return [job.status.phase for job in jobs] == ["Cancelled"] * 2

        await eventually("two to be left", two_left)

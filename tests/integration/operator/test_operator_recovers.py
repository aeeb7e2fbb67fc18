"""The loop's picture follows the cluster even where no watch told it: restarts and outages lose nothing but time."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
from prometheus_client import REGISTRY

from integration.operator.operators import DEFAULTS, JOB, MODEL, bindable_worker, without_watches, workers_pod
from kubediffusion.local.testing import Namespace, eventually
from kubediffusion.operator import job_executor
from kubediffusion.operator.actions import CreateWorker, JobAction
from kubediffusion.operator.cluster import Cluster
from kubediffusion.operator.composition import Operator
from kubediffusion.operator.events import Event
from kubediffusion.operator.manifests import template_hash
from kubediffusion.operator.retrying import RETRY_SECONDS
from kubediffusion.operator.watching import watch_jobs
from kubediffusion.operator.workers import BatchJob
from kubediffusion.resources import meta
from kubediffusion.resources.apiserver.client import KubernetesClient
from kubediffusion.resources.apiserver.resource import Resource
from kubediffusion.resources.generation_job import GenerationJob, Phase


async def bound_to(namespace: Namespace, client: KubernetesClient, pod: str) -> str:
    job = await client.generation_jobs.create(namespace.name, JOB)
    parameters = {"model": "emoji", "numInferenceSteps": 1, "guidanceScale": 1, "seed": 1, "numImages": 1}
    status = {"phase": Phase.SCHEDULED, "worker": pod, "attempt": 1, "parameters": parameters}
    await client.generation_jobs.patch(namespace.name, job.name, {"status": status}, subresource="status")
    return job.name


def known(operator: Operator, namespace: Namespace) -> set[str]:
    return {job.name for job in operator.store.unfinished_jobs(namespace.name)}


async def test_a_restarted_operator_knows_what_is_bound_and_a_deletion_is_noticed_without_a_watch(
    namespace: Namespace, client: KubernetesClient
) -> None:
    await client.diffusion_models.create(namespace.name, MODEL)
    async with without_watches(namespace, client):
        pod = await workers_pod(namespace)
    kept, deleted = await bound_to(namespace, client, pod), await bound_to(namespace, client, pod)

    async with without_watches(namespace, client) as operator:
        assert known(operator, namespace) == {kept, deleted}
        await client.generation_jobs.delete(namespace.name, deleted)

        async def only_the_kept() -> bool:
            return known(operator, namespace) == {kept}

        await eventually("the deletion to be noticed", only_the_kept)
        job = await client.generation_jobs.get(namespace.name, kept)
        assert (job.status.worker, job.status.attempt) == (pod, 1)


async def test_a_model_that_was_deleted_while_nobody_watched_gets_no_more_workers(
    namespace: Namespace, client: KubernetesClient
) -> None:
    await client.diffusion_models.create(namespace.name, MODEL)
    async with without_watches(namespace, client) as operator:
        await workers_pod(namespace)
        await client.diffusion_models.delete(namespace.name, "emoji")

        async def forgotten() -> bool:
            return operator.store.namespace(namespace.name) is None

        await eventually("the model and its workers to be forgotten", forgotten)
        # Owned by the model, they went with it.
        assert await asyncio.to_thread(namespace.list, "job") == []


async def worker_that_is_there(namespace: Namespace, client: KubernetesClient) -> tuple[CreateWorker, BatchJob]:
    """Create a worker, and return the action that created it.

    Its Job is suspended, so it has no Pod: one would hold the worker's place while it is there.
    """
    spec = {**MODEL["spec"], "workers": {**MODEL["spec"]["workers"], "queueName": "nobody-admits"}}
    model = await client.diffusion_models.create(namespace.name, {**MODEL, "spec": spec})
    action = CreateWorker(model, template_hash(model, DEFAULTS), 0)
    created = await Cluster(client, [namespace.name], DEFAULTS, 4).execute(action)
    assert isinstance(created, BatchJob)
    return action, created


async def test_a_worker_that_is_there_already_is_taken_for_the_one_that_was_to_be_created(
    namespace: Namespace, client: KubernetesClient
) -> None:
    action, created = await worker_that_is_there(namespace, client)
    again = await Cluster(client, [namespace.name], DEFAULTS, 4).execute(action)
    assert isinstance(again, BatchJob)
    assert again.uid == created.uid


def failed_creations() -> float:
    labels = {"action": "CreateWorker", "outcome": "error"}
    return REGISTRY.get_sample_value("kubediffusion_operator_actions_total", labels) or 0.0


async def test_another_job_that_has_a_workers_name_is_told_and_not_asked_for_at_once_again(
    namespace: Namespace, client: KubernetesClient
) -> None:
    _, created = await worker_that_is_there(namespace, client)
    # Somebody else's by its label, no list or watch of workers has it. Without any it would get its Pod's again.
    relabelled = {"metadata": {"labels": {meta.MANAGED_BY_LABEL: "somebody-else"}}}
    await Resource(client, BatchJob, "/apis/batch/v1", "jobs").patch(namespace.name, created.metadata.name, relabelled)
    before, began = failed_creations(), time.monotonic()
    async with without_watches(namespace, client) as operator:

        async def tried_three_times() -> bool:
            return failed_creations() - before >= 3

        await eventually("three tries", tried_three_times)
        state = operator.store.namespace(namespace.name)
        assert state is not None
        refusal = state.refusals["emoji"]
    assert "taken by a batch/v1 Job that is no worker; delete it" in refusal
    # Two pauses lie between them, each at least half of its full length.
    assert time.monotonic() - began >= RETRY_SECONDS / 2 + RETRY_SECONDS


async def test_a_defect_beside_a_write_loses_no_job(
    namespace: Namespace, client: KubernetesClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await client.diffusion_models.create(namespace.name, MODEL)
    job = await client.generation_jobs.create(namespace.name, JOB)
    told: list[JobAction] = []

    def breaks(action: JobAction, _job: GenerationJob) -> list[Event]:
        told.append(action)
        raise RuntimeError("a defect")

    # A defect is planted, as none is known.
    monkeypatch.setattr(job_executor, "events_of_job_write", breaks)
    async with without_watches(namespace, client) as operator:

        async def written() -> bool:
            return bool(told) and not operator.store.is_being_written(job.uid)

        await eventually("the write and what follows it", written)
        assert known(operator, namespace) == {job.name}


async def test_the_operator_reports_what_it_sees_of_a_model(namespace: Namespace, client: KubernetesClient) -> None:
    await client.diffusion_models.create(namespace.name, MODEL)
    async with without_watches(namespace, client):

        async def starting() -> bool:
            status = (await client.diffusion_models.get(namespace.name, "emoji")).status
            return status.workers.starting == 1 and status.observed_generation == 1

        await eventually("the model's status", starting)
    status = (await client.diffusion_models.get(namespace.name, "emoji")).status
    assert [(c.type, c.status, c.reason) for c in status.conditions] == [("Available", "Unknown", "NotYetLoaded")]


async def test_little_of_a_job_is_kept_however_it_comes(namespace: Namespace, client: KubernetesClient) -> None:
    """Ten thousand of the largest jobs fit into the operator's memory: lists, watches and answers are all cut."""
    notes = {f"example.com/note-{number}": "x" * 10_000 for number in range(20)}
    body = {**JOB, "metadata": {"generateName": "job-", "annotations": notes, "labels": {"team": "a"}}}
    unwanted = "\N{FOX FACE}" * 4000
    body = {**body, "spec": {"prompt": "p" * 4000, "negativePrompt": unwanted, "model": "emoji"}}
    await client.diffusion_models.create(namespace.name, MODEL)
    listed = await client.generation_jobs.create(namespace.name, body)
    async with without_watches(namespace, client) as operator:
        pod = await bindable_worker(namespace, client)

        async def bound() -> bool:
            return [job.status.worker for job in operator.store.unfinished_jobs(namespace.name)] == [pod]

        await eventually("the listed job to be bound", bound)
        seen: list[GenerationJob] = []
        watch = watch_jobs(client, namespace.name, lambda job, _: seen.append(job))
        watching = asyncio.create_task(watch.run())
        await asyncio.wait_for(watch.synced.wait(), 30)
        await client.generation_jobs.create(namespace.name, body)

        async def both() -> bool:
            return len({job.uid for job in seen}) == 2

        await eventually("the watch to tell of both", both)
        watching.cancel()
        kept = [*operator.store.unfinished_jobs(namespace.name), *seen]
    assert listed.uid in {job.uid for job in kept}
    assert max(len(json.dumps(job.to_wire())) for job in kept) < 3000
    # What is not kept is no less part of the recipe.
    recipe = (await client.generation_jobs.get(namespace.name, listed.name)).status.parameters
    assert recipe is not None
    assert recipe.negative_prompt == unwanted

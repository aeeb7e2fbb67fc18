"""A webhook that does not answer, or a policy that denies, in one namespace holds up no other, and is named there."""

from __future__ import annotations

import asyncio
import datetime as dt
import socket
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import pairwise
from typing import Any

import pytest

from integration.operator.operators import JOB, MODEL, bindable_worker, events_of, without_watches
from integration.webhooks import webhook
from kubediffusion.local.errors import LocalError
from kubediffusion.local.testing import Namespace, eventually
from kubediffusion.resources import meta
from kubediffusion.resources.apiserver.client import KubernetesClient
from kubediffusion.resources.apiserver.errors import KubernetesError
from kubediffusion.resources.apiserver.resource import MERGE_PATCH
from kubediffusion.resources.conditions import find_condition
from kubediffusion.resources.generation_job import GenerationJob, Phase
from kubediffusion.resources.schema import format_time

TIMEOUT_SECONDS = 10
"""The API server gives the webhook so long, as it does by default."""
JOBS = 8
"""As many as a worker takes: their writes alone are more than the operator makes at once."""

GENERATION_JOBS = {
    "apiGroups": ["kubediffusion.io"],
    "apiVersions": ["*"],
    "operations": ["UPDATE", "DELETE"],
    "resources": ["generationjobs", "generationjobs/status"],
}
DENIED = "nobody writes this here"
BATCH_JOBS = {"apiGroups": ["batch"], "apiVersions": ["*"], "operations": ["CREATE"], "resources": ["jobs"]}


@pytest.fixture
def quick(namespace: Namespace) -> Iterator[Namespace]:
    """A second namespace."""
    fresh = Namespace(namespace.cluster, f"{namespace.name}-quick")
    fresh.create()
    yield fresh
    with suppress(LocalError):
        fresh.delete()


@contextmanager
def silent_server() -> Iterator[str]:
    """Have a server that takes connections and never says anything; yield its address."""
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as server:
        yield f"https://127.0.0.1:{server.getsockname()[1]}/"


async def in_force(client: KubernetesClient, namespace: Namespace) -> None:
    """Wait until the webhook is asked of a job's status."""
    job = await client.generation_jobs.create(namespace.name, {**JOB, "spec": {"prompt": "a fox", "suspend": True}})

    async def asked() -> bool:
        patch = {"status": {"warnings": ["seen"]}}
        write = client.generation_jobs.patch(namespace.name, job.name, patch, subresource="status")
        try:
            await asyncio.wait_for(write, 2)
        except TimeoutError:
            return True
        return False

    await eventually("the webhook to be asked", asked)


async def test_writes_that_hang_in_one_namespace_hold_up_no_other(
    namespace: Namespace, quick: Namespace, client: KubernetesClient
) -> None:
    for each in (namespace, quick):
        await client.diffusion_models.create(each.name, MODEL)
    async with without_watches(namespace, client, quick) as operator:
        pods = {each.name: await bindable_worker(each, client) for each in (namespace, quick)}

        async def create(where: Namespace) -> list[GenerationJob]:
            jobs = [await client.generation_jobs.create(where.name, JOB) for _ in range(JOBS)]
            for job in jobs:
                operator.store.observe_job(job, deleted=False)
            return jobs

        async def all_bound(jobs: list[GenerationJob]) -> bool:
            found = [await client.generation_jobs.get(job.metadata.namespace, job.name) for job in jobs]
            return all(job.status.worker == pods[job.metadata.namespace] for job in found)

        with silent_server() as url, webhook(namespace, GENERATION_JOBS, {"url": url}, TIMEOUT_SECONDS):
            await in_force(client, namespace)
            slow_jobs = await create(namespace)

            async def written() -> bool:
                return any(operator.store.is_being_written(job.uid) for job in slow_jobs)

            await eventually("the slow writes to begin", written)
            began = time.monotonic()
            quick_jobs = await create(quick)
            await eventually("the others to be bound", lambda: all_bound(quick_jobs))
            assert time.monotonic() - began < TIMEOUT_SECONDS / 2

            async def told() -> bool:
                return any([("Warning", "StatusRefused") in await events_of(namespace, job.name) for job in slow_jobs])

            await eventually("the webhook to be named in an Event", told)
        await eventually("the slow ones to be bound all the same", lambda: all_bound(slow_jobs))


async def test_deletions_that_hang_in_one_namespace_hold_up_no_others(
    namespace: Namespace, quick: Namespace, client: KubernetesClient
) -> None:
    async def finished(where: Namespace) -> GenerationJob:
        job = await client.generation_jobs.create(
            where.name, {**JOB, "spec": {"prompt": "a fox", "ttlSecondsAfterFinished": 0}}
        )
        status = {"phase": Phase.CANCELLED, "completionTime": format_time(dt.datetime.now(dt.UTC))}
        return await client.generation_jobs.patch(where.name, job.name, {"status": status}, subresource="status")

    async with without_watches(namespace, client, quick) as operator:
        slow_jobs = [await finished(namespace) for _ in range(20)]
        quick_job = await finished(quick)
        with silent_server() as url, webhook(namespace, GENERATION_JOBS, {"url": url}, TIMEOUT_SECONDS):
            await in_force(client, namespace)
            for job in (*slow_jobs, quick_job):
                operator.retention.add(job)
            began = time.monotonic()

            async def gone() -> bool:
                return not (await client.generation_jobs.list(quick.name))[0]

            await eventually("the other namespace's job to go", gone)
            assert time.monotonic() - began < TIMEOUT_SECONDS / 2
            assert len((await client.generation_jobs.list(namespace.name))[0]) >= len(slow_jobs)


async def test_a_webhook_that_keeps_workers_from_being_created_is_told(
    namespace: Namespace, client: KubernetesClient
) -> None:
    with webhook(namespace, BATCH_JOBS, {"url": "https://127.0.0.1:1/"}, TIMEOUT_SECONDS):
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"generateName": "try-"}}
        pod: dict[str, Any] = {"restartPolicy": "Never", "containers": [{"name": "a", "image": "none"}]}

        async def asked() -> bool:
            try:
                body = {**job, "spec": {"suspend": True, "template": {"spec": pod}}}
                await client.request("POST", f"/apis/batch/v1/namespaces/{namespace.name}/jobs", body=body)
            except KubernetesError as error:
                return error.webhook_failed
            return False

        await eventually("the webhook to be asked", asked)
        await client.diffusion_models.create(namespace.name, MODEL)
        waiting = await client.generation_jobs.create(namespace.name, JOB)
        async with without_watches(namespace, client):
            began = time.monotonic()

            async def told() -> bool:
                found = await client.generation_jobs.get(namespace.name, waiting.name)
                said = find_condition(found.status.conditions, "Scheduled")
                refused = said is not None and said.reason == "WorkerRefused"
                return refused and said is not None and "failed calling webhook" in said.message

            await eventually("the job to say so", told)
            assert time.monotonic() - began < 10


@contextmanager
def policy(namespace: Namespace, resource: str, operation: str, expression: str) -> Iterator[None]:
    """Deny writes in a namespace that an expression is false for, for as long as the block runs."""
    rule = {"apiGroups": ["kubediffusion.io"], "apiVersions": ["*"], "operations": [operation], "resources": [resource]}
    selector = {"matchLabels": {"kubernetes.io/metadata.name": namespace.name}}
    kinds = ("ValidatingAdmissionPolicyBinding", "ValidatingAdmissionPolicy")
    specs: tuple[dict[str, Any], ...] = (
        {
            "policyName": namespace.name,
            "validationActions": ["Deny"],
            "matchResources": {"namespaceSelector": selector},
        },
        {
            "failurePolicy": "Fail",
            "matchConstraints": {"resourceRules": [rule]},
            "validations": [{"expression": expression, "message": DENIED}],
        },
    )
    group = "admissionregistration.k8s.io/v1"
    namespace.cluster.apply(
        {"apiVersion": group, "kind": kind, "metadata": {"name": namespace.name}, "spec": spec}
        for kind, spec in reversed(list(zip(kinds, specs, strict=True)))
    )
    try:
        yield
    finally:
        for kind in kinds:
            namespace.cluster.kubectl("delete", kind, namespace.name)


async def denied(write: Callable[[], Coroutine[Any, Any, object]]) -> bool:
    """Return whether a write is denied by the policy by now."""
    try:
        await write()
    except KubernetesError as error:
        return DENIED in error.message
    return False


async def held(client: KubernetesClient, where: Namespace, name: str) -> GenerationJob:
    """Create a job that has ended and is held for its images."""
    body = {**JOB, "metadata": {"name": name, "finalizers": [meta.IMAGES_FINALIZER]}}
    await client.generation_jobs.create(where.name, body)
    status = {"phase": Phase.CANCELLED, "completionTime": format_time(dt.datetime.now(dt.UTC))}
    return await client.generation_jobs.patch(where.name, name, {"status": status}, subresource="status")


async def test_a_finalizer_that_may_not_be_removed_is_said_on_its_job_and_holds_no_other(
    namespace: Namespace, quick: Namespace, client: KubernetesClient
) -> None:
    jobs = [await held(client, namespace, f"held-{number}") for number in range(6)]
    free = await held(client, quick, "free")

    async def gone(where: Namespace, *names: str) -> bool:
        return not {job.name for job in (await client.generation_jobs.list(where.name))[0]} & set(names)

    async def told(name: str) -> bool:
        job = await client.generation_jobs.get(namespace.name, name)
        return DENIED in job.metadata.annotations.get(meta.IMAGES_HELD_ANNOTATION, "")

    async with without_watches(namespace, client, quick) as operator:
        expression = "object.metadata.?finalizers == oldObject.metadata.?finalizers"
        with policy(namespace, "generationjobs", "UPDATE", expression):
            path = client.generation_jobs.path(namespace.name, jobs[0].name)
            body: dict[str, Any] = {"body": {"metadata": {"finalizers": []}}, "content_type": MERGE_PATCH}
            query = {"dryRun": "All"}
            await eventually("the policy", lambda: denied(lambda: client.request("PATCH", path, query=query, **body)))
            for job in (*jobs, free):
                await client.generation_jobs.delete(job.metadata.namespace, job.name)
                found = await client.generation_jobs.get(job.metadata.namespace, job.name)
                operator.store.observe_job(found, deleted=False)
            await eventually("the other namespace's job to go", lambda: gone(quick, free.name))
            for job in jobs:
                await eventually("the job to say what holds it", partial(told, job.name))
            assert ("Warning", "ImagesHeld") in await events_of(namespace, "held-0")
        await eventually("the held jobs to go", lambda: gone(namespace, *(job.name for job in jobs)))


async def test_what_is_denied_for_good_is_tried_ever_more_seldom(
    namespace: Namespace, client: KubernetesClient, caplog: pytest.LogCaptureFixture
) -> None:
    """A model's status and the deletion of a finished job, for some seconds each."""
    job = await held(client, namespace, "finished")
    await client.generation_jobs.patch(
        namespace.name, job.name, {"metadata": {"finalizers": []}, "spec": {"ttlSecondsAfterFinished": 0}}
    )
    model = await client.diffusion_models.create(namespace.name, MODEL)

    def tries(words: str) -> list[float]:
        return [record.created for record in caplog.records if words in record.getMessage()]

    async def tried(words: str, times: int) -> bool:
        return len(tries(words)) >= times

    with policy(namespace, "diffusionmodels/status", "UPDATE", "false"):
        path = client.diffusion_models.path(namespace.name, model.name, "status")
        body: dict[str, Any] = {"body": {"status": {"queued": 1}}, "content_type": MERGE_PATCH}
        query = {"dryRun": "All"}
        await eventually("the policy", lambda: denied(lambda: client.request("PATCH", path, query=query, **body)))
        async with without_watches(namespace, client):
            await eventually("some tries", lambda: tried("ReportModel failed", 4))
    with policy(namespace, "generationjobs", "DELETE", "false"):
        path = client.generation_jobs.path(namespace.name, job.name)
        await eventually("the policy", lambda: denied(lambda: client.request("DELETE", path, query={"dryRun": "All"})))
        async with without_watches(namespace, client) as operator:
            operator.retention.add(await client.generation_jobs.get(namespace.name, job.name))
            await eventually("some tries", lambda: tried("cannot delete an expired job", 4))
    for words in ("ReportModel failed", "cannot delete an expired job"):
        first, *_, last = (after - before for before, after in pairwise(tries(words)))
        # Each is twice the one before, cut by up to a half at random.
        assert last > first
        assert last >= 2

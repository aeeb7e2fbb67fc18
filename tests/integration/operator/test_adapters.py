"""An adapter's status follows what workers tell of it, and a job waits for an adapter that is not there yet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from integration.operator.operators import JOB, MODEL, bindable_worker, events_of, without_watches
from kubediffusion.local.testing import Namespace, eventually
from kubediffusion.operator.composition import Operator
from kubediffusion.operator.watching import watch_jobs
from kubediffusion.resources.adapters import AdapterReport, reports_to_json
from kubediffusion.resources.apiserver.client import KubernetesClient
from kubediffusion.resources.apiserver.resource import STRATEGIC_MERGE_PATCH
from kubediffusion.resources.conditions import (
    AdapterConditionType,
    JobConditionType,
    PodConditionType,
    WaitingReason,
    find_condition,
)
from kubediffusion.resources.generation_job import GenerationJob, Phase
from kubediffusion.resources.lora_adapter import LoRAAdapter

ADAPTER: dict[str, Any] = {
    "apiVersion": "kubediffusion.io/v1alpha1",
    "kind": "LoRAAdapter",
    "metadata": {"name": "crayon"},
    "spec": {"model": "emoji", "source": {"path": "/adapters"}, "scale": 0.5},
}
DIGEST = "ab" * 32


def naming(*names: str) -> dict[str, Any]:
    return {**JOB, "spec": {**JOB["spec"], "adapters": [{"name": name} for name in names]}}  # type: ignore[dict-item]


@asynccontextmanager
async def an_operator(namespace: Namespace, client: KubernetesClient, **settings: Any) -> AsyncIterator[Operator]:
    """Run an operator that lists all, and watches jobs."""
    async with without_watches(namespace, client, explain_after_seconds=0, **settings) as operator:
        watch = asyncio.create_task(watch_jobs(client, namespace.name, operator.store.observe_job).run())
        try:
            yield operator
        finally:
            watch.cancel()
            with suppress(asyncio.CancelledError):
                await watch


async def readiness(namespace: Namespace, client: KubernetesClient, reason: str) -> LoRAAdapter:
    """Wait until the adapter says why it is ready or not, and return it."""

    async def says_so() -> LoRAAdapter | None:
        found = await client.lora_adapters.get(namespace.name, "crayon")
        condition = find_condition(found.status.conditions, AdapterConditionType.READY)
        return found if condition is not None and condition.reason == reason else None

    found = await eventually(f"the adapter to be {reason}", says_so)
    assert found is not None
    return found


async def job_that(namespace: Namespace, client: KubernetesClient, name: str, phase: Phase) -> GenerationJob:
    async def is_there() -> GenerationJob | None:
        job = await client.generation_jobs.get(namespace.name, name)
        return job if job.status.phase is phase else None

    found = await eventually(f"the job to be {phase}", is_there)
    assert found is not None
    return found


async def tell(namespace: Namespace, client: KubernetesClient, pod: str, report: AdapterReport) -> None:
    """Have a worker's Pod tell what it holds or refuses."""
    told = {"type": PodConditionType.ADAPTERS_KNOWN, "status": "True", "reason": "Told"}
    body = {"status": {"conditions": [{**told, "message": reports_to_json({"crayon": report})}]}}
    path = f"/api/v1/namespaces/{namespace.name}/pods/{pod}/status"
    await client.request("PATCH", path, body=body, content_type=STRATEGIC_MERGE_PATCH)


async def test_a_status_follows_what_workers_tell(namespace: Namespace, client: KubernetesClient) -> None:
    await client.lora_adapters.create(namespace.name, ADAPTER)
    async with an_operator(namespace, client):
        await readiness(namespace, client, "ModelNotFound")
        await client.diffusion_models.create(namespace.name, MODEL)
        pod = await bindable_worker(namespace, client)
        new = await readiness(namespace, client, "NotLoaded")
        known = {"uid": new.uid, "generation": new.metadata.generation}
        await tell(namespace, client, pod, AdapterReport(**known, digest=DIGEST, rank=8))
        loaded = await readiness(namespace, client, "Loaded")
        assert (loaded.status.digest, loaded.status.rank, loaded.status.workers) == (DIGEST, 8, (pod,))
        line = (await asyncio.to_thread(namespace.kubectl, "get", "lora", "crayon", "--no-headers")).split()
        assert line[:6] == ["crayon", "emoji", "True", "Loaded", "8", DIGEST[:12]]

        await tell(namespace, client, pod, AdapterReport(**known, reason="RankTooLarge", message="rank 512"))
        await readiness(namespace, client, "RankTooLarge")

        async def an_event() -> bool:
            return ("Warning", "RankTooLarge") in await events_of(namespace, "crayon")

        await eventually("an Event", an_event)
        refused = await client.generation_jobs.create(namespace.name, naming("crayon"))
        failed = await job_that(namespace, client, refused.name, Phase.FAILED)
        assert failed.status.error is not None
        assert failed.status.error.code == "InvalidAdapter"
        assert failed.status.error.message == "spec.adapters: 'crayon' cannot be used (RankTooLarge): rank 512"

        await client.lora_adapters.patch(namespace.name, "crayon", {"spec": {"source": {"file": "small.safetensors"}}})
        await readiness(namespace, client, "NotLoaded")
        again = await client.generation_jobs.create(namespace.name, naming("crayon"))
        await job_that(namespace, client, again.name, Phase.SCHEDULED)


async def test_a_job_waits_for_its_adapter_and_keeps_nobody(namespace: Namespace, client: KubernetesClient) -> None:
    await client.diffusion_models.create(namespace.name, MODEL)
    async with an_operator(namespace, client):
        pod = await bindable_worker(namespace, client)
        early = await client.generation_jobs.create(namespace.name, naming("crayon"))

        async def says_why() -> str:
            job = await client.generation_jobs.get(namespace.name, early.name)
            condition = find_condition(job.status.conditions, JobConditionType.SCHEDULED)
            return condition.message if condition and condition.reason == WaitingReason.ADAPTER_NOT_FOUND else ""

        message = await eventually("the job to say what it waits for", says_why)
        assert message == f"no LoRAAdapter 'crayon' exists in {namespace.name} yet"
        other = await client.generation_jobs.create(namespace.name, JOB)
        await job_that(namespace, client, other.name, Phase.SCHEDULED)

        await client.lora_adapters.create(namespace.name, ADAPTER)
        bound = await job_that(namespace, client, early.name, Phase.SCHEDULED)
        assert bound.status.worker == pod
        assert bound.status.parameters is not None
        (applied,) = bound.status.parameters.adapters or ()
        assert applied.to_wire() == {"name": "crayon", "scale": 0.5}


async def test_a_job_whose_adapter_never_comes_fails_with_those_that_are_there(
    namespace: Namespace, client: KubernetesClient
) -> None:
    await client.lora_adapters.create(namespace.name, ADAPTER)
    await client.diffusion_models.create(namespace.name, MODEL)
    async with an_operator(namespace, client, model_grace_seconds=0):
        job = await client.generation_jobs.create(namespace.name, naming("crayon", "ink"))
        failed = await job_that(namespace, client, job.name, Phase.FAILED)
        assert failed.status.error is not None
        assert failed.status.error.code == "InvalidAdapter"
        assert "no LoRAAdapter 'ink' in namespace" in failed.status.error.message
        assert "(there: crayon)" in failed.status.error.message

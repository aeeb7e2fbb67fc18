"""kopf tells of every change, and leaves no trace of its own on what it watches."""

from __future__ import annotations

import asyncio

import kopf

from kubediffusion.local.testing import Namespace, eventually
from kubediffusion.operator.handlers import register
from kubediffusion.operator.watching import configure_kopf
from kubediffusion.operator.workers import BatchJob, Pod
from kubediffusion.resources import meta
from kubediffusion.resources.client import KubernetesClient
from kubediffusion.resources.diffusion_model import DiffusionModel
from kubediffusion.resources.generation_job import GenerationJob


class Listener:
    """Stands where the controller does."""

    def __init__(self) -> None:
        self.priorities: list[int | None] = []
        self.gone = False

    def observe_job(self, job: GenerationJob, gone: bool) -> None:
        self.priorities.append(job.spec.priority)
        self.gone = gone

    def observe_model(self, model: DiffusionModel, gone: bool) -> None: ...

    def observe_batch_job(self, job: BatchJob, gone: bool) -> None: ...

    def observe_pod(self, pod: Pod, gone: bool) -> None: ...


async def test_kopf_tells_of_every_change_and_writes_nothing(namespace: Namespace, client: KubernetesClient) -> None:
    registry, settings, listener = kopf.OperatorRegistry(), kopf.OperatorSettings(), Listener()
    register(registry, listener)
    configure_kopf(registry, settings, client)
    stop = asyncio.Event()
    watches = asyncio.create_task(
        kopf.operator(
            registry=registry,
            settings=settings,
            standalone=True,
            namespaces=[namespace.name],
            identity="test",
            stop_flag=stop,
        )
    )
    path = client.generation_jobs.path(namespace.name)
    body = {"apiVersion": meta.API_VERSION, "kind": "GenerationJob", "metadata": {"name": "job"}}
    try:
        await client.generation_jobs.create(namespace.name, body | {"spec": {"prompt": "a fox"}})
        await eventually("its creation to be told", lambda: told(listener, None), 30)
        for priority in (1, 2):
            await client.generation_jobs.patch(namespace.name, "job", {"spec": {"priority": priority}})
            await eventually("its change to be told", lambda wanted=priority: told(listener, wanted), 10)
        written = await client.request("GET", f"{path}/job")
        await client.generation_jobs.delete(namespace.name, "job")

        async def gone() -> bool:
            return listener.gone

        # No finalizer of kopf's holds it.
        await eventually("its end to be told", gone, 10)
    finally:
        stop.set()
        await watches
    assert "annotations" not in written["metadata"]
    assert "finalizers" not in written["metadata"]
    # Created once and changed twice, by nobody else.
    assert written["metadata"]["generation"] == 3
    assert len({entry["manager"] for entry in written["metadata"]["managedFields"]}) == 1


async def told(listener: Listener, priority: int | None) -> bool:
    return priority in listener.priorities

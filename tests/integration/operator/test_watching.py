"""The cluster is watched without a gap, and without a trace on what is watched."""

from __future__ import annotations

import asyncio
import datetime as dt
from functools import partial

import kopf
import pytest

from kubediffusion.local.testing import Namespace, eventually
from kubediffusion.operator.handlers import register
from kubediffusion.operator.namespace_state import NamespaceState
from kubediffusion.operator.slim_jobs import slim_job
from kubediffusion.operator.store import Store
from kubediffusion.operator.watching import configure_kopf, watch_jobs
from kubediffusion.resources import meta
from kubediffusion.resources.apiserver.client import KubernetesClient
from kubediffusion.resources.diffusion_model import DiffusionModel
from kubediffusion.resources.generation_job import GenerationJob


class Listener(Store):
    """A store that records what it is told of models."""

    def __init__(self) -> None:
        super().__init__(lambda _: "", dt.timedelta())
        self.paces: list[int] = []
        self.gone = False

    def observe_model(self, model: DiffusionModel, deleted: bool) -> None:
        self.paces.append(model.spec.workers.idle_seconds)
        self.gone = deleted


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
            identity="test",  # type: ignore[arg-type] # a NewType of str that kopf does not export
            stop_flag=stop,
        )
    )
    path = client.diffusion_models.path(namespace.name)
    body = {"apiVersion": meta.API_VERSION, "kind": "DiffusionModel", "metadata": {"name": "model"}}
    spec = {"source": {"path": "/models/a"}, "workers": {"idleSeconds": 100}}
    try:
        await client.diffusion_models.create(namespace.name, body | {"spec": spec})
        await eventually("its creation to be told", lambda: told(listener, 100))
        for pace in (101, 102):
            change = {"spec": {"workers": {"idleSeconds": pace}}}
            await client.diffusion_models.patch(namespace.name, "model", change)
            await eventually("its change to be told", partial(told, listener, pace))
        written = await client.request("GET", f"{path}/model")
        await client.diffusion_models.delete(namespace.name, "model")

        async def gone() -> bool:
            return listener.gone

        # No finalizer of kopf's holds it.
        await eventually("its end to be told", gone)
    finally:
        stop.set()
        await watches
    assert "annotations" not in written["metadata"]
    assert "finalizers" not in written["metadata"]
    # Created once and changed twice, by nobody else.
    assert written["metadata"]["generation"] == 3
    assert len({entry["manager"] for entry in written["metadata"]["managedFields"]}) == 1


async def told(listener: Listener, pace: int) -> bool:
    return pace in listener.paces


async def test_a_job_is_told_of_from_its_first_moment_to_its_end(
    namespace: Namespace, client: KubernetesClient
) -> None:
    told: list[tuple[GenerationJob, bool]] = []
    watch = watch_jobs(client, namespace.name, lambda job, gone: told.append((job, gone)))
    body = {"apiVersion": meta.API_VERSION, "kind": "GenerationJob", "metadata": {"name": "job"}}
    job = await client.generation_jobs.create(namespace.name, body | {"spec": {"prompt": "a fox"}})
    watching = asyncio.create_task(watch.run())
    try:
        await asyncio.wait_for(watch.synced.wait(), 30)
        assert told == [(slim_job(job), False)]
        await client.generation_jobs.patch(namespace.name, "job", {"spec": {"priority": 1}})
        await client.generation_jobs.delete(namespace.name, "job")

        async def gone() -> bool:
            return told[-1][1]

        await eventually("its end to be told", gone)
    finally:
        watching.cancel()
    assert [(item.uid, item.spec.priority, end) for item, end in told[:2]] == [
        (job.uid, None, False),
        (job.uid, 1, False),
    ]
    assert [(item.uid, item.metadata.namespace) for item, end in told if end] == [(job.uid, namespace.name)]


async def test_a_job_that_was_deleted_between_the_first_list_and_the_watch_is_told_to_be_gone(
    namespace: Namespace, client: KubernetesClient
) -> None:
    told: list[tuple[str, str, bool]] = []
    body = {"apiVersion": meta.API_VERSION, "kind": "GenerationJob", "spec": {"prompt": "a fox"}}
    listed = [
        await client.generation_jobs.create(namespace.name, body | {"metadata": {"name": name}})
        for name in ("kept", "deleted")
    ]
    watch = watch_jobs(
        client, namespace.name, lambda job, gone: told.append((job.name, job.metadata.namespace, gone)), listed
    )
    await client.generation_jobs.delete(namespace.name, "deleted")
    watching = asyncio.create_task(watch.run())
    try:
        await asyncio.wait_for(watch.synced.wait(), 30)
    finally:
        watching.cancel()
    assert sorted(told) == [("deleted", namespace.name, True), ("kept", namespace.name, False)]


async def test_a_job_that_cannot_be_taken_in_does_not_end_the_watch(
    namespace: Namespace, client: KubernetesClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = NamespaceState.update_job

    def update_job(state: NamespaceState, job: GenerationJob) -> None:
        if job.name == "bad":
            raise OverflowError("date value out of range")
        update(state, job)

    # A defect is planted, as no job that the API server takes is known to have this effect.
    monkeypatch.setattr(NamespaceState, "update_job", update_job)
    store = Store(lambda _: "", dt.timedelta())
    watch = watch_jobs(client, namespace.name, store.observe_job)
    watching = asyncio.create_task(watch.run())
    body = {"apiVersion": meta.API_VERSION, "kind": "GenerationJob", "spec": {"prompt": "a fox"}}
    try:
        await asyncio.wait_for(watch.synced.wait(), 30)
        for name in ("bad", "good"):
            await client.generation_jobs.create(namespace.name, body | {"metadata": {"name": name}})

        async def good() -> bool:
            return [job.name for job in store.unfinished_jobs(namespace.name)] == ["good"]

        await eventually("the good one to be told", good)
        assert [failed.item.name for failed in store.take_changes().errors] == ["bad"]
        assert not watching.done()
    finally:
        watching.cancel()

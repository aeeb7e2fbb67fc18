"""Runs operators in the test's own process, and objects for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from prometheus_client import REGISTRY

from kubediffusion.local.testing import Namespace, eventually
from kubediffusion.operator.composition import Operator, compose
from kubediffusion.operator.manifests import WorkerDefaults
from kubediffusion.operator.settings import Settings
from kubediffusion.resources.apiserver.client import KubernetesClient
from kubediffusion.resources.apiserver.errors import KubernetesError

DEFAULTS = WorkerDefaults(image="none", service_account="default", port=8080, s3_secret="none", log_level="INFO")
MODEL: dict[str, Any] = {
    "apiVersion": "kubediffusion.io/v1alpha1",
    "kind": "DiffusionModel",
    "metadata": {"name": "emoji", "annotations": {"kubediffusion.io/is-default": "true"}},
    "spec": {
        "source": {"path": "/models/emoji"},
        "workers": {
            "minReplicas": 1,
            # They find no node: they are starting for ever.
            "nodeSelector": {"nowhere": "true"},
            # A namespace that is deleted while it has Pods is looked at again after half of the longest grace period.
            "terminationGracePeriodSeconds": 1,
        },
    },
}

JOB = {
    "apiVersion": "kubediffusion.io/v1alpha1",
    "kind": "GenerationJob",
    "metadata": {"generateName": "job-"},
    "spec": {"prompt": "a fox"},
}


@asynccontextmanager
async def without_watches(
    namespace: Namespace, client: KubernetesClient, *others: Namespace, **more_settings: Any
) -> AsyncIterator[Operator]:
    """Run an operator, of one namespace or several, that is told of nothing: what it knows, it has listed."""
    settings = Settings(
        namespaces=",".join(each.name for each in (namespace, *others)),
        resync_seconds=0.3,
        worker_image=DEFAULTS.image,
        worker_service_account=DEFAULTS.service_account,
        s3_secret=DEFAULTS.s3_secret,
        concurrent_requests=4,
        **more_settings,
    )
    operator = compose(client, settings, None, "test")
    await eventually("the first list", lambda: listed(operator))
    task = asyncio.create_task(operator.run())
    try:
        yield operator
        assert not task.done()
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def listed(operator: Operator) -> bool:
    try:
        await operator.resync.list_all()
    except KubernetesError as error:
        # The storage of a kind that was just defined is being set up.
        if not error.transient:
            raise
        return False
    return True


async def workers_pod(namespace: Namespace) -> str:
    async def found() -> str:
        pods = await asyncio.to_thread(namespace.list, "pod", "kubediffusion.io/model=emoji")
        return str(pods[0]["metadata"]["name"]) if pods else ""

    return await eventually("the worker's Pod", found)


async def unscheduled_pod(namespace: Namespace) -> str:
    """Wait until the scheduler has said that no node takes the worker's Pod, which it does once; return its name."""
    pod = await workers_pod(namespace)

    async def told() -> bool:
        status = await asyncio.to_thread(namespace.pod_status, pod)
        return any(condition["type"] == "PodScheduled" for condition in status.get("conditions", ()))

    await eventually("the scheduler to have seen the Pod", told)
    return pod


async def bindable_worker(namespace: Namespace, client: KubernetesClient) -> str:
    """Have the worker's Pod say that it is ready, as a node would, and return its name."""
    pod = await workers_pod(namespace)
    path = f"/api/v1/namespaces/{namespace.name}/pods/{pod}/status"
    ready = {"type": "Ready", "status": "True"}
    body = {"status": {"phase": "Running", "conditions": [ready]}}
    await client.request("PATCH", path, body=body, content_type="application/merge-patch+json")
    return pod


def error_count(kind: str) -> float:
    """Return how many errors the operators of this process have put on objects of a kind."""
    return REGISTRY.get_sample_value("kubediffusion_operator_errors_total", {"kind": kind}) or 0.0


async def has_pod(namespace: Namespace, model: str) -> bool:
    return bool(await asyncio.to_thread(namespace.list, "pod", f"kubediffusion.io/model={model}"))


async def events_of(namespace: Namespace, name: str) -> set[tuple[str, str]]:
    events = await asyncio.to_thread(namespace.list, "event.events.k8s.io")
    return {(e["type"], e["reason"]) for e in events if e["regarding"]["name"] == name}

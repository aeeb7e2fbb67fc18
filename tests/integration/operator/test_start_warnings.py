"""A worker that does not start is told in the words of whoever refused it, within ten seconds."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from integration.operator.operators import DEFAULTS, JOB, MODEL, events_of, unscheduled_pod, without_watches
from kubediffusion.local.testing import Namespace, eventually
from kubediffusion.resources.apiserver.client import KubernetesClient
from kubediffusion.resources.conditions import find_condition

QUOTA = {
    "apiVersion": "v1",
    "kind": "ResourceQuota",
    "metadata": {"name": "none"},
    "spec": {"hard": {"pods": "0"}},
}


@pytest.mark.parametrize(
    ("workers", "quota", "words"),
    [
        ({"serviceAccountName": "nope"}, False, 'serviceaccount "nope" not found'),
        ({}, True, "exceeded quota"),
    ],
    ids=["no service account", "no Pods by quota"],
)
async def test_a_pod_that_is_not_created_is_told_on_the_job_and_the_model(
    namespace: Namespace, client: KubernetesClient, workers: dict[str, Any], quota: bool, words: str
) -> None:
    if quota:
        namespace.apply(QUOTA)
    spec = {**MODEL["spec"], "workers": {**MODEL["spec"]["workers"], **workers}}
    await client.diffusion_models.create(namespace.name, {**MODEL, "spec": spec})
    job = await client.generation_jobs.create(namespace.name, JOB)
    async with without_watches(namespace, client):

        async def told() -> bool:
            found = await client.generation_jobs.get(namespace.name, job.name)
            said = find_condition(found.status.conditions, "Scheduled")
            return said is not None and said.reason == "WorkerCannotStart" and words in said.message

        began = time.monotonic()
        await eventually("the job to say so", told, 30)
        assert time.monotonic() - began < 10

        async def model_told() -> bool:
            model = await client.diffusion_models.get(namespace.name, "emoji")
            said = find_condition(model.status.conditions, "Available")
            starts = [start.message for start in model.status.workers.starts]
            return said is not None and words in said.message and any(words in message for message in starts)

        await eventually("the model to say so", model_told, 10)
        if quota:
            namespace.kubectl("delete", "resourcequota", "none")

            async def created() -> bool:
                found = await client.generation_jobs.get(namespace.name, job.name)
                said = find_condition(found.status.conditions, "Scheduled")
                # The Pod finds no node: no other reason comes after that one, however late this looks.
                return said is not None and said.reason == "WorkerUnschedulable"

            await eventually("the Pod to be created and that to be told", created, 90)


async def test_a_reason_behind_hundreds_of_others_is_told(namespace: Namespace, client: KubernetesClient) -> None:
    """Others of the namespace may fail too, and have more Warning Events than one page of a list."""
    path = f"/api/v1/namespaces/{namespace.name}/events"
    for first in range(0, 600, 50):
        events = (
            {
                "metadata": {"name": f"a-{number:03}"},
                "type": "Warning",
                "reason": "FailedCreate",
                "involvedObject": {
                    "kind": "Job",
                    "namespace": namespace.name,
                    "name": "other",
                    "uid": f"other-{number}",
                },
            }
            for number in range(first, first + 50)
        )
        await asyncio.gather(*(client.request("POST", path, body=event) for event in events))
    workers = {**MODEL["spec"]["workers"], "serviceAccountName": "nope"}
    await client.diffusion_models.create(namespace.name, {**MODEL, "spec": {**MODEL["spec"], "workers": workers}})
    job = await client.generation_jobs.create(namespace.name, JOB)
    async with without_watches(namespace, client):

        async def told() -> bool:
            found = await client.generation_jobs.get(namespace.name, job.name)
            said = find_condition(found.status.conditions, "Scheduled")
            return said is not None and 'serviceaccount "nope" not found' in said.message

        await eventually("the job to say so", told, 30)


async def test_what_stands_in_the_way_next_is_told_on_a_job_that_waits_already(
    namespace: Namespace, client: KubernetesClient
) -> None:
    namespace.apply(QUOTA)
    # A node takes the Pod, and lacks a Secret for its container.
    spec = {**MODEL["spec"], "workers": {"minReplicas": 1, "terminationGracePeriodSeconds": 1}}
    await client.diffusion_models.create(namespace.name, {**MODEL, "spec": spec})
    job = await client.generation_jobs.create(namespace.name, JOB)
    async with without_watches(namespace, client):

        async def told(words: str) -> bool:
            found = await client.generation_jobs.get(namespace.name, job.name)
            said = find_condition(found.status.conditions, "Scheduled")
            return said is not None and said.reason == "WorkerCannotStart" and words in said.message

        await eventually("the job to name the quota", lambda: told("exceeded quota"), 30)
        namespace.kubectl("delete", "resourcequota", "none")
        await eventually("the job to name the Secret", lambda: told(f'ecret "{DEFAULTS.s3_secret}"'), 90)


async def test_a_worker_that_never_starts_is_replaced(namespace: Namespace, client: KubernetesClient) -> None:
    workers = {**MODEL["spec"]["workers"], "startDeadlineSeconds": 10}
    await client.diffusion_models.create(namespace.name, {**MODEL, "spec": {**MODEL["spec"], "workers": workers}})
    async with without_watches(namespace, client):
        pod = await unscheduled_pod(namespace)
        # A node has taken it, and its container hangs.
        running = {"type": "PodScheduled", "status": "True"}
        path = f"/api/v1/namespaces/{namespace.name}/pods/{pod}/status"
        body = {"status": {"phase": "Running", "conditions": [running]}}
        await client.request("PATCH", path, body=body, content_type="application/merge-patch+json")

        async def replaced() -> bool:
            pods = await asyncio.to_thread(namespace.list, "pod", "kubediffusion.io/model=emoji")
            return bool(pods) and all(found["metadata"]["name"] != pod for found in pods)

        await eventually("another worker's Pod", replaced, 60)
        assert ("Warning", "WorkerFailed") in await events_of(namespace, "emoji")

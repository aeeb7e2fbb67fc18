"""One ``batch/v1`` Job a request, as a simple operator would have it: each with a Pod of its own that ends at once.

Two kinds of node: the process node, which starts a process for each Pod, and an instant one, which only says that the
Pod has succeeded. With the second, what is left is what Kubernetes itself does for a Job.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict
from typing import Any

from kubediffusion.benchmarks import apiserver
from kubediffusion.benchmarks.site import Site, gather, until
from kubediffusion.benchmarks.usage import Meter
from kubediffusion.local.cluster import NODE_NAME, LocalCluster
from kubediffusion.local.testing import Namespace
from kubediffusion.resources.apiserver.resource import MERGE_PATCH
from kubediffusion.resources.schema import format_time

NAMESPACE = "benchmark-jobs"
INSTANT = "instant"
LIFTED = ("--kube-api-qps=1000", "--kube-api-burst=2000")
CLIENTS = 32
POLL_SECONDS = 0.2
WATCH_SECONDS = 3600.0


async def run(site: Site, jobs: int) -> list[dict[str, Any]]:
    """Measure both nodes, with the controller manager's default client limits and with the limits lifted.

    Returns:
        For each: node, limits, jobs, seconds, requests (to the API server, a Job), processes (cpu seconds of each).
    """
    namespace = Namespace(site.cluster, NAMESPACE)
    namespace.create()

    async def both(limits: str) -> list[dict[str, Any]]:
        nodes = {"process": NODE_NAME, INSTANT: INSTANT}
        return [{"node": kind, "limits": limits, **await burst(site, node, jobs)} for kind, node in nodes.items()]

    try:
        async with instant_node(site):
            found = await both("default")
            with lifted(site.cluster):
                return found + await both("lifted")
    finally:
        namespace.delete()


async def burst(site: Site, node: str, jobs: int) -> dict[str, Any]:
    """Create Jobs for a node as fast as the API server takes them, and wait until all are complete."""
    path = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs"
    pods = f"/api/v1/namespaces/{NAMESPACE}/pods"
    pids, requests = site.pids(), apiserver.requests(site.cluster)
    meter = Meter(pids)
    await gather((site.kubernetes.request("POST", path, body=manifest(n, node)) for n in range(jobs)), CLIENTS)

    async def done() -> bool:
        found = await site.kubernetes.request("GET", path, query={"resourceVersion": "0"})
        return sum("completionTime" in job["status"] for job in found["items"]) == jobs

    await until(f"{jobs} complete Jobs", done, POLL_SECONDS)
    seconds, used = meter.read()
    made = apiserver.requests(site.cluster) - requests
    await site.kubernetes.request("DELETE", path, query={"propagationPolicy": "Background"})

    async def gone() -> bool:
        return not (await site.kubernetes.request("GET", pods, query={"limit": 1}))["items"]

    await until("no Pod is left", gone, POLL_SECONDS)
    await site.quiet()
    return {
        "jobs": jobs,
        "seconds": seconds,
        "requests": sum(made.values()) / jobs,
        "processes": {name: asdict(usage) for name, usage in used.items()},
    }


def manifest(number: int, node: str) -> dict[str, Any]:
    """Return the manifest of a Job whose Pod ends at once, on a node."""
    pod = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "nodeSelector": {"kubernetes.io/hostname": node},
        "containers": [{"name": "work", "image": "none", "command": ["/bin/true"]}],
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": f"request-{number}"},
        "spec": {"backoffLimit": 0, "template": {"spec": pod}},
    }


@contextmanager
def lifted(cluster: LocalCluster) -> Iterator[None]:
    """Run the controller manager without its client's limits for as long as the block runs."""
    process = cluster.control_plane.controller_manager
    program = process.program

    def restart(arguments: tuple[str, ...]) -> None:
        process.stop()
        process.program = dataclasses.replace(program, command=[*program.command, *arguments])
        process.start()
        process.wait_ready()

    restart(LIFTED)
    try:
        yield
    finally:
        restart(())


@asynccontextmanager
async def instant_node(site: Site) -> AsyncIterator[None]:
    """Have a node whose Pods succeed at once, without a process, for as long as the block runs."""
    kubernetes, path = site.kubernetes, f"/api/v1/nodes/{INSTANT}"
    label = {"kubernetes.io/hostname": INSTANT}
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": INSTANT, "labels": label}}
    await kubernetes.request("POST", "/api/v1/nodes", body=node)
    try:
        async with asyncio.TaskGroup() as tasks:
            working = [tasks.create_task(_stay_ready(site)), tasks.create_task(_succeed(site))]
            try:
                yield
            finally:
                for task in working:
                    task.cancel()
    finally:
        await kubernetes.request("DELETE", path)


async def _stay_ready(site: Site) -> None:
    capacity = {"cpu": "1000", "memory": "1Ti", "pods": "1000"}
    while True:
        now = format_time(dt.datetime.now(dt.UTC)).split(".")[0] + "Z"
        ready = {"type": "Ready", "status": "True", "reason": "Instant", "lastHeartbeatTime": now}
        status = {"capacity": capacity, "allocatable": capacity, "conditions": [ready]}
        path = f"/api/v1/nodes/{INSTANT}/status"
        await site.kubernetes.request("PATCH", path, body={"status": status}, content_type=MERGE_PATCH)
        # As often as kubelet, whose heartbeat this is.
        await asyncio.sleep(10)


async def _succeed(site: Site) -> None:
    pods = f"/api/v1/namespaces/{NAMESPACE}/pods"
    query: dict[str, str | int] = {"watch": "true", "fieldSelector": f"spec.nodeName={INSTANT},status.phase=Pending"}
    writes: set[asyncio.Task[Any]] = set()
    async for event in site.kubernetes.stream(pods, query, WATCH_SECONDS):
        if event["type"] == "ADDED":
            path = f"{pods}/{event['object']['metadata']['name']}/status"
            write = site.kubernetes.request("PATCH", path, body=_succeeded(), content_type=MERGE_PATCH)
            task = asyncio.create_task(write)
            writes.add(task)
            task.add_done_callback(writes.discard)


def _succeeded() -> dict[str, Any]:
    now = format_time(dt.datetime.now(dt.UTC)).split(".")[0] + "Z"
    ended = {"exitCode": 0, "reason": "Completed", "startedAt": now, "finishedAt": now}
    container = {"name": "work", "image": "none", "imageID": "", "ready": False, "restartCount": 0}
    container["state"] = {"terminated": ended}
    return {"status": {"phase": "Succeeded", "startTime": now, "containerStatuses": [container]}}

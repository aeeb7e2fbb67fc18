"""KubeDiffusion in a local cluster with a stand-in for its engine, and the words that the suites are told in."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from kubediffusion.benchmarks import standin
from kubediffusion.benchmarks.loopback import Client
from kubediffusion.benchmarks.usage import Meter
from kubediffusion.local import installation
from kubediffusion.local.cluster import LocalCluster, Manifest
from kubediffusion.local.testing import Namespace, connect, is_true, wait_for
from kubediffusion.resources.apiserver.client import KubernetesClient
from kubediffusion.resources.apiserver.errors import KubernetesError

NAMESPACE = "benchmark"
MODEL = "stand-in"
BATCH = 32
START_SECONDS = 120.0
QUIET_CORES = 0.2
QUIET_SECONDS = 180.0
CLEAR_SECONDS = 0.2
LONG_SECONDS = 900.0
REQUEST = {"prompt": "A photo of an astronaut riding a horse on the moon", "num_inference_steps": 25}
UNLIMITED = {"KUBEDIFFUSION_RATE_LIMIT": "", "KUBEDIFFUSION_MAX_UNFINISHED_JOBS": "0"}
"""Settings that lift the limits of a client: one client creates all jobs here."""
API_ENVIRONMENT = {**UNLIMITED, "KUBEDIFFUSION_DEFAULT_TTL_SECONDS": "86400"}
"""The time to live is the chart's. Where the API writes none into a job, the operator does so once it has finished."""


class BenchmarkError(Exception):
    """What was to be measured did not happen."""


@dataclass(frozen=True)
class Site:
    """An installation with one warm worker.

    Attributes:
        namespace: Where.
        kubernetes: A client with the rights of an administrator.
        api: A client of its HTTP API.
    """

    namespace: Namespace
    kubernetes: KubernetesClient
    api: Client

    @property
    def cluster(self) -> LocalCluster:
        """The cluster that it is in."""
        return self.namespace.cluster

    @property
    def collection(self) -> str:
        """The path of its GenerationJobs."""
        return self.kubernetes.generation_jobs.path(self.namespace.name)

    def pids(self) -> dict[str, int]:
        """Return the process id of every process by name, this one included (``benchmark``)."""
        parts = {"operator": installation.OPERATOR, "API": installation.API, "worker": MODEL}
        ours = {name: self.namespace.pid(ready_pod(self.namespace, prefix)) for name, prefix in parts.items()}
        rest = {process.name: process.pid for process in self.cluster.processes}
        return {**ours, **rest, "benchmark": os.getpid()}

    async def quiet(self) -> None:
        """Wait until the cluster has done what it had to do.

        Raises:
            BenchmarkError: It does not come to rest.
        """
        deadline = time.monotonic() + QUIET_SECONDS
        pids = self.pids()
        while True:
            meter = Meter(pids)
            # The time that is measured.
            await asyncio.sleep(1)
            seconds, used = meter.read()
            if sum(one.cpu for one in used.values()) / seconds < QUIET_CORES:
                return
            if time.monotonic() > deadline:
                raise BenchmarkError(f"the cluster is not quiet after {QUIET_SECONDS:g} s: {used}")

    async def submit(self, body: dict[str, Any] | None = None) -> str:
        """Send a request over HTTP, and return the task's id."""
        status, answer = await self.api.request("POST", "/generate", body or REQUEST)
        if status != 202:
            raise BenchmarkError(f"POST /generate: {status} {answer.decode(errors='replace')}")
        task: str = json.loads(answer)["task_id"]
        return task

    async def result(self, task: str) -> dict[str, Any]:
        """Read a task's state over HTTP."""
        status, answer = await self.api.request("GET", f"/results/{task}")
        if status != 200:
            raise BenchmarkError(f"GET /results/{task}: {status} {answer.decode(errors='replace')}")
        found: dict[str, Any] = json.loads(answer)
        return found

    async def count(self) -> tuple[int, int]:
        """Return the number of jobs, and how many have not ended, as the API's metrics count them."""
        _, answer = await self.api.request("GET", "/metrics")
        values = dict(line.rsplit(" ", 1) for line in answer.decode().splitlines() if not line.startswith("#"))
        prefix = "kubediffusion_api"
        return int(float(values[f"{prefix}_cached_jobs"])), int(float(values[f"{prefix}_unfinished_jobs"]))

    async def finished(self, jobs: int) -> None:
        """Wait until there are ``jobs`` jobs and all have ended."""

        async def done() -> bool:
            return await self.count() == (jobs, 0)

        # At 100 jobs a second this is within 2 % of the time; looking more often would cost the API too much.
        await until(f"{jobs} finished jobs", done, pause=jobs / 5_000)

    async def fill(self, jobs: int) -> None:
        """Add finished jobs until there are ``jobs`` of them."""
        present, _ = await self.count()
        await gather((self.submit() for _ in range(jobs - present)), 64)
        await self.finished(max(jobs, present))

    async def clear(self) -> None:
        """Delete all jobs, and wait until the cluster is quiet again."""

        async def gone() -> bool:
            if (await self.count())[0] == 0:
                return True
            try:
                await self.kubernetes.request("DELETE", self.collection, timeout=LONG_SECONDS)
            except KubernetesError as error:
                # The API server gives a request a minute, and thousands of jobs may take longer.
                if not error.transient:
                    raise
            return False

        await until("no job is left", gone, CLEAR_SECONDS)
        await self.quiet()

    async def jobs(self) -> list[dict[str, Any]]:
        """Read all jobs, as the API server has them."""
        items: list[dict[str, Any]] = []
        query: dict[str, str | int] = {"limit": 500}
        while True:
            page = await self.kubernetes.request("GET", self.collection, query=query)
            items += page["items"]
            if not (token := page["metadata"].get("continue")):
                return items
            query["continue"] = token

    async def check(self, jobs: int) -> None:
        """Check that ``jobs`` jobs are there and that each succeeded with its image: nothing else was measured.

        Raises:
            BenchmarkError: One did not.
        """
        found = await self.jobs()
        bad = [job for job in found if job["status"]["phase"] != "Succeeded" or len(job["status"]["images"]) != 1]
        if len(found) != jobs or bad:
            raise BenchmarkError(f"{len(found)} jobs of {jobs}, {len(bad)} without success: {bad[:1]}")


def parts(namespace: str) -> tuple[Manifest, ...]:
    """Return the manifests of what is measured: operator, API, and a model whose worker's engine takes no time."""
    return (
        installation.operator(namespace),
        installation.api(namespace, environment=API_ENVIRONMENT),
        standin.model(MODEL, seconds=0, minReplicas=1, maxReplicas=1, maxBatchSize=BATCH),
    )


@asynccontextmanager
async def installed(cluster: LocalCluster) -> AsyncIterator[Site]:
    """Install KubeDiffusion in a namespace of a cluster, with one warm worker, for as long as the block runs."""
    namespace = Namespace(cluster, NAMESPACE)
    namespace.create()
    try:
        namespace.install(*parts(namespace.name))
        for prefix in (installation.OPERATOR, MODEL):
            ready_pod(namespace, prefix)
        async with await connect(cluster.admin) as kubernetes, api_client(namespace) as api:
            site = Site(namespace, kubernetes, api)
            await site.fill(1)  # every connection and import of the path is made
            await site.clear()
            yield site
    finally:
        namespace.delete()


def api_client(namespace: Namespace) -> Client:
    """Wait for a namespace's API, and return a client of it."""
    status = namespace.pod_status(ready_pod(namespace, installation.API))
    return Client(status["podIP"], installation.API_PORT)


def ready_pod(namespace: Namespace, prefix: str) -> str:
    """Wait for the ready Pod whose name has a prefix, and return its name."""

    def ready() -> str | None:
        for pod in namespace.list("pods"):
            metadata = pod["metadata"]
            if metadata["name"].startswith(f"{prefix}-") and is_true(pod["status"], "Ready"):
                return None if "deletionTimestamp" in metadata else str(metadata["name"])
        return None

    return wait_for(f"a ready Pod {prefix}…", ready, START_SECONDS)


async def until(what: str, condition: Callable[[], Awaitable[bool]], pause: float) -> None:
    """Wait until a condition holds, checking it again after each pause.

    Raises:
        BenchmarkError: It did not hold within ``LONG_SECONDS``.
    """
    deadline = time.monotonic() + LONG_SECONDS
    while not await condition():
        if time.monotonic() > deadline:
            raise BenchmarkError(f"{what}: not within {LONG_SECONDS:g} s")
        await asyncio.sleep(pause)


async def gather(works: Iterable[Awaitable[object]], at_once: int) -> None:
    """Await all of ``works``, at most ``at_once`` at the same time."""
    remaining = iter(works)

    async def take() -> None:
        for work in remaining:
            await work

    async with asyncio.TaskGroup() as tasks:
        for _ in range(at_once):
            tasks.create_task(take())

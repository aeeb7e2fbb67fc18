"""Clients that poll, and clients that submit: against a plain server, in turns, on the same machine."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubediffusion.benchmarks import apiserver, figures, load, standin
from kubediffusion.benchmarks.load import Load
from kubediffusion.benchmarks.loopback import Client
from kubediffusion.benchmarks.site import MODEL, REQUEST, UNLIMITED, BenchmarkError, Site, api_client, gather, ready_pod
from kubediffusion.benchmarks.sizes import Sizes
from kubediffusion.local import installation
from kubediffusion.local.cluster import LocalCluster
from kubediffusion.local.processes import Process, Program, answers
from kubediffusion.local.reservations import LOOPBACK, Reservations
from kubediffusion.local.testing import Namespace

NAMESPACE = "benchmark-polling"
SUBMITTERS = 32
ENDLESS = 3600.0
RESOURCE = "generationjobs"


@dataclass(frozen=True)
class Server:
    """A server under load.

    Attributes:
        client: A client of it.
        pid: Its process.
    """

    client: Client
    pid: int

    async def tasks(self, count: int) -> list[str]:
        """Submit tasks that will stay pending, and return the paths of their results."""
        paths: list[str] = []

        async def submit() -> None:
            status, answer = await self.client.request("POST", "/generate", REQUEST)
            if status != 202:
                raise BenchmarkError(f"POST /generate: {status} {answer.decode(errors='replace')}")
            paths.append(f"/results/{json.loads(answer)['task_id']}")

        await gather((submit() for _ in range(count)), SUBMITTERS)
        return paths

    async def polls(self, paths: list[str], sizes: Sizes) -> dict[str, float]:
        """Let clients poll, each its own task."""
        return await self._offer(sizes, "GET", paths, None, len(paths), 200)

    async def submits(self, sizes: Sizes) -> dict[str, float]:
        """Let clients submit."""
        return await self._offer(sizes, "POST", ["/generate"], REQUEST, SUBMITTERS, 202)

    async def _offer(
        self, sizes: Sizes, method: str, paths: list[str], body: Any, connections: int, expected: int
    ) -> dict[str, float]:
        offered = Load(
            self.client.host, self.client.port, method, paths, body, connections, sizes.load_seconds, expected
        )
        found = await load.offer(offered, self.pid)
        if found["wrong"]:
            raise BenchmarkError(f"{method} {paths[0]}: {found['wrong']:.0f} wrong answers")
        return found


async def run(site: Site, sizes: Sizes) -> dict[str, Any]:
    """Measure polls of pending tasks and submissions, ours and a plain server's in turns.

    Returns:
        clients; polls and submits (each of ours and theirs, with the median of their ratios); requests (to the API
        server about jobs, during all polls).
    """
    async with ours(site.cluster) as mine, plain() as theirs:
        my_paths, their_paths = await mine.tasks(sizes.pollers), await theirs.tasks(sizes.pollers)
        await site.quiet()
        polls, made = [], 0
        for _ in range(sizes.runs):
            before = apiserver.requests(site.cluster)
            own = await mine.polls(my_paths, sizes)
            made += apiserver.of(apiserver.requests(site.cluster) - before, RESOURCE)
            polls.append(_pair(own, await theirs.polls(their_paths, sizes)))
        submits = [_pair(await mine.submits(sizes), await theirs.submits(sizes)) for _ in range(sizes.runs)]
    return {
        "runs": sizes.runs,
        "clients": sizes.pollers,
        "submitters": SUBMITTERS,
        "polls": figures.median(polls),
        "submits": figures.median(submits),
        "requests": made,
    }


def _pair(ours: dict[str, float], theirs: dict[str, float]) -> dict[str, Any]:
    return {
        "ours": ours,
        "theirs": theirs,
        "rate ratio": ours["rate"] / theirs["rate"],
        "cpu ratio": theirs["cpu"] / ours["cpu"],
    }


@asynccontextmanager
async def ours(cluster: LocalCluster) -> AsyncIterator[Server]:
    """Run the API in a namespace without an operator: its jobs stay pending."""
    namespace = Namespace(cluster, NAMESPACE)
    namespace.create()
    try:
        api = installation.api(namespace.name, environment=UNLIMITED)
        namespace.install(api, standin.model(MODEL, seconds=0))
        async with api_client(namespace) as client:
            yield Server(client, namespace.pid(ready_pod(namespace, installation.API)))
    finally:
        namespace.delete()


@asynccontextmanager
async def plain() -> AsyncIterator[Server]:
    """Run the plain server with an engine that does not end: its tasks stay pending."""
    with Reservations() as reservations:
        port = reservations.port()
        command = [sys.executable, "-m", "kubediffusion.benchmarks.plain_server", str(port), str(ENDLESS)]
        healthy = answers(f"http://{LOOPBACK}:{port}/health")
        process = Process(Program("plain server", command, Path(os.devnull), healthy, dict(os.environ)))
        try:
            process.start()
            process.wait_ready()
            async with Client(LOOPBACK, port) as client:
                yield Server(client, process.pid)
        finally:
            process.kill()

"""A worker's readiness follows its contact with the API server, and what it missed it learns afterwards."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from integration.api.faults import FaultyServer, faulty_server
from integration.worker.bench_of_workers import Bench
from kubediffusion.local.testing import connect, eventually
from kubediffusion.resources.apiserver.reflector import Reflector
from kubediffusion.resources.generation_job import GenerationJob
from kubediffusion.worker.contact import ApiServerContact
from kubediffusion.worker.health import Health

POD = "cut-off"


def break_off(server: FaultyServer, how: str) -> None:
    """Make the API server unheard: it does not answer, or it refuses whatever it is asked."""
    if how == "silent":
        server.faults.away.set()
    else:
        server.faults.echo = 403


def mend(server: FaultyServer) -> None:
    server.faults.away.clear()
    server.faults.echo = 0


@pytest.mark.parametrize(
    ("how", "words"),
    [("silent", "the API server does not answer"), ("refusing", "the API server does not let the worker watch")],
)
async def test_a_worker_that_is_cut_off_is_not_ready(bench: Bench, tmp_path: Path, how: str, words: str) -> None:
    seen: dict[str, str | None] = {}

    def observe(job: GenerationJob, deleted: bool) -> None:
        seen[job.name] = None if deleted else job.status.worker

    health = Health(60.0)
    health.mark_ready()
    with faulty_server(bench.namespace.cluster.admin, tmp_path) as server:
        async with await connect(server.kubeconfig) as client:
            watch = Reflector(
                client.generation_jobs, bench.namespace.name, observe, field_selector=f"status.worker={POD}-{how}"
            )
            contact = asyncio.create_task(ApiServerContact(client, watch, health, 0.2, 1.0).run())

            async def is_cut_off() -> bool:
                return words in (health.readiness_failure() or "")

            async def is_ready() -> bool:
                return health.readiness_failure() is None

            async def knows(name: str) -> bool:
                return name in seen

            await bench.run(f"before-{how}", f"{POD}-{how}")
            await eventually("the job to be seen", lambda: knows(f"before-{how}"))
            assert await is_ready()
            break_off(server, how)
            # Ends the watch that is open.
            await bench.run(f"meanwhile-{how}", f"{POD}-{how}")
            await eventually("the worker to be unready", is_cut_off)
            assert not contact.done()
            await bench.run(f"missed-{how}", f"{POD}-{how}")
            mend(server)
            await eventually("the worker to be ready again", is_ready)
            # Not until it knows what it has.
            assert {f"before-{how}", f"meanwhile-{how}", f"missed-{how}"} <= seen.keys()
            contact.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await contact

"""No image stays in storage of a deleted job whose images go with it, however late it was stored."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from prometheus_client import CollectorRegistry

from integration.worker.bench_of_workers import Bench
from integration.worker.standin_worker import ObedientEngine
from kubediffusion.local import installation
from kubediffusion.local.testing import eventually
from kubediffusion.resources import meta
from kubediffusion.resources.generation_job import GenerationJob
from kubediffusion.resources.image_keys import image_key
from kubediffusion.resources.storage import ImageStorage, StorageError
from kubediffusion.resources.testing import present
from kubediffusion.worker.assignments import Assignment, Assignments
from kubediffusion.worker.context import WorkerContext
from kubediffusion.worker.engine import ImageOutput
from kubediffusion.worker.finisher import Finisher
from kubediffusion.worker.health import Health
from kubediffusion.worker.metrics import Metrics
from kubediffusion.worker.previews import Previews
from kubediffusion.worker.progress_reporter import ProgressReporter
from kubediffusion.worker.reporter import Reporter
from kubediffusion.worker.uploads import Uploader

WORKER = "worker-a"
SIDE = 8


class SlowStorage(ImageStorage):
    """Real storage, whose puts hang until they are let through."""

    def __init__(self) -> None:
        super().__init__(installation.BUCKET)
        self.hanging = threading.Event()
        self.through = threading.Event()

    def put(self, key: str, data: bytes, attempt: int) -> str:
        self.hanging.set()
        assert self.through.wait(60)
        return super().put(key, data, attempt)

    def holds(self, key: str) -> bool:
        try:
            self.get(self.uri(key))
        except StorageError as error:
            if not error.missing:
                raise
            return False
        return True


@dataclass
class Desk:
    """The part of a worker that takes in images, with one job of which the engine has made the only one."""

    bench: Bench
    storage: SlowStorage
    assignments: Assignments
    finisher: Finisher

    async def image_of(self, name: str) -> tuple[Assignment, str]:
        """Have an image of a new job on its way to storage."""
        job = await self.bench.submit(name, deletionPolicy="Delete")
        await self.bench.patch(name, {"metadata": {"finalizers": [meta.IMAGES_FINALIZER]}})
        bound = await self.bench.bind(job, WORKER)
        self.assignments.observe(bound, False)
        assignment = present(self.assignments.get(bound.uid))
        assignment.take_requests(1, present(bound.status.queued_at), 0.0)
        self.finisher.finish_image(assignment, 0, ImageOutput(SIDE, SIDE, bytes(SIDE * SIDE * 3), "DDIMScheduler"))

        async def hanging() -> bool:
            return self.storage.hanging.is_set()

        await eventually("the upload to hang", hanging)
        return assignment, image_key("late", self.bench.namespace.name, bound.uid, 0)

    async def delete(self, name: str, key: str) -> GenerationJob:
        """Delete a job as a user and the operator do: cancelled, its images deleted, and let go."""
        await self.bench.client.generation_jobs.delete(self.bench.namespace.name, name)
        await self.bench.patch(name, {"status": {"phase": "Cancelled"}}, "status")
        self.storage.delete(self.storage.uri(key))
        return await self.bench.patch(name, {"metadata": {"finalizers": []}})


@pytest.fixture
def desk(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    for name, value in bench.namespace.cluster.store.settings.items():
        monkeypatch.setenv(name, value)
    storage, assignments = SlowStorage(), Assignments(WORKER)
    reporter = Reporter(bench.client, bench.namespace.name, 60.0)
    with ThreadPoolExecutor(2) as threads:
        context = WorkerContext(
            engine=ObedientEngine(),
            engine_thread=threads,
            assignments=assignments,
            reporter=reporter,
            storage=storage,
            prefix="late",
            refused_seconds=60.0,
            max_batch_size=1,
            max_buffered_bytes=1,
            health=Health(60.0),
            metrics=Metrics(CollectorRegistry()),
            work_available=asyncio.Event(),
        )
        progress = ProgressReporter(assignments, reporter, lambda assignment: finisher.abandon(assignment))
        previews = Previews(storage, "late", threads)
        finisher = Finisher(context, progress, previews, Uploader(storage, threads, 60.0), threads)
        yield Desk(bench, storage, assignments, finisher)
        storage.through.set()
    storage.close()


async def test_an_upload_that_hung_until_its_job_was_gone_leaves_nothing(desk: Desk) -> None:
    _, key = await desk.image_of("hung")
    gone = await desk.delete("hung", key)
    desk.finisher.release(present(desk.assignments.observe(gone, True)))
    desk.storage.through.set()
    await asyncio.wait_for(desk.finisher.drain(), 30)
    assert not desk.storage.holds(key)


async def test_an_image_is_taken_back_where_only_the_report_tells_that_the_job_is_gone(desk: Desk) -> None:
    assignment, key = await desk.image_of("untold")
    await desk.delete("untold", key)
    desk.storage.through.set()
    await asyncio.wait_for(desk.finisher.drain(), 30)
    assert assignment.images
    assert not desk.storage.holds(key)


async def test_an_image_stays_while_its_job_does(desk: Desk) -> None:
    """Taken away and bound elsewhere: what is stored goes with the job, whenever that is."""
    _, key = await desk.image_of("moved")
    rebound = await desk.bench.bind(await desk.bench.get("moved"), "somebody-else")
    desk.finisher.release(present(desk.assignments.observe(rebound, True)))
    desk.storage.through.set()
    await asyncio.wait_for(desk.finisher.drain(), 30)
    assert desk.storage.holds(key)
    await desk.delete("moved", key)
    assert not desk.storage.holds(key)

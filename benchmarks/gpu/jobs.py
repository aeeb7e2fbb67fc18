"""The worker from a job that is bound to it to its image in S3, without a Kubernetes API server.

Runner, batches, engine, PNG with recipe, upload and storage are the worker's own; storage is a real S3 server on this
machine. What is left out is Kubernetes: jobs are put where the watch would put them, and status reports are built, then
dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import os
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from models import SCHEDULER, STEPS
from prometheus_client import CollectorRegistry

from kubediffusion.resources.generation_job import GenerationJob
from kubediffusion.resources.storage import ImageStorage
from kubediffusion.worker.assignments import Assignment, Assignments
from kubediffusion.worker.context import WorkerContext
from kubediffusion.worker.engine import (
    ClosedBatchMonitor,
    Engine,
    EngineInfo,
    ImageId,
    ImagePlan,
    ImageRequest,
    Monitor,
    Outcome,
    StepStats,
)
from kubediffusion.worker.engine.adapters import AdapterWeights
from kubediffusion.worker.engine.throughput import StepTimes
from kubediffusion.worker.health import Health
from kubediffusion.worker.metrics import Metrics
from kubediffusion.worker.reporter import Build, Delivery
from kubediffusion.worker.worker import UPLOADS, Worker

WORKER, BUCKET, PORT = "benchmark", "benchmark", 17070


@contextlib.contextmanager
def s3_server(program: Path, folder: Path, port: int = PORT) -> Iterator[None]:
    """Run an S3 server whose objects are files in a folder (versitygw), and point boto3 to it."""
    objects, metadata = folder / "objects", folder / "metadata"
    (objects / BUCKET).mkdir(parents=True)
    metadata.mkdir()
    keys = {"ROOT_ACCESS_KEY": "benchmark", "ROOT_SECRET_KEY": "benchmark-secret"}
    command = [program, f"--port=127.0.0.1:{port}", "--region=us-east-1", "--health=/health", "--keep-alive", "--quiet"]
    server = subprocess.Popen([*command, "posix", f"--sidecar={metadata}", objects], env={**os.environ, **keys})
    address = f"http://127.0.0.1:{port}"
    os.environ |= {
        "AWS_ACCESS_KEY_ID": keys["ROOT_ACCESS_KEY"],
        "AWS_SECRET_ACCESS_KEY": keys["ROOT_SECRET_KEY"],
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL_S3": address,
    }
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), urlopen(f"{address}/health") as answer:
                if answer.status == HTTPStatus.OK:
                    break
            time.sleep(0.1)
        else:
            raise RuntimeError("the S3 server does not start")
        yield
    finally:
        server.terminate()
        server.wait()


@dataclass
class Times:
    """Moments of a job, in seconds of the monotonic clock.

    Attributes:
        due: When it was there.
        encoded: When its PNG's bytes were.
        stored: When storage had confirmed them.
    """

    due: float
    encoded: float = 0.0
    stored: float = 0.0


@dataclass
class Reports:
    """Stands for the API server: reports are built and dropped."""

    on_end: Callable[[Assignment], None]
    failures: list[str] = field(default_factory=list)

    async def deliver(self, assignment: Assignment, build: Build, *, insist: bool = False) -> Delivery:
        """Take an outcome."""
        del insist
        status = build(assignment.job)
        if status.error is not None:
            self.failures.append(status.error.message)
        self.on_end(assignment)
        return Delivery.ACCEPTED

    async def try_once(self, assignment: Assignment, build: Build) -> Delivery:
        """Drop a report of progress."""
        build(assignment.job)
        return Delivery.ACCEPTED

    async def is_deleted(self, _assignment: Assignment) -> bool:
        """Return False: no job is deleted."""
        return False


class Storage(ImageStorage):
    """Storage that notes when an image comes to it."""

    def __init__(self, times: dict[str, Times]) -> None:
        super().__init__(BUCKET, UPLOADS)
        self._times = times

    def put(self, key: str, data: bytes, attempt: int) -> str:
        """Store a PNG."""
        self._times[key.split("/")[-2]].encoded = time.monotonic()
        return super().put(key, data, attempt)


class Bench:
    """One worker whose jobs come from here."""

    def __init__(self, assignments: Assignments, work: asyncio.Event, run: str) -> None:
        self.times: dict[str, Times] = {}
        self.reports = Reports(self._ended)
        self._assignments = assignments
        self._work = work
        self._run = run
        self._open: set[str] = set()
        self._news = asyncio.Event()

    def submit(self, steps: int = STEPS) -> None:
        """Bind a job to the worker, now."""
        number = len(self.times)
        job = _job(f"{self._run}-{number}", number, steps)
        self.times[job.uid] = Times(time.monotonic())
        self._open.add(job.uid)
        self._assignments.observe(job, gone=False)
        self._work.set()

    async def done(self) -> None:
        """Wait until every job has ended.

        Raises:
            RuntimeError: One failed.
        """
        while self._open:
            self._news.clear()
            await self._news.wait()
        if self.reports.failures:
            raise RuntimeError(f"{len(self.reports.failures)} jobs failed: {self.reports.failures[0]}")

    def _ended(self, assignment: Assignment) -> None:
        uid = assignment.binding.uid
        self.times[uid].stored = time.monotonic()
        self._open.discard(uid)
        self._news.set()


def _job(name: str, number: int, steps: int) -> GenerationJob:
    now = dt.datetime.now(dt.UTC)
    return GenerationJob.from_wire(
        {
            "metadata": {
                "name": name,
                "namespace": "benchmark",
                "uid": name,
                "resourceVersion": str(number + 1),
                "generation": 1,
                "creationTimestamp": now,
            },
            "spec": {"prompt": f"a picture of number {number}"},
            "status": {
                "phase": "Scheduled",
                "worker": WORKER,
                "attempt": 1,
                "queuedAt": now,
                "parameters": {
                    "model": "benchmark",
                    "numInferenceSteps": steps,
                    "guidanceScale": 7.5,
                    "seed": number,
                    "numImages": 1,
                    "scheduler": SCHEDULER,
                },
            },
        }
    )


@contextlib.asynccontextmanager
async def worker(engine: Engine, limit: int, run: str) -> AsyncIterator[Bench]:
    """Run a worker.

    Args:
        engine: Its engine.
        limit: The most images in a batch.
        run: What names of its jobs begin with.
    """
    work = asyncio.Event()
    assignments = Assignments(WORKER)
    bench = Bench(assignments, work, run)
    reporter: Any = bench.reports
    with ThreadPoolExecutor(1, thread_name_prefix="engine") as engine_thread:
        context = WorkerContext(
            engine=engine,
            engine_thread=engine_thread,
            assignments=assignments,
            reporter=reporter,
            storage=Storage(bench.times),
            prefix="",
            refused_seconds=60.0,
            max_batch_size=limit,
            max_buffered_bytes=256 * 2**20,
            health=Health(900.0),
            metrics=Metrics(CollectorRegistry()),
            work_available=work,
        )
        with Worker.open(context) as opened:
            running = asyncio.create_task(opened.run())
            try:
                yield bench
            finally:
                opened.stop()
                await running


class StaticBatches:
    """The same engine without its slots: an image that comes while a batch runs waits for the next one.

    Args:
        engine: The engine.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def info(self) -> EngineInfo:
        """What the engine is."""
        return self._engine.info

    def plan(self, request: ImageRequest) -> ImagePlan:
        """Return a plan by which images run with those of as many steps, and none joins."""
        plan = self._engine.plan(request)
        key: Hashable = (plan.key, request.sampling.steps)
        return replace(plan, key=key, joins=False)

    def read_adapter(self, file: Path) -> AdapterWeights:
        """Read an adapter as the engine does."""
        return self._engine.read_adapter(file)

    def prepare_while_idle(self, wake: Callable[[], None]) -> bool:
        """Let the engine prepare what it can."""
        return self._engine.prepare_while_idle(wake)

    def run(self, tasks: tuple[ImageRequest, ...], monitor: Monitor) -> None:
        """Make one batch, all of it at once."""
        preparation: Any = getattr(self._engine, "preparation", None)
        if preparation is None:
            self._engine.run(tasks, _Closed(monitor))
            return
        prepared = preparation.prepared
        times, prepared.times = prepared.times, StepTimes()
        prepared.times.note = lambda *_args, **_more: None
        try:
            self._engine.run(tasks, _Closed(monitor))
        finally:
            prepared.times = times


class _Closed(ClosedBatchMonitor):
    """A monitor by which no image joins a batch."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor

    def wanted(self, image_id: ImageId) -> bool:
        return self._monitor.wanted(image_id)

    def stepped(self, image_id: ImageId, step: int, total: int) -> None:
        self._monitor.stepped(image_id, step, total)

    def ended(self, image_id: ImageId, outcome: Outcome) -> None:
        self._monitor.ended(image_id, outcome)

    def priority(self, image_id: ImageId) -> int:
        return self._monitor.priority(image_id)

    def overdue(self, image_id: ImageId) -> bool:
        return self._monitor.overdue(image_id)

    def count_step(self, load: StepStats) -> None:
        self._monitor.count_step(load)

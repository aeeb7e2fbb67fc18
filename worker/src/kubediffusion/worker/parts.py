"""Joins the parts of a worker that carry an image from its job to storage: runner, finisher, announcer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from kubediffusion.resources.storage import ImageStorage
from kubediffusion.worker.announcer import Announcer
from kubediffusion.worker.assignments import Assignments
from kubediffusion.worker.cpus import usable_cpus
from kubediffusion.worker.engine import Engine
from kubediffusion.worker.finisher import Finisher
from kubediffusion.worker.health import Health
from kubediffusion.worker.metrics import Metrics
from kubediffusion.worker.reporter import Reporter
from kubediffusion.worker.runner import Limits, Runner
from kubediffusion.worker.uploads import Uploader

UPLOADS = 16
"""Uploads that may be under way at the same time."""


@dataclass(frozen=True)
class Parts:
    """The parts, joined.

    Attributes:
        runner: Runs the jobs' images in batches.
        finisher: Compresses and uploads what the runner made.
        announcer: Tells progress.
    """

    runner: Runner
    finisher: Finisher
    announcer: Announcer


@contextlib.contextmanager
def joined(
    *,
    engine: Engine,
    engine_thread: ThreadPoolExecutor,
    assignments: Assignments,
    reporter: Reporter,
    storage: ImageStorage,
    prefix: str,
    limits: Limits,
    health: Health,
    metrics: Metrics,
    work: asyncio.Event,
) -> Iterator[Parts]:
    """Join the parts around an engine; their threads end when they are left.

    Args:
        engine: Makes the images.
        engine_thread: The one thread that it is called in.
        assignments: The jobs of this worker.
        reporter: Writes their status.
        storage: Takes the images; closed at the end.
        prefix: Of the images' keys.
        limits: Of a batch, and of what waits to be uploaded.
        health: Told what the worker waits for.
        metrics: Counted in.
        work: Set when there may be something to do.
    """
    with contextlib.ExitStack() as stack:
        stack.callback(storage.close)
        uploads = stack.enter_context(ThreadPoolExecutor(UPLOADS, thread_name_prefix="upload"))
        encoders = stack.enter_context(ThreadPoolExecutor(usable_cpus(), thread_name_prefix="encode"))
        announcer = Announcer(assignments, reporter, lambda assignment: finisher.lost(assignment))
        finisher = Finisher(
            engine=engine.info,
            assignments=assignments,
            announcer=announcer,
            reporter=reporter,
            uploader=Uploader(storage, uploads),
            encoders=encoders,
            prefix=prefix,
            metrics=metrics,
            on_progress=work.set,
        )
        runner = Runner(
            engine=engine,
            engine_thread=engine_thread,
            assignments=assignments,
            finisher=finisher,
            announcer=announcer,
            limits=limits,
            health=health,
            metrics=metrics,
            work=work,
        )
        yield Parts(runner, finisher, announcer)

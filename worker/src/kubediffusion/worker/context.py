"""What the parts of one worker share: built once at start, passed whole."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from dataclasses import dataclass

from kubediffusion.resources.storage import ImageStorage
from kubediffusion.worker.assignments import Assignments
from kubediffusion.worker.engine import Engine
from kubediffusion.worker.health import Health
from kubediffusion.worker.metrics import Metrics
from kubediffusion.worker.reporter import Reporter


@dataclass(frozen=True)
class WorkerContext:
    """The collaborators and bounds of one worker.

    Attributes:
        engine: Makes the images.
        engine_thread: The one thread that the engine is called in.
        assignments: The jobs bound to this worker.
        reporter: Writes the jobs' status.
        storage: Takes the images.
        prefix: What the keys of images begin with.
        refused_seconds: How long an image that storage refuses is tried again.
        max_batch_size: The most images in a batch.
        max_buffered_bytes: Bytes of finished images that may wait for storage before the engine pauses.
        health: Answers the probes.
        metrics: What Prometheus reads.
        work_available: Set when there may be something to do.
    """

    engine: Engine
    engine_thread: Executor
    assignments: Assignments
    reporter: Reporter
    storage: ImageStorage
    prefix: str
    refused_seconds: float
    max_batch_size: int
    max_buffered_bytes: int
    health: Health
    metrics: Metrics
    work_available: asyncio.Event

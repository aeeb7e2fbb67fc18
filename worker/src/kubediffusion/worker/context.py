"""What the parts of one worker share: built once at start, passed whole."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from kubediffusion.resources.adapters import AdapterReport
from kubediffusion.resources.lora_adapter import AdapterSource, LoRAAdapter
from kubediffusion.resources.storage import ImageStorage
from kubediffusion.worker.assignments import Assignments
from kubediffusion.worker.engine import Engine
from kubediffusion.worker.health import Health
from kubediffusion.worker.metrics import Metrics
from kubediffusion.worker.reporter import Reporter


@dataclass(frozen=True)
class AdapterSettings:
    """How adapters are found, fetched and told of.

    Attributes:
        model: Name of the DiffusionModel, which an adapter must be for.
        find: Returns the LoRAAdapter of a name, in the worker's namespace.
        fetch: Returns an adapter's file on this machine; it may block.
        capacity: Bytes of main memory for adapters.
        reported: Called with what is held and what is refused, by name, whenever it changes.
    """

    model: str
    find: Callable[[str], Awaitable[LoRAAdapter]]
    fetch: Callable[[AdapterSource], Path]
    capacity: int
    reported: Callable[[Mapping[str, AdapterReport]], None]


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
        adapters: How adapters are loaded; None for a worker that loads none.
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
    adapters: AdapterSettings | None = None

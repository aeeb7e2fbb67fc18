"""Keeps the engine busy: the next batch starts as soon as the last one is done.

Three owners: the engine's thread computes, other threads encode and upload, and the event loop alone changes what is
known of the jobs.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import time
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass

from kubediffusion.resources.errors import ErrorCode, JobFailure
from kubediffusion.worker.announcer import Announcer
from kubediffusion.worker.assignments import Assignment, Assignments
from kubediffusion.worker.batching import next_batch
from kubediffusion.worker.engine import Engine, EngineLostError, ImageTask, Outcome, Ticket, described
from kubediffusion.worker.finisher import Finisher
from kubediffusion.worker.health import Health
from kubediffusion.worker.metrics import Metrics

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """How much the runner takes on.

    Attributes:
        max_images: The most images in a batch.
        buffer_bytes: Finished images that may wait before the engine pauses.
    """

    max_images: int
    buffer_bytes: int


class Runner:
    """Runs the jobs of this worker.

    Args:
        engine: What makes images.
        engine_thread: Its one thread.
        assignments: The jobs.
        finisher: Takes in what the engine made.
        announcer: Told when a batch begins.
        limits: How much to take on.
        health: Told about signs of life.
        metrics: Told about batches.
        work: Set by others when there may be something to do.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        engine_thread: Executor,
        assignments: Assignments,
        finisher: Finisher,
        announcer: Announcer,
        limits: Limits,
        health: Health,
        metrics: Metrics,
        work: asyncio.Event,
    ) -> None:
        self._engine = engine
        self._engine_thread = engine_thread
        self._assignments = assignments
        self._finisher = finisher
        self._announcer = announcer
        self._limits = limits
        self._health = health
        self._metrics = metrics
        self._work = work
        self._stopping = False

    def stop(self) -> None:
        """Start nothing new; what has begun is finished."""
        self._stopping = True
        self._work.set()

    async def run(self) -> None:
        """Run jobs until told to stop, then finish what has begun.

        Raises:
            EngineLostError: Only a new process can go on. What was made before is stored and reported first.
        """
        try:
            while await self._wait_for_work():
                await self._run_batch()
        finally:
            await self._finisher.drain()

    async def _wait_for_work(self) -> bool:
        """Wait until a batch can run, and tell whether there will be one."""
        while True:
            self._work.clear()
            self._metrics.bound.set(len(self._assignments))
            if self._finisher.defect is not None:
                raise self._finisher.defect
            runnable = self._runnable()
            if runnable and self._finisher.buffered < self._limits.buffer_bytes:
                return True
            if self._stopping and not runnable:
                return False
            await self._work.wait()

    def _runnable(self) -> dict[str, Assignment]:
        # When told to stop, a job that has begun still gets its last images: half of it would be lost work.
        return {
            assignment.binding.uid: assignment
            for assignment in self._assignments
            if assignment.remaining and not assignment.closing and (assignment.spans or not self._stopping)
        }

    async def _run_batch(self) -> None:
        runnable = self._runnable()
        began, now = time.monotonic(), dt.datetime.now(dt.UTC)
        tasks: list[ImageTask] = []
        members: dict[Ticket, Assignment] = {}
        for portion in next_batch((a.candidate() for a in runnable.values()), self._limits.max_images):
            assignment = runnable[portion.key]
            for task in assignment.take(portion.count, now, began):
                tasks.append(task)
                members[task.ticket] = assignment
        about = {"jobs": sorted({a.name for a in members.values()}), "images": len(tasks)}
        logger.info("batch begins", extra={**about, "shape": str(tasks[0].shape)})
        self._announcer.wake()
        self._health.beat()
        loop = asyncio.get_running_loop()
        monitor = _BatchMonitor(members, loop, self._finisher, self._health, self._metrics)
        problem = JobFailure(ErrorCode.INTERNAL, "the engine gave no image; the worker's log may say why")
        try:
            await loop.run_in_executor(self._engine_thread, self._engine.run, tuple(tasks), monitor)
        except EngineLostError:
            logger.exception("the engine is lost", extra=about)
            self._health.waits_for("the engine is lost")
            raise
        except Exception as error:  # noqa: BLE001 - a defect of the engine fails its batch, not the worker
            logger.warning("the engine raised", extra={**about, **described(error)})
            # No text of the error: it may quote one job's prompt, and this reaches all of its batch mates.
            problem = JobFailure(ErrorCode.INTERNAL, f"the engine raised {type(error).__name__}; see the worker's log")
        finally:
            self._health.rest()
        monitor.end_rest(problem)
        seconds = time.monotonic() - began
        self._metrics.batch.observe(len(tasks))
        self._metrics.inference.observe(seconds)
        logger.info("batch ends", extra={**about, "seconds": round(seconds, 3)})


class _BatchMonitor:
    """Takes in what the engine tells about one batch, in the engine's thread.

    Args:
        members: The job of each image.
        loop: Where ends are handled.
        finisher: Takes in ends.
        health: Told about every step.
        metrics: Counts steps.
    """

    def __init__(
        self,
        members: Mapping[Ticket, Assignment],
        loop: asyncio.AbstractEventLoop,
        finisher: Finisher,
        health: Health,
        metrics: Metrics,
    ) -> None:
        self._members = members
        self._loop = loop
        self._finisher = finisher
        self._health = health
        self._metrics = metrics
        self._open = set(members)

    def wanted(self, ticket: Ticket) -> bool:
        """Tell whether the job is still ours and whole."""
        assignment = self._members[ticket]
        return not assignment.dropped and not assignment.closing

    def stepped(self, ticket: Ticket, step: int, total: int) -> None:
        """Note progress."""
        del total  # the recipe says it
        self._health.beat()
        steps = self._members[ticket].steps
        if (more := step - steps[ticket.index]) > 0:
            steps[ticket.index] = step
            self._metrics.steps.inc(more)

    def ended(self, ticket: Ticket, outcome: Outcome) -> None:
        """Hand the end of an image to the event loop."""
        self._health.beat()
        self._open.discard(ticket)
        self._loop.call_soon_threadsafe(self._finisher.ended, self._members[ticket], ticket.index, outcome)

    def end_rest(self, failure: JobFailure) -> None:
        """End, on the event loop, every image that the engine left without an end and that is still wanted."""
        for ticket in sorted(self._open, key=lambda ticket: ticket.index):
            if self.wanted(ticket):
                self._finisher.ended(self._members[ticket], ticket.index, failure)

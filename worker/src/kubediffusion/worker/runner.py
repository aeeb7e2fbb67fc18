"""Keeps the engine busy: the next batch starts as soon as the last one is done.

Three owners: the engine's thread computes, other threads encode and upload, and the event loop alone changes what is
known of the jobs. An engine that takes images into a running batch asks for them before a step and gets them after it:
neither thread waits for the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import logging
import time
from collections.abc import Hashable
from dataclasses import dataclass

from kubediffusion.resources.failures import ErrorCode, JobFailure
from kubediffusion.worker.assignments import Assignment
from kubediffusion.worker.batch_monitor import BatchListeners, BatchMonitor, Member, Members
from kubediffusion.worker.context import WorkerContext
from kubediffusion.worker.engine import EngineLostError, EntryLimit, described
from kubediffusion.worker.engine.batching import Candidate, Portion
from kubediffusion.worker.engine.preemption import RunningBatch
from kubediffusion.worker.engine.selection import ImageSelector
from kubediffusion.worker.finisher import Finisher
from kubediffusion.worker.previews import Previews
from kubediffusion.worker.progress_reporter import ProgressReporter

logger = logging.getLogger(__name__)


class Runner:
    """Runs the jobs of this worker.

    Args:
        context: What the parts of the worker share.
        finisher: Takes in what the engine made.
        progress: Told when a batch begins.
        previews: Stores previews.
    """

    def __init__(
        self, context: WorkerContext, finisher: Finisher, progress: ProgressReporter, previews: Previews
    ) -> None:
        self._engine = context.engine
        self._engine_thread = context.engine_thread
        self._assignments = context.assignments
        self._health = context.health
        self._metrics = context.metrics
        self._work = context.work_available
        self._max_buffered_bytes = context.max_buffered_bytes
        self._finisher = finisher
        self._progress = progress
        self._listeners = BatchListeners(finisher, previews, context.health, context.metrics)
        self._stopping = False
        self._may_prepare = True
        self._leftover: list[Members] = []
        self._selector: ImageSelector[str] = ImageSelector(context.max_batch_size)
        self._steps = 0

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
                await self.run_batch()
        finally:
            await self._finisher.drain()

    async def _wait_for_work(self) -> bool:
        """Wait until a batch can run, and return whether there will be one."""
        while True:
            if self._leftover:
                return True
            self._work.clear()
            self._metrics.bound.set(len(self._assignments))
            if self._finisher.defect is not None:
                raise self._finisher.defect
            runnable = self._runnable()
            if runnable and self._finisher.buffered < self._max_buffered_bytes:
                return True
            if self._stopping and not runnable:
                return False
            if runnable or not await self._prepare_while_idle():
                await self._work.wait()

    async def _prepare_while_idle(self) -> bool:
        """Let the engine use a moment without work, and return whether it can use another.

        Raises:
            EngineLostError: Only a new process can go on.
        """
        if not self._may_prepare:
            return False
        # Before it is asked: it may have the runner woken before its answer is here.
        self._may_prepare = False
        loop = asyncio.get_running_loop()
        # What hangs here is found out as in a batch.
        self._health.engine_active()

        def wake() -> None:
            # The loop may be closed by then: the worker has ended.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._wake)

        try:
            more = await loop.run_in_executor(self._engine_thread, self._engine.prepare_while_idle, wake)
        except EngineLostError:
            logger.exception("the engine is lost")
            self._health.mark_unready("the engine is lost")
            raise
        except Exception as error:  # noqa: BLE001 - a defect in what would make it faster costs no job
            logger.warning("the engine cannot prepare more", extra=described(error))
            return False
        finally:
            self._health.engine_idle()
        self._may_prepare = self._may_prepare or more
        return more

    def _wake(self) -> None:
        self._may_prepare = True
        self._work.set()

    def _runnable(self) -> dict[str, Assignment]:
        # When told to stop, a job that has begun still gets its last images: half of it would be lost work.
        return {
            assignment.binding.uid: assignment
            for assignment in self._assignments
            if assignment.remaining
            and not (assignment.finishing or assignment.awaits_inputs or assignment.awaits_adapters)
            and (assignment.spans or not self._stopping)
        }

    async def run_batch(self) -> None:
        """Run one batch of what is bound to this worker, and report the outcomes of its images."""
        began = time.monotonic()
        self._may_prepare = True
        # What joined the last batch too late goes first.
        members = self._leftover.pop(0) if self._leftover else self._members(self._next_batch(), self._steps)
        requests = tuple(member.request for member in members.values())
        about = {"jobs": sorted({member.assignment.name for member in members.values()}), "images": len(requests)}
        logger.info("batch begins", extra={**about, "shape": str(requests[0].sampling)})
        self._health.engine_active()
        loop = asyncio.get_running_loop()
        key = self._engine.plan(requests[0]).key
        monitor = BatchMonitor(members, _WaitingImages(self, key), self._steps, self._listeners)
        problem = JobFailure(ErrorCode.INTERNAL, "the engine gave no image; the worker's log may say why")
        try:
            await loop.run_in_executor(self._engine_thread, self._engine.run, requests, monitor)
        except EngineLostError:
            logger.exception("the engine is lost", extra=about)
            self._health.mark_unready("the engine is lost")
            raise
        except Exception as error:  # noqa: BLE001 - a defect of the engine fails its batch, not the worker
            logger.warning("the engine raised", extra={**about, **described(error)})
            # No text of the error: it may quote one job's prompt, and this reaches all of its batch mates.
            problem = JobFailure(ErrorCode.INTERNAL, f"the engine raised {type(error).__name__}; see the worker's log")
        finally:
            self._health.engine_idle()
        self._leftover += monitor.close(problem)
        self._steps = monitor.steps
        seconds = round(time.monotonic() - began, 3)
        logger.info("batch ends", extra={**about, "images": monitor.images, "seconds": seconds})

    def _next_batch(self) -> tuple[Portion[str], ...]:
        return self._selector.begin(self._candidates(), self._steps)

    def _candidates(self) -> list[Candidate[str]]:
        return [
            assignment.candidate(self._engine.plan(assignment.request(assignment.taken)))
            for assignment in self._runnable().values()
        ]

    def take_joining(self, key: Hashable, room: int, calls: int, entry_limit: EntryLimit, step: int) -> Members:
        """Take images that enter the running batch, and return them."""
        self._metrics.bound.set(len(self._assignments))
        if self._finisher.defect is not None or self._finisher.buffered >= self._max_buffered_bytes:
            # The batch comes to its end, and what follows is decided then.
            return {}
        return self._members(self._selector.join(self._candidates(), key, room, calls, entry_limit, step), step)

    def take_urgent(self, key: Hashable, batch: RunningBatch, step: int) -> tuple[Members, bool]:
        """Take images that go before those of the running batch, and return them and whether they enter it."""
        if self._finisher.defect is not None or self._finisher.buffered >= self._max_buffered_bytes:
            return {}, False
        urgent = self._selector.preempt(self._candidates(), key, batch)
        return self._members(urgent.portions, step), urgent.joins

    def _members(self, portions: tuple[Portion[str], ...], step: int) -> Members:
        """Take images for the engine, which enter after ``step`` steps."""
        clock, now = time.monotonic(), dt.datetime.now(dt.UTC)
        members: Members = {}
        for portion in portions:
            assignment = self._assignments.get(portion.key)
            if assignment is not None:
                for request in assignment.take_requests(portion.count, now, clock):
                    due = self._selector.due((portion.key, request.id.index), step)
                    members[request.id] = Member(request, assignment, due)
        if members:
            self._progress.batch_started()
        return members


@dataclass(frozen=True)
class _WaitingImages:
    """The images that wait, for a batch of one key: see :class:`kubediffusion.worker.batch_monitor.WaitingImages`."""

    runner: Runner
    key: Hashable

    def take_joining(self, room: int, calls: int, entry_limit: EntryLimit, step: int) -> Members:
        return self.runner.take_joining(self.key, room, calls, entry_limit, step)

    def take_urgent(self, batch: RunningBatch, step: int) -> tuple[Members, bool]:
        return self.runner.take_urgent(self.key, batch, step)

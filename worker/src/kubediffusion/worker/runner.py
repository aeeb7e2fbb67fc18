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
import queue
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from kubediffusion.resources.failures import ErrorCode, JobFailure
from kubediffusion.worker.assignments import Assignment
from kubediffusion.worker.context import WorkerContext
from kubediffusion.worker.engine import Admit, EngineLostError, ImageId, ImageRequest, Outcome, StepStats, described
from kubediffusion.worker.engine.batching import Candidate, Portion, admission, next_batch
from kubediffusion.worker.engine.waits import Waits
from kubediffusion.worker.finisher import Finisher
from kubediffusion.worker.health import Health
from kubediffusion.worker.metrics import Metrics
from kubediffusion.worker.progress_reporter import ProgressReporter

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Member:
    """An image that was taken for the engine.

    Attributes:
        task: What is asked for.
        assignment: Its job.
        due: How many steps will have been run, in all batches, when it enters at the latest.
    """

    task: ImageRequest
    assignment: Assignment
    due: int


Members = dict[ImageId, Member]


class Runner:
    """Runs the jobs of this worker.

    Args:
        context: What the parts of the worker share.
        finisher: Takes in what the engine made.
        progress: Told when a batch begins.
    """

    def __init__(self, context: WorkerContext, finisher: Finisher, progress: ProgressReporter) -> None:
        self._engine = context.engine
        self._engine_thread = context.engine_thread
        self._assignments = context.assignments
        self._health = context.health
        self._metrics = context.metrics
        self._work = context.work_available
        self._max_batch_size = context.max_batch_size
        self._max_buffered_bytes = context.max_buffered_bytes
        self._finisher = finisher
        self._progress = progress
        self._stopping = False
        self._restless = True
        self._leftover: Members = {}
        self._waits: Waits[tuple[str, int]] = Waits()
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
                await self._run_batch()
        finally:
            await self._finisher.drain()

    async def _wait_for_work(self) -> bool:
        """Wait until a batch can run, and tell whether there will be one."""
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
            if runnable or not await self._rest():
                await self._work.wait()

    async def _rest(self) -> bool:
        """Let the engine use a moment without work, and tell whether it can use another.

        Raises:
            EngineLostError: Only a new process can go on.
        """
        if not self._restless:
            return False
        # Before it is asked: it may have the runner woken before its answer is here.
        self._restless = False
        loop = asyncio.get_running_loop()
        # What hangs here is found out as in a batch.
        self._health.engine_active()

        def wake() -> None:
            # The loop may be closed by then: the worker has ended.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._wake)

        try:
            more = await loop.run_in_executor(self._engine_thread, self._engine.rest, wake)
        except EngineLostError:
            logger.exception("the engine is lost")
            self._health.mark_unready("the engine is lost")
            raise
        except Exception as error:  # noqa: BLE001 - a defect in what would make it faster costs no job
            logger.warning("the engine cannot prepare more", extra=described(error))
            return False
        finally:
            self._health.engine_idle()
        self._restless = self._restless or more
        return more

    def _wake(self) -> None:
        self._restless = True
        self._work.set()

    def _runnable(self) -> dict[str, Assignment]:
        # When told to stop, a job that has begun still gets its last images: half of it would be lost work.
        return {
            assignment.binding.uid: assignment
            for assignment in self._assignments
            if assignment.remaining and not assignment.finishing and (assignment.spans or not self._stopping)
        }

    async def _run_batch(self) -> None:
        began = time.monotonic()
        self._restless = True
        # What joined the last batch too late goes first.
        members = self._leftover or self._members(self._next_batch(), self._steps)
        self._leftover = {}
        tasks = tuple(member.task for member in members.values())
        about = {"jobs": sorted({member.assignment.name for member in members.values()}), "images": len(tasks)}
        logger.info("batch begins", extra={**about, "shape": str(tasks[0].shape)})
        self._health.engine_active()
        loop = asyncio.get_running_loop()
        key = self._engine.plan(tasks[0]).key
        monitor = _BatchMonitor(
            members,
            lambda room, calls, admit, step: self._joining(key, room, calls, admit, step),
            self._steps,
            loop,
            self._finisher,
            self._health,
            self._metrics,
        )
        problem = JobFailure(ErrorCode.INTERNAL, "the engine gave no image; the worker's log may say why")
        try:
            await loop.run_in_executor(self._engine_thread, self._engine.run, tasks, monitor)
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
        self._leftover = monitor.close(problem)
        self._steps = monitor.steps
        seconds = round(time.monotonic() - began, 3)
        logger.info("batch ends", extra={**about, "images": monitor.images, "seconds": seconds})

    def _next_batch(self) -> tuple[Portion[str], ...]:
        candidates = [self._candidate(assignment) for assignment in self._runnable().values()]
        portions = next_batch(candidates, self._max_batch_size)
        plan = next(candidate.plan for candidate in candidates if candidate.key == portions[0].key)
        if not plan.joins:
            self._waits.note({}, self._steps)
            return portions
        # The others join when that makes the batch do more; until then they can go elsewhere.
        most, waits = self._max_batch_size, self._waits
        return admission(candidates, plan.key, most, 0, admit=plan.admit, waits=waits, step=self._steps)

    def _candidate(self, assignment: Assignment) -> Candidate[str]:
        return assignment.candidate(self._engine.plan(assignment.request(assignment.taken)))

    def _joining(self, key: Hashable, room: int, calls: int, admit: Admit, step: int) -> Members:
        """Give images that enter the running batch."""
        self._metrics.bound.set(len(self._assignments))
        if self._finisher.defect is not None or self._finisher.buffered >= self._max_buffered_bytes:
            # The batch comes to its end, and what follows is decided then.
            return {}
        candidates = [self._candidate(assignment) for assignment in self._runnable().values()]
        portions = admission(candidates, key, room, calls, admit=admit, waits=self._waits, step=step)
        return self._members(portions, step)

    def _members(self, portions: tuple[Portion[str], ...], step: int) -> Members:
        """Take images for the engine, which enter after so many steps."""
        clock, now = time.monotonic(), dt.datetime.now(dt.UTC)
        members: Members = {}
        for portion in portions:
            assignment = self._assignments.get(portion.key)
            if assignment is not None:
                for task in assignment.take_requests(portion.count, now, clock):
                    due = self._waits.due((portion.key, task.id.index), step)
                    members[task.id] = Member(task, assignment, due)
        if members:
            self._progress.batch_started()
        return members


class _BatchMonitor:
    """Takes in what the engine tells about one batch, in the engine's thread.

    Args:
        members: The images that the batch begins with.
        find: Gives, on the event loop, images that join: for so many slots, with so many calls of the model left, as
            many of those who wait as are admitted, when so many steps have been run.
        steps: How many were run in batches before.
        loop: Where ends are handled.
        finisher: Takes in ends.
        health: Told about every step.
        metrics: Counts steps.

    Attributes:
        images: Images that the engine was given.
        steps: How many were run, those of batches before included.
    """

    def __init__(
        self,
        members: Members,
        find: Callable[[int, int, Admit, int], Members],
        steps: int,
        loop: asyncio.AbstractEventLoop,
        finisher: Finisher,
        health: Health,
        metrics: Metrics,
    ) -> None:
        self._members = dict(members)
        self._find = find
        self._loop = loop
        self._finisher = finisher
        self._health = health
        self._metrics = metrics
        self._open = set(members)
        self._asked = False
        self._before = self.steps = steps
        self._began = dict.fromkeys(members, time.monotonic())
        # Handed from the event loop to the engine's thread.
        self._found: queue.SimpleQueue[Members] = queue.SimpleQueue()
        self.images = len(members)

    def wanted(self, image_id: ImageId) -> bool:
        """Tell whether the job is still ours and whole."""
        assignment = self._members[image_id].assignment
        return not assignment.dropped and not assignment.finishing

    def stepped(self, image_id: ImageId, step: int, total: int) -> None:
        """Note progress."""
        del total  # the recipe says it
        self._health.engine_active()
        assignment = self._members[image_id].assignment
        if (more := step - assignment.steps[image_id.index]) > 0:
            if not assignment.steps[image_id.index] and (queued_at := assignment.job.status.queued_at) is not None:
                waited = (dt.datetime.now(dt.UTC) - queued_at).total_seconds()
                # Two clocks of two machines.
                self._metrics.first_step.observe(max(waited, 0.0))
            assignment.steps[image_id.index] = step
            self._metrics.steps.inc(more)

    def ended(self, image_id: ImageId, outcome: Outcome) -> None:
        """Hand the end of an image to the event loop."""
        self._health.engine_active()
        self._open.discard(image_id)
        self._metrics.inference.observe(time.monotonic() - self._began[image_id])
        self._loop.call_soon_threadsafe(
            self._finisher.finish_image, self._members[image_id].assignment, image_id.index, outcome
        )

    def more(self, room: int, calls: int, admit: Admit) -> tuple[ImageRequest, ...]:
        """Give what the event loop found, and ask it for more."""
        # Before what it found is taken: else an answer that comes in between is forgotten, and asked for again.
        asked = self._asked
        found = self._take_found()
        self._members |= found
        self._open |= found.keys()
        self._began |= dict.fromkeys(found, time.monotonic())
        self.images += len(found)
        if (room := room - len(found)) > 0 and not asked:
            self._asked = True
            given = len(found)

            def others(waiting: int, overdue: int = 0, /) -> int:
                return max(admit(waiting + given, overdue and overdue + given) - given, 0)

            # Who is found enters after the step that comes now.
            self._loop.call_soon_threadsafe(self._look, room, calls, others, self.steps + 1)
        return tuple(member.task for member in found.values())

    def overdue(self, image_id: ImageId) -> bool:
        """Tell whether an image has waited long enough."""
        return self.steps >= self._members[image_id].due

    def ran(self, load: StepStats) -> None:
        """Count a step of the batch."""
        self.steps += 1
        self._metrics.batch.observe(load.images)
        self._metrics.slot_steps.inc(load.size)
        self._metrics.compiled_steps.inc(load.compiled)
        self._metrics.batch_limit.set(load.limit)
        if load.memory is not None:
            self._metrics.memory.set(load.memory)

    def close(self, failure: JobFailure) -> Members:
        """End every image that the engine left without an end and that is still wanted; on the event loop.

        Returns:
            What was found too late for this batch.
        """
        if self.steps == self._before:
            self._metrics.batch.observe(self.images)
        for image_id in sorted(self._open, key=lambda image_id: image_id.index):
            if self.wanted(image_id):
                self._finisher.finish_image(self._members[image_id].assignment, image_id.index, failure)
        # What the engine asked for was looked for before this: the event loop keeps the order of calls.
        return {
            image_id: member
            for image_id, member in self._take_found().items()
            if not member.assignment.dropped and not member.assignment.finishing
        }

    def _look(self, room: int, calls: int, admit: Admit, step: int) -> None:
        self._found.put(self._find(room, calls, admit, step))
        self._asked = False

    def _take_found(self) -> Members:
        members: Members = {}
        while not self._found.empty():
            members |= self._found.get()
        return members

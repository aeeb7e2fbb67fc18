"""The engine's loop: plan a step, execute it, update the batch with its result."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from kubediffusion.worker.engine.interface import Monitor, StepStats
from kubediffusion.worker.engine.parking import RequestState
from kubediffusion.worker.engine.plan import StepPlan, StepResult
from kubediffusion.worker.engine.request import ImageRequest
from kubediffusion.worker.engine.scheduler import BatchUpdate, StepScheduler
from kubediffusion.worker.engine.step_executor import StepExecutor
from kubediffusion.worker.engine.throughput import StepTimes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoopHooks:
    """What the engine does for its loop.

    Attributes:
        calls: Returns how many calls of the model an image takes.
        fallback: Makes an image by the pipeline's own call, and tells the monitor.
        between: Called between two steps, once the first image has ended; None for nothing to do there.
        interrupt: Makes images of another key to their end, between two steps; None where nothing may interrupt.
    """

    calls: Callable[[ImageRequest], int]
    fallback: Callable[[ImageRequest], None]
    between: Callable[[], object] | None = None
    interrupt: Callable[[tuple[ImageRequest, ...]], None] | None = None


class EngineLoop:
    """Runs one batch from its first image to its last.

    Args:
        scheduler: Plans the steps.
        executor: Executes them.
        monitor: Is told of each image's steps and end, and asked for images that join or interrupt.
        hooks: What the engine does for the loop.
        times: What steps of each size take; None to measure nothing.
    """

    def __init__(
        self,
        *,
        scheduler: StepScheduler,
        executor: StepExecutor,
        monitor: Monitor,
        hooks: LoopHooks,
        times: StepTimes | None,
    ) -> None:
        self._scheduler = scheduler
        self._executor = executor
        self._monitor = monitor
        self._hooks = hooks
        self._times = times
        self._ended = False

    def run(self, requests: Sequence[ImageRequest]) -> None:
        """Make these images, and those that the monitor adds meanwhile."""
        self._add(requests)
        while self._scheduler.busy:
            self._ask()
            self._give_way()
            self._executor.discard(self._scheduler.drop(self._monitor.wanted))
            plan = self._with_previews(
                self._scheduler.next(self._seconds, self._monitor.overdue, self._monitor.priority)
            )
            result = self._executor.execute(plan)
            largest = self._scheduler.largest_size
            self._process_update(plan, result, self._scheduler.update_from_result(plan, result), largest)
            self._report(wait=False)
            if self._ended and self._hooks.between is not None:
                self._hooks.between()
        self._report(wait=True)

    @property
    def _seconds(self) -> dict[int, float]:
        return {} if self._times is None else self._times.known

    def _add(self, requests: Sequence[ImageRequest]) -> None:
        self._executor.accept(requests)
        for request in requests:
            self._scheduler.add(request, self._hooks.calls(request))

    def _ask(self) -> None:
        """Add the images that the monitor found, and have it look for more to enter after the next step."""
        offer = self._scheduler.offer(self._seconds)
        if offer is not None:
            self._add(self._monitor.joining_images(offer.room, offer.calls, offer.entry_limit))

    def _give_way(self) -> None:
        """Run the images that may interrupt the batch before its next step."""
        interrupt = self._hooks.interrupt
        if interrupt is None:
            return
        parkable = self._scheduler.parkable(self._monitor.priority)
        if urgent := self._monitor.interrupting_images(*self._scheduler.longest, parkable):
            interrupt(urgent)

    def _with_previews(self, plan: StepPlan) -> StepPlan:
        """Add which images are to be previewed: those that somebody asks for, unless they are done then."""
        due = tuple(call.image for call in plan.calls if not call.last and self._monitor.preview_due(call.image))
        return replace(plan, previews=due) if due else plan

    def _process_update(self, plan: StepPlan, result: StepResult, update: BatchUpdate, largest: int) -> None:
        if result.time is not None and self._times is not None:
            self._times.note(result.time.size, result.time.seconds, compiled=result.time.compiled)
        for request, failure in update.ended:
            self._executor.discard([request.id])
            self._monitor.ended(request.id, failure)
        if update.shrunk is not None:
            message = "a batch of %d does not fit the device's memory; at most %d from now on"
            logger.warning(message, plan.size, update.shrunk)
        if result.stepped:
            self._monitor.count_step(
                StepStats(len(update.progress), plan.size, largest, result.compiled, result.memory)
            )
        for state in update.progress:
            self._monitor.stepped(state.request.id, _steps_done(state), state.request.sampling.steps)
        for request in update.fallback:
            self._executor.discard([request.id])
            self._hooks.fallback(request)

    def _report(self, *, wait: bool) -> None:
        for image, preview in self._executor.previews():
            self._monitor.previewed(image, preview)
        for image, outcome in self._executor.finished(wait=wait):
            self._ended = True
            self._monitor.ended(image, outcome)


def _steps_done(state: RequestState) -> int:
    """Return how many denoising steps are done: some schedulers call the model more often than once a step."""
    return state.call * state.request.sampling.steps // state.calls

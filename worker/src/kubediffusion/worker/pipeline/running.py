"""One running batch: images enter and leave between two steps, each with its own prompt, seed, scheduler and steps.

Where calls differ in what they compute, all images begin together, and nobody joins them.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from kubediffusion.resources.failures import JobFailure
from kubediffusion.worker.engine import ImageTask, Load, Monitor, Outcome, Ticket, described
from kubediffusion.worker.pipeline.accelerator import Pace, reserved_memory
from kubediffusion.worker.pipeline.batch import Batch, Row, control_row
from kubediffusion.worker.pipeline.decoding import Decoder, Decoding
from kubediffusion.worker.pipeline.engine import PipelineEngine
from kubediffusion.worker.pipeline.faults import check_device, failure, is_out_of_memory, not_numbers
from kubediffusion.worker.pipeline.stepping import Steps
from kubediffusion.worker.pipeline.tables import Table
from kubediffusion.worker.pipeline.variants import Depth, Variant
from kubediffusion.worker.slots import arrange, lowered
from kubediffusion.worker.throughput import StepTimes, admitted
from kubediffusion.worker.waits import overdue

logger = logging.getLogger(__name__)

_AHEAD = 4
"""Steps before a slot is free in which who is to have it is made ready, a few images between two steps: when a whole
batch leaves at once, the device would otherwise wait for sixteen to be encoded."""

_AT_ONCE = 4
"""Images that are made ready between two steps."""


@dataclass
class Machine:
    """What is prepared once for images of one frame.

    Attributes:
        batch: The tensors.
        steps: Makes steps of them.
        sizes: Batch sizes that may be computed, smallest first.
        plain: Always computed in the very same way.
        times: What steps of each size take; nothing is known of them on the CPU.
    """

    batch: Batch
    steps: Steps
    sizes: tuple[int, ...]
    plain: bool = False
    times: StepTimes = field(default_factory=StepTimes)


@dataclass
class Sitting:
    """An image that has a slot, or had one.

    Attributes:
        task: What is asked for.
        table: What its scheduler does.
        call: Calls of the model that are done.
    """

    task: ImageTask
    table: Table
    call: int = 0

    @property
    def left(self) -> int:
        """Calls of the model that are left."""
        return self.table.calls - self.call


Prepare = Callable[[ImageTask], tuple[Table, Row] | None]
"""Encodes an image's prompts, makes its noise and finds its table; None when its scheduler has none."""


class RunningBatch:
    """Runs one batch from its first image to its last.

    Args:
        machine: What is prepared; its sizes are lowered when the device's memory does not suffice.
        prepare: Makes an image ready to enter.
        calls: Tells how many calls of the model an image takes.
        decoder: Makes pixels.
        static: Runs images whose step raised, one by one, and turns pixels into outcomes.
        name: The engine, for the recipe.
        monitor: Who is told.
        course: What each call computes, the same for all images; empty where every call computes the whole.
        between: Called between two steps, once the first image has ended; None for nothing to do there.
    """

    def __init__(
        self,
        *,
        machine: Machine,
        prepare: Prepare,
        calls: Callable[[ImageTask], int],
        decoder: Decoder,
        static: PipelineEngine,
        name: str,
        monitor: Monitor,
        course: tuple[Variant, ...] = (),
        between: Callable[[], object] | None = None,
    ) -> None:
        self._machine = machine
        self._course = course
        self._between = between
        self._ended = False
        self._keeps = any(variant.depth is not Depth.WHOLE for variant in course)
        self._prepare = prepare
        self._calls = calls
        self._decoder = decoder
        self._static = static
        self._name = name
        self._monitor = monitor
        self._device: torch.device = static.device
        self._pace = Pace(self._device)
        self._waiting: deque[ImageTask] = deque()
        # Put aside with all their steps, then made ready: they may enter as they are.
        self._aside: deque[tuple[Sitting, Row]] = deque()
        self._launched: tuple[int, bool] | None = None
        # In the order in which they entered.
        self._slots: dict[int, Sitting] = {}
        self._size = 0
        self._memory: int | None = None
        self._decodings: list[tuple[Sitting, Decoding]] = []
        self._repeated: set[Ticket] = set()

    def run(self, tasks: Sequence[ImageTask]) -> None:
        """Make these images, and those that the monitor gives meanwhile."""
        self._machine.batch.clear()
        self._waiting.extend(tasks)
        while self._slots or self._waiting or self._aside:
            self._ask()
            self._drop_unwanted()
            self._enter()
            if self._slots:
                self._step()
                self._make_ready()
            self._report(wait=False)
            if self._ended and self._between is not None:
                self._between()
        self._report(wait=True)

    def _ask(self) -> None:
        """Take in what the monitor found, and have it look for who may enter after the next step."""
        if self._machine.plain or self._course:
            return
        left = [sitting.left for sitting in self._slots.values()]
        left += [sitting.left for sitting, _ in self._aside] + [self._calls(task) for task in self._waiting]
        leaving = sum(sitting.left <= _AHEAD for sitting in self._slots.values())
        free = self._machine.sizes[-1] - len(left)
        sizes, known = self._machine.sizes, self._machine.times.known
        staying = len(left) - leaving

        def admit(waiting: int, late: int = 0, /) -> int:
            return admitted(staying, waiting, sizes, known, late)

        # Who gets the slot of one that leaves begins some steps later.
        calls = max(left) - (_AHEAD if leaving else 1)
        self._waiting.extend(self._monitor.more(max(free + leaving, 0), max(calls, 0), admit))

    def _drop_unwanted(self) -> None:
        wanted = self._monitor.wanted
        self._waiting = deque(task for task in self._waiting if wanted(task.ticket))
        self._aside = deque(pair for pair in self._aside if wanted(pair[0].task.ticket))
        for slot in [slot for slot, sitting in self._slots.items() if not wanted(sitting.task.ticket)]:
            self._leave(slot)

    def _enter(self) -> None:
        """Fill the free slots, and bring the batch to its size."""
        entering = self._admit(self._room())
        if not self._slots and not entering:
            return
        batch = self._machine.batch
        arrangement = arrange(self._slots, len(entering), self._machine.sizes)
        for source, target in arrangement.moves:
            batch.enter(target, batch.row(source, features=self._keeps))
            batch.leave(source)
        moved = dict(arrangement.moves)
        self._slots = {moved.get(slot, slot): sitting for slot, sitting in self._slots.items()}
        for slot, (sitting, row) in zip(arrangement.entries, entering, strict=True):
            batch.enter(slot, row)
            self._slots[slot] = sitting
        if self._size != arrangement.size:
            self._memory = reserved_memory(self._device)
        self._size = arrangement.size

    def _room(self) -> int:
        """Tell how many may enter: so many that the batch does the most, and who has waited for long enough."""
        running, sizes, known = len(self._slots), self._machine.sizes, self._machine.times.known
        if self._course or not known:
            return sizes[-1] - running
        held = [sitting.task for sitting, _ in self._aside] + list(self._waiting)
        late = overdue(self._monitor.overdue(task.ticket) for task in held)
        return admitted(running, len(held), sizes, known, late)

    def _make_ready(self) -> None:
        """While a step runs, make ready some of those who wait; not those whose course has all begin together."""
        if self._course or self._machine.plain:
            return
        for _ in range(min(_AT_ONCE, len(self._waiting))):
            count = len(self._waiting)
            if (ready := self._ready(self._waiting.popleft(), alone=False)) is not None:
                self._aside.append(ready)
            elif len(self._waiting) == count:
                return

    def _admit(self, room: int) -> list[tuple[Sitting, Row]]:
        """Make ready, in order, as many as there is room for; first those who had a slot before."""
        entering: list[tuple[Sitting, Row]] = []
        while self._aside and len(entering) < room:
            sitting, _ = self._aside[0]
            if not self._fits(sitting.task, sitting.call, entering):
                break
            entering.append(self._aside.popleft())
        while self._waiting and len(entering) < room and self._fits(self._waiting[0], 0, entering):
            count = len(self._waiting)
            ready = self._ready(self._waiting.popleft(), alone=not (self._slots or entering))
            if ready is not None:
                entering.append(ready)
            elif len(self._waiting) == count:
                break
        return entering

    def _ready(self, task: ImageTask, *, alone: bool) -> tuple[Sitting, Row] | None:
        """Make an image ready to enter.

        Returns:
            None when it has ended; or waits again, because there is no memory for it beside others.
        """
        try:
            ready = self._prepare(task)
        except JobFailure as refusal:
            self._monitor.ended(task.ticket, refusal)
        except Exception as error:  # noqa: BLE001 - what encoding raises is the outcome of this image
            logger.warning("an image cannot begin", extra=described(error))
            check_device(self._device, error)
            if is_out_of_memory(error) and not alone:
                # It may fit when another has left.
                self._waiting.appendleft(task)
            else:
                self._monitor.ended(task.ticket, failure(error))
        else:
            if ready is not None:
                return Sitting(task, ready[0]), ready[1]
            self._static.run((task,), self._monitor)
        return None

    def _fits(self, task: ImageTask, call: int, entering: list[tuple[Sitting, Row]]) -> bool:
        """Tell whether an image may enter beside others: on a course only when all are at the same call.

        One whose step raised runs alone there: only its own error may fail it.
        """
        if not self._course:
            return True
        alone = {task.ticket, *(sitting.task.ticket for sitting, _ in entering)} & self._repeated
        return not self._slots and all(sitting.call == call and not alone for sitting, _ in entering)

    def _step(self) -> None:
        rows = {
            slot: control_row(sitting.table, sitting.call, sitting.task.shape.guidance)
            for slot, sitting in self._slots.items()
        }
        try:
            self._machine.batch.steer(rows, self._size)
            compiled = self._steps().run(self._size)
            seconds = self._pace.step()
        except Exception as error:  # noqa: BLE001 - what the pipeline raises is the outcome of its images
            logger.warning("a step raised", extra={"images": len(rows), **described(error)})
            check_device(self._device, error)
            if not is_out_of_memory(error):
                self._run_alone(error)
            elif not self._shrink():
                self._end_all(failure(error))
            return
        if seconds is not None and self._launched is not None and not self._course:
            self._machine.times.note(self._launched[0], seconds, compiled=self._launched[1])
        self._launched = (self._size, compiled)
        self._monitor.ran(Load(len(rows), self._size, self._machine.sizes[-1], compiled, self._memory))
        for sitting in self._slots.values():
            sitting.call += 1
            steps = sitting.task.shape.steps
            self._monitor.stepped(sitting.task.ticket, sitting.call * steps // sitting.table.calls, steps)
        done = {slot: sitting for slot, sitting in self._slots.items() if not sitting.left}
        latents = {slot: self._machine.batch.latents(slot) for slot in done}
        for slot in done:
            self._leave(slot)
        for slot, sitting in done.items():
            self._decode(sitting, latents[slot])

    def _steps(self) -> Steps:
        if not self._course:
            return self._machine.steps
        return self._machine.steps.of(self._course[next(iter(self._slots.values())).call])

    def _decode(self, sitting: Sitting, latents: torch.Tensor) -> None:
        plain = self._machine.plain
        while True:
            try:
                decoding = self._decoder.begin(latents, plain=plain)
            except Exception as error:  # noqa: BLE001 - what the VAE raises is the outcome of its image
                logger.warning("an image cannot be decoded", extra=described(error))
                check_device(self._device, error)
                if is_out_of_memory(error) and self._decoder.forget():
                    # What graphs held may suffice; the batch need not pay for it.
                    plain = True
                elif not is_out_of_memory(error) or not self._shrink():
                    self._monitor.ended(sitting.task.ticket, failure(error))
                    return
            else:
                self._decodings.append((sitting, decoding))
                return

    def _report(self, *, wait: bool) -> None:
        """Tell how the images end whose pixels are there; or of all."""
        ready = [pair for pair in self._decodings if wait or pair[1].ready]
        self._decodings = [pair for pair in self._decodings if pair not in ready]
        for sitting, decoding in ready:
            self._ended = True
            try:
                outcome = self._outcome(sitting, decoding)
            except Exception as error:  # noqa: BLE001 - the outcome of this image
                logger.warning("an image cannot be finished", extra=described(error))
                check_device(self._device, error)
                outcome = failure(error)
            self._monitor.ended(sitting.task.ticket, outcome)

    def _outcome(self, sitting: Sitting, decoding: Decoding) -> Outcome:
        pixels, flagged = self._decoder.finish(decoding)
        if pixels is None:
            return not_numbers(self._static.info.torch_dtype)
        outcome = self._static.outcome(sitting.task, pixels, flagged, sitting.table.scheduler)
        return outcome if isinstance(outcome, JobFailure) else replace(outcome, engine=self._name)

    def _shrink(self) -> bool:
        """Use smaller batches from now on, and put aside who entered last; False when there is no smaller one."""
        machine = self._machine
        sizes = lowered(machine.sizes, self._size)
        if sizes[-1] >= self._size:
            return False
        logger.warning("a batch of %d does not fit the device's memory; at most %d from now on", self._size, sizes[-1])
        machine.sizes = sizes
        kept_out = list(self._slots)[sizes[-1] :]
        for slot in reversed(kept_out):
            self._aside.appendleft((self._slots[slot], machine.batch.row(slot, features=self._keeps).on_host()))
            self._leave(slot)
        machine.steps.forget()
        self._size = sizes[-1]
        return True

    def _run_alone(self, error: Exception) -> None:
        """Run again, one by one and from the beginning, the images whose step raised: only the culprit fails.

        One whose pixels must repeat is first run again as it was: the pipeline's own call rounds differently. One on a
        course is not run by that call at all, which computes every call's whole.
        """
        tasks = [sitting.task for sitting in self._slots.values()]
        for slot in list(self._slots):
            self._leave(slot)
        again = [task for task in tasks if (self._machine.plain or self._course) and task.ticket not in self._repeated]
        self._repeated.update(task.ticket for task in again)
        self._waiting.extendleft(reversed(again))
        for task in tasks:
            if task in again:
                continue
            if self._course:
                self._monitor.ended(task.ticket, failure(error))
            else:
                self._static.run((task,), self._monitor)

    def _end_all(self, outcome: JobFailure) -> None:
        for slot, sitting in list(self._slots.items()):
            self._leave(slot)
            self._monitor.ended(sitting.task.ticket, outcome)

    def _leave(self, slot: int) -> None:
        del self._slots[slot]
        self._machine.batch.leave(slot)

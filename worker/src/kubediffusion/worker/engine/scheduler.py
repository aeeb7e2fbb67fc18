"""Which of the engine's images have which slot in the next step of a batch: they enter, move, are parked, leave.

Which images come to the engine is decided before, in :mod:`.batching`.

A function of what it is told: the images, what steps of each size took, what came of the last plan. It reads no clock
and computes nothing, so a test or a simulation runs the same code as a GPU.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kubediffusion.resources.failures import JobFailure
from kubediffusion.worker.engine.arrangement import arrange, lowered
from kubediffusion.worker.engine.forward_mode import FULL, ForwardMode
from kubediffusion.worker.engine.interface import EntryLimit, Parkable
from kubediffusion.worker.engine.parking import RequestState, in_order, is_due, parkable, swapped
from kubediffusion.worker.engine.plan import SlotCall, StepFailure, StepPlan, StepResult
from kubediffusion.worker.engine.request import ImageId, ImageRequest
from kubediffusion.worker.engine.throughput import count_entering
from kubediffusion.worker.engine.waits import overdue

AHEAD = 4
"""Steps before a slot is free in which who is to have it is made ready, a few images between two steps: when a whole
batch leaves at once, the device would otherwise wait for sixteen to be encoded."""

AT_ONCE = 4
"""Images that are made ready between two steps."""


class BatchSizes(Protocol):
    """Which batch sizes may be computed, smallest first. They get fewer when the device's memory does not suffice."""

    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Offer:
    """The slots that a running batch offers to images from outside the engine.

    Attributes:
        room: Images for which there will be a slot soon.
        calls: Calls of the model, from when they enter, until the last of the batch's images is done.
        entry_limit: How many of those who wait are to take these slots.
    """

    room: int
    calls: int
    entry_limit: EntryLimit


@dataclass
class BatchUpdate:
    """What a result means for the images.

    Attributes:
        progress: Images that made a step, calls done and calls in all.
        ended: Images that failed.
        fallback: Images to be made by the pipeline's own call, one by one.
        shrunk: The largest batch size from now on, where it is smaller than before.
    """

    progress: list[RequestState] = field(default_factory=list)
    ended: list[tuple[ImageRequest, JobFailure]] = field(default_factory=list)
    fallback: list[ImageRequest] = field(default_factory=list)
    shrunk: int | None = None


class StepScheduler:
    """Schedules the steps of one batch, from its first image to its last.

    Args:
        batch_sizes: The batch sizes; lowered when the device's memory does not suffice.
        modes: What each call computes, the same for all images, which then begin together; empty where every call
            computes the whole.
        repeats: Whether the one image's pixels must repeat: nobody joins it, and after an error it is run again as it
            was.
    """

    def __init__(self, batch_sizes: BatchSizes, *, modes: Sequence[ForwardMode] = (), repeats: bool = False) -> None:
        self._batch_sizes = batch_sizes
        self._modes = tuple(modes)
        self._repeats = repeats
        self._closed = repeats or bool(modes)
        self._waiting: deque[RequestState] = deque()
        # Put aside with all their steps, then made ready: they may enter as they are.
        self._ready: deque[RequestState] = deque()
        # In the order in which they entered.
        self._slots: dict[int, RequestState] = {}
        self._size = 0
        self._undecoded: dict[ImageId, RequestState] = {}
        self._decodes: list[ImageId] = []
        self._frees: list[int] = []
        self._parks: list[tuple[int, ImageId]] = []
        self._repeated: set[ImageId] = set()

    @property
    def busy(self) -> bool:
        """Whether there is an image to compute."""
        return bool(self._slots or self._waiting or self._ready or self._decodes)

    @property
    def largest_size(self) -> int:
        """The most slots that a step may have; fewer after the device's memory did not suffice."""
        return self._batch_sizes.sizes[-1]

    @property
    def longest(self) -> tuple[int, int]:
        """The calls that the last image to be done has left, and the most that one of them needs in all."""
        states = [*self._slots.values(), *self._ready, *self._waiting]
        return max((state.left for state in states), default=0), max((state.calls for state in states), default=0)

    def add(self, request: ImageRequest, calls: int) -> None:
        """Add an image, to wait for a slot behind all others of its priority."""
        self._waiting.append(RequestState(request, calls))

    def parkable(self, priority: Callable[[ImageId], int]) -> tuple[Parkable, ...]:
        """Return the images that may be parked for others from outside the engine.

        There are none while images in the engine are made ready, or wait beyond their bound: those go first.

        Args:
            priority: Returns an image's priority.
        """
        if self._closed or self._waiting or any(state.aged for state in self._ready):
            return ()
        return tuple(parkable(state, priority) for state in self._slots.values() if state.may_give_way)

    def drop(self, wanted: Callable[[ImageId], bool]) -> list[ImageId]:
        """Drop the images that are no longer wanted, and return their ids."""
        held = [state.request.id for state in (*self._ready, *self._waiting)]
        dropped = [image for image in held if not wanted(image)]
        self._without(dropped)
        self._frees += [slot for slot, image in self._parks if image in dropped]
        self._parks = [(slot, image) for slot, image in self._parks if image not in dropped]
        for slot in [slot for slot, state in self._slots.items() if not wanted(state.request.id)]:
            dropped.append(self._slots.pop(slot).request.id)
            self._frees.append(slot)
        return dropped

    def offer(self, seconds: Mapping[int, float]) -> Offer | None:
        """Return the slots that images from outside the engine may take; None where none may join.

        Args:
            seconds: What a step of a size takes, as far as it is known.
        """
        if self._closed:
            return None
        running = [state.left for state in self._slots.values()]
        left = running + [state.left for state in self._ready] + [state.left for state in self._waiting]
        leaving = sum(calls <= AHEAD for calls in running)
        sizes, staying = self._batch_sizes.sizes, len(left) - leaving

        def entry_limit(waiting: int, overdue: int = 0, /) -> int:
            return count_entering(staying, waiting, sizes, seconds, overdue)

        # Who gets the slot of one that leaves begins some steps later.
        calls = max(left, default=0) - (AHEAD if leaving else 1)
        return Offer(max(sizes[-1] - len(left) + leaving, 0), max(calls, 0), entry_limit)

    def next(
        self,
        seconds: Mapping[int, float],
        is_overdue: Callable[[ImageId], bool] = lambda _: False,
        priority: Callable[[ImageId], int] = lambda _: 0,
    ) -> StepPlan:
        """Plan the next step.

        Args:
            seconds: What a step of a size takes, as far as it is known.
            is_overdue: Returns whether an image has waited long enough to enter it.
            priority: Returns an image's priority.
        """
        if self._closed:
            entering = self._entering(self._room(seconds, 0))
        else:
            entering = self._entering_in_order(seconds, is_overdue, priority)
        frees, parks, decodes = tuple(self._frees), tuple(self._parks), tuple(self._decodes)
        self._frees, self._parks, self._decodes = [], [], []
        moves: tuple[tuple[int, int], ...] = ()
        entries: tuple[tuple[int, ImageId], ...] = ()
        if self._slots or entering:
            arrangement = arrange(self._slots, len(entering), self._batch_sizes.sizes)
            moved = dict(arrangement.moves)
            moves, self._size = arrangement.moves, arrangement.size
            self._slots = {moved.get(slot, slot): state for slot, state in self._slots.items()}
            self._slots |= dict(zip(arrangement.entries, entering, strict=True))
            entries = tuple((slot, self._slots[slot].request.id) for slot in arrangement.entries)
        return StepPlan(
            frees=frees,
            parks=parks,
            decodes=decodes,
            moves=moves,
            entries=entries,
            size=self._size if self._slots else 0,
            mode=self._mode(),
            calls=tuple(
                SlotCall(slot, state.request.id, state.call, state.left == 1) for slot, state in self._slots.items()
            ),
            prefetch=tuple(state.request.id for state in list(self._waiting)[:AT_ONCE]) if not self._closed else (),
        )

    def update_from_result(self, plan: StepPlan, result: StepResult) -> BatchUpdate:
        """Update the slots with the result of a plan, and return what it means for the images."""
        update = BatchUpdate()
        self._take_out(plan, result, update)
        self._take_prefetched(result)
        if result.failure is not None:
            self._after_failure(result.failure, update)
        elif result.stepped:
            for state in self._slots.values():
                state.call += 1
                update.progress.append(state)
            for state in (*self._ready, *self._waiting):
                state.waited += state.parks > 0
            for slot in [slot for slot, state in self._slots.items() if not state.left]:
                state = self._slots.pop(slot)
                self._undecoded[state.request.id] = state
        pending = {image: self._undecoded[image] for image, _ in result.undecoded}
        self._undecoded = {}
        for image, failure in result.undecoded:
            if failure.memory and self._shrink(update):
                self._undecoded[image] = pending[image]
                self._decodes.append(image)
            else:
                update.ended.append((pending[image].request, failure.failure))
        return update

    def _room(self, seconds: Mapping[int, float], overdue: int) -> int:
        """Return how many images may enter: what throughput is best with, at least those that waited long enough."""
        running, sizes = len(self._slots), self._batch_sizes.sizes
        if self._modes or not seconds:
            return sizes[-1] - running
        return count_entering(running, len(self._ready) + len(self._waiting), sizes, seconds, overdue)

    def _entering_in_order(
        self,
        seconds: Mapping[int, float],
        is_overdue: Callable[[ImageId], bool],
        priority: Callable[[ImageId], int],
    ) -> list[RequestState]:
        """Take as many as there is room for, the most urgent first, and park images for those that are more urgent."""
        self._ready = deque(in_order(self._ready, priority))
        self._waiting = deque(in_order(self._waiting, priority))
        held = in_order((*self._ready, *self._waiting), priority)
        room = self._room(seconds, overdue(is_due(state, is_overdue) for state in held))
        # Nobody is parked for an image that cannot begin: who is to take a slot is made ready before.
        ready = [state for state in held[room:] if state in self._ready]
        passed = [state for state in held[:room] if not is_due(state, is_overdue)]
        swaps = swapped(ready, [*self._slots.values(), *passed], priority)
        for _, other in swaps:
            other.parks += 1
            if other not in passed:
                self._park(other)
        entering = [state for state in held[:room] if all(other is not state for _, other in swaps)]
        entering += [state for state, _ in swaps]
        self._without([state.request.id for state in entering])
        return entering

    def _park(self, state: RequestState) -> None:
        slot = next(slot for slot, other in self._slots.items() if other is state)
        del self._slots[slot]
        self._parks.append((slot, state.request.id))
        self._ready.append(state)

    def _without(self, images: Container[ImageId]) -> None:
        """Take images out of those that have no slot."""
        self._ready = deque(state for state in self._ready if state.request.id not in images)
        self._waiting = deque(state for state in self._waiting if state.request.id not in images)

    def _entering(self, room: int) -> list[RequestState]:
        """Take, in order, as many as there is room for; first those that are ready."""
        entering: list[RequestState] = []
        for queue in (self._ready, self._waiting):
            while queue and len(entering) < room and self._fits(queue[0], entering):
                entering.append(queue.popleft())
        return entering

    def _fits(self, state: RequestState, entering: list[RequestState]) -> bool:
        """Return whether an image may enter beside others. Where calls differ, all images must be at the same call.

        One whose step raised runs alone there: only its own error may fail it.
        """
        if not self._modes:
            return True
        alone = {state.request.id, *(other.request.id for other in entering)} & self._repeated
        return not self._slots and all(other.call == state.call and not alone for other in entering)

    def _mode(self) -> ForwardMode:
        if not self._modes or not self._slots:
            return FULL
        return self._modes[next(iter(self._slots.values())).call]

    def _take_out(self, plan: StepPlan, result: StepResult, update: BatchUpdate) -> None:
        """Remove the images that could not be prepared."""
        slots = {image: slot for slot, image in plan.entries}
        waiting = {state.request.id: state for state in self._waiting}

        def taken(image: ImageId) -> RequestState:
            if image in slots:
                return self._slots.pop(slots[image])
            self._waiting.remove(waiting[image])
            return waiting[image]

        update.ended += [(taken(image).request, failure) for image, failure in result.refused]
        update.fallback += [taken(image).request for image in result.unsteppable]
        self._waiting.extendleft(reversed([taken(image) for image in result.deferred if image in slots]))

    def _take_prefetched(self, result: StepResult) -> None:
        ready = set(result.prefetched)
        self._ready.extend(state for state in self._waiting if state.request.id in ready)
        self._waiting = deque(state for state in self._waiting if state.request.id not in ready)

    def _after_failure(self, failure: StepFailure, update: BatchUpdate) -> None:
        """Decide what becomes of the images whose step raised.

        Where memory did not suffice, the batch gets smaller. Else they run again, one by one and from the beginning:
        only the culprit fails. One whose pixels must repeat is first run again as it was: the pipeline's own call
        rounds differently. One whose calls differ is not run by that call at all, which computes every call's whole.
        """
        if failure.memory:
            if not self._shrink(update):
                update.ended += [(state.request, failure.failure) for state in self._leave_all()]
            return
        again: list[RequestState] = []
        for state in self._leave_all():
            if self._closed and state.request.id not in self._repeated:
                again.append(RequestState(state.request, state.calls))
            elif self._modes:
                update.ended.append((state.request, failure.failure))
            else:
                update.fallback.append(state.request)
        self._repeated.update(state.request.id for state in again)
        self._waiting.extendleft(reversed(again))

    def _leave_all(self) -> list[RequestState]:
        states = list(self._slots.values())
        self._frees += self._slots
        self._slots = {}
        return states

    def _shrink(self, update: BatchUpdate) -> bool:
        """Use smaller batches from now on, and park the last images; return False when there is no smaller one."""
        sizes = lowered(self._batch_sizes.sizes, self._size)
        if sizes[-1] >= self._size:
            return False
        self._batch_sizes.sizes = sizes
        for slot in reversed(list(self._slots)[sizes[-1] :]):
            state = self._slots.pop(slot)
            self._ready.appendleft(state)
            self._parks.append((slot, state.request.id))
        update.shrunk = self._size = sizes[-1]
        return True

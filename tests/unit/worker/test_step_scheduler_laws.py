"""Laws of the step scheduler, whatever arrives, is cancelled or fails.

Each image has one slot, makes every call once and in order, and ends once. Numbers stand for an executor's tensors.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from kubediffusion.resources.failures import ErrorCode, JobFailure
from kubediffusion.worker.engine import ImageId
from kubediffusion.worker.engine.arrangement import sizes_up_to
from kubediffusion.worker.engine.forward_mode import FULL
from kubediffusion.worker.engine.plan import SlotCall, StepFailure, StepPlan, StepResult
from kubediffusion.worker.engine.scheduler import StepScheduler
from unit.worker.worker_builders import image_request

FAILURE = JobFailure(ErrorCode.PIPELINE_FAILED, "broken")


@dataclass
class Limit:
    sizes: tuple[int, ...]


@dataclass
class Slots:
    """What an executor holds: the image of each slot, and the calls that each image has made."""

    images: dict[int, ImageId] = field(default_factory=dict)
    parked: set[ImageId] = field(default_factory=set)
    dropped: set[ImageId] = field(default_factory=set)
    calls: dict[ImageId, int] = field(default_factory=dict)

    def drop(self, images: Sequence[ImageId]) -> None:
        """Forget images that no plan may name."""
        self.parked -= set(images)
        self.dropped |= set(images)

    def apply(self, plan: StepPlan) -> None:
        assert not {image for _, image in plan.parks} & self.dropped
        assert pickle.loads(pickle.dumps(plan)) == plan  # noqa: S301 - our own bytes
        for slot in plan.frees:
            self.images.pop(slot, None)
        for slot, image in plan.parks:
            assert self.images.pop(slot) == image
            self.parked.add(image)
        for source, target in plan.moves:
            assert target not in self.images
            self.images[target] = self.images.pop(source)
        for slot, image in plan.entries:
            assert slot not in self.images
            assert image not in self.images.values()
            if image not in self.parked:
                # A new one begins anew, also after an error.
                self.calls[image] = 0
            self.parked.discard(image)
            self.images[slot] = image
        assert {call.slot: call.image for call in plan.calls} == self.images
        assert all(slot < plan.size for slot in self.images)

    def step(self, calls: Sequence[SlotCall]) -> None:
        for call in calls:
            assert call.call == self.calls[call.image]
            self.calls[call.image] += 1
            if call.last:
                del self.images[call.slot]


EVENTS = st.sampled_from(["step"] * 8 + ["memory", "error", "refuse", "defer", "undecoded"])


@given(
    limit=st.integers(1, 8),
    prepared=st.booleans(),
    needs=st.lists(st.integers(1, 6), min_size=1, max_size=12),
    joins=st.lists(st.integers(0, 20), min_size=12, max_size=12),
    cancels=st.dictionaries(st.integers(0, 11), st.integers(0, 20), max_size=4),
    events=st.lists(EVENTS, max_size=40),
    alike=st.booleans(),
    ranks=st.lists(st.integers(0, 2), min_size=12, max_size=12),
)
def test_every_image_makes_every_call_once_and_ends_once(
    limit: int,
    prepared: bool,
    needs: list[int],
    joins: list[int],
    cancels: dict[int, int],
    events: list[str],
    alike: bool,
    ranks: list[int],
) -> None:
    if alike:
        # They begin together, and nobody joins.
        needs, joins = [needs[0]] * len(needs), [0] * len(joins)
    sizes = Limit(sizes_up_to(limit, prepared=prepared))
    scheduler = StepScheduler(sizes, modes=(FULL,) * needs[0] if alike else ())
    slots, ended = Slots(), list[ImageId]()
    requests = [image_request(index) for index in range(len(needs))]
    waiting = sorted(range(len(needs)), key=lambda index: joins[index])
    turn = 0
    while scheduler.busy or waiting:
        while waiting and (joins[waiting[0]] <= turn or not scheduler.busy):
            index = waiting.pop(0)
            scheduler.add(requests[index], needs[index])
        gone = {requests[index].id for index, at in cancels.items() if index < len(needs) and at <= turn}
        dropped = scheduler.drop(frozenset(request.id for request in requests if request.id not in gone).__contains__)
        slots.drop(dropped)
        ended += dropped
        plan = scheduler.next({}, priority=lambda image: ranks[image.index])
        slots.apply(plan)
        event = events[turn] if turn < len(events) else "step"
        result = outcome(event, plan)
        for image in (*(image for image, _ in result.refused), *result.deferred):
            del slots.images[next(slot for slot, held in slots.images.items() if held == image)]
        # Without those that were refused or deferred.
        calls = [call for call in plan.calls if call.slot in slots.images]
        if result.stepped:
            slots.step(calls)
        update = scheduler.update_from_result(plan, result)
        ended += [request.id for request, _ in update.ended] + [request.id for request in update.fallback]
        decoded = {call.image for call in calls if call.last and result.stepped} | set(plan.decodes)
        ended += [image for image in decoded if image not in {image for image, _ in result.undecoded}]
        turn += 1
        assert turn < 500
    assert sorted(ended, key=lambda image: image.index) == [request.id for request in requests]
    assert sizes.sizes


def outcome(event: str, plan: StepPlan) -> StepResult:
    """Say what comes of a plan."""
    if event in {"memory", "error"} and plan.calls:
        return StepResult(failure=StepFailure(FAILURE, memory=event == "memory"))
    new = tuple(image for _, image in plan.entries)
    refused = ((new[0], FAILURE),) if event == "refuse" and new else ()
    # There is always room for one that is alone.
    deferred = new[-1:] if event == "defer" and len(plan.calls) > 1 else ()
    out = {image for image, _ in refused} | set(deferred)
    left = [call for call in plan.calls if call.image not in out]
    done = [*plan.decodes, *(call.image for call in left if call.last)]
    undecoded = tuple((image, StepFailure(FAILURE, memory=True)) for image in done) if event == "undecoded" else ()
    prefetched = plan.prefetch if left else ()
    return StepResult(
        stepped=bool(left), refused=refused, deferred=deferred, undecoded=undecoded, prefetched=prefetched
    )

"""Who goes before the images of a running batch, between two of its steps: functions of the jobs at hand.

A job of a higher priority goes first, and one of the same that is much shorter. The images of another key have tensors
of their own, so those of the batch stay where they are and go on as if nothing had been (:func:`urgent_images`). One of
the batch's own key takes the slot of one of its images, which is parked: its latents, past outputs and conditions are
copied to the host's memory, which waits for the step that runs, and are copied back when it goes on. That is a few
megabytes each way, and no step is made twice.

Nobody starves: a batch is interrupted for no more steps than its longest image needs itself, and an image is parked at
most :data:`MOST_PARKS` times, and goes first when it has waited for as many steps as it needs itself
(:attr:`.RequestState.aged`).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from kubediffusion.resources.queue_order import queue_key
from kubediffusion.worker.engine.batching import Candidate, Portion
from kubediffusion.worker.engine.interface import Parkable
from kubediffusion.worker.engine.key import tensors_of
from kubediffusion.worker.engine.parking import goes_before, image_to_park

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class RunningBatch:
    """What decides who goes before the images of a running batch.

    Attributes:
        priority: The highest priority in it.
        left: Calls of the model until the last of its images is done.
        budget: Steps for which it may still be interrupted.
        parkable: Its images that may be parked.
    """

    priority: int
    left: int
    budget: int
    parkable: tuple[Parkable, ...] = ()


@dataclass(frozen=True)
class UrgentImages(Generic[K]):
    """Images that go before those of a running batch.

    Attributes:
        portions: The images, all of one key.
        joins: Whether that is the batch's own: they take slots of its images.
    """

    portions: tuple[Portion[K], ...] = ()
    joins: bool = False


def urgent_images(
    candidates: Iterable[Candidate[K]], key: Hashable, batch: RunningBatch, max_images: int
) -> UrgentImages[K]:
    """Choose the images that go before those of a running batch.

    Those of another key run to their end before the batch's next step, and all together make no more calls than its
    budget has. Those of its own key take slots of images that are parked; none does that past one of another key that
    waits for the batch's end, which would come later.

    Args:
        candidates: Jobs with images to make, in any order.
        key: What the batch's images share.
        batch: The batch.
        max_images: The most images.

    Returns:
        Images of one key, that of the first who may go before the batch.
    """
    parkable, budget = list(batch.parkable), batch.budget
    chosen: list[Portion[K]] = []
    chosen_key: Hashable = None
    others_wait = False
    for candidate in sorted(candidates, key=lambda c: queue_key(c.priority, c.created, c.name)):
        calls, count = candidate.plan.calls, 0
        if chosen and candidate.plan.key != chosen_key:
            pass
        elif candidate.plan.key == key:
            most = 0 if others_wait else min(candidate.remaining, max_images)
            while count < most and (place := image_to_park(candidate.priority, calls, parkable)) is not None:
                del parkable[place]
                count += 1
        elif _may_interrupt(candidate, key, batch):
            count = min(candidate.remaining, max_images, budget // calls)
            budget -= count * calls
        if count > 0:
            chosen.append(Portion(candidate.key, candidate.first, count))
            chosen_key, max_images = candidate.plan.key, max_images - count
        others_wait = others_wait or candidate.plan.key != key
    return UrgentImages(tuple(chosen), joins=bool(chosen) and chosen_key == key)


def _may_interrupt(candidate: Candidate[K], key: Hashable, batch: RunningBatch) -> bool:
    """Return whether a job may run while the batch waits: its images have tensors of their own, and it is urgent."""
    if not candidate.plan.joins or tensors_of(candidate.plan.key) == tensors_of(key):
        return False
    return goes_before(candidate.priority, candidate.plan.calls, batch.priority, batch.left)

"""Who may interrupt a running batch between two of its steps: a function of the jobs at hand.

The images of another key have tensors of their own, so those of the batch stay where they are and go on as if nothing
had been. A job of a higher priority interrupts, and one of the same that is much shorter. Nobody starves: a batch is
interrupted for no more steps than its longest image needs itself.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import TypeVar

from kubediffusion.resources.queue_order import queue_key
from kubediffusion.worker.engine.batching import Candidate, Portion
from kubediffusion.worker.engine.key import tensors_of

K = TypeVar("K", bound=Hashable)

MUCH_SHORTER = 4
"""By what factor an image needs fewer calls than the batch has left, to go before it at the same priority."""


def interrupting(
    candidates: Iterable[Candidate[K]], key: Hashable, priority: int, left: int, budget: int, max_images: int
) -> tuple[Portion[K], ...]:
    """Choose the images that go before the rest of a running batch; they run to their end.

    Args:
        candidates: Jobs with images to make, in any order.
        key: What the batch's images share.
        priority: The highest priority in the batch.
        left: Calls of the model until the last of the batch's images is done.
        budget: Steps for which the batch may still be interrupted.
        max_images: The most images.

    Returns:
        Images of one key; all together make no more calls than the budget has.
    """

    def may(candidate: Candidate[K]) -> bool:
        if not candidate.plan.joins or tensors_of(candidate.plan.key) == tensors_of(key):
            return False
        shorter = candidate.plan.calls * MUCH_SHORTER <= left
        return candidate.priority > priority or (candidate.priority == priority and shorter)

    chosen: list[Portion[K]] = []
    chosen_key: Hashable = None
    for candidate in sorted(filter(may, candidates), key=lambda c: queue_key(c.priority, c.created, c.name)):
        if chosen and candidate.plan.key != chosen_key:
            continue
        count = min(candidate.remaining, max_images, budget // candidate.plan.calls)
        if count > 0:
            chosen.append(Portion(candidate.key, candidate.first, count))
            chosen_key, max_images, budget = (
                candidate.plan.key,
                max_images - count,
                budget - count * candidate.plan.calls,
            )
    return tuple(chosen)

"""What the runner asks for images that begin a batch, join it or interrupt it, with a bound on how long one waits.

The rules are in :mod:`.batching` and :mod:`.preemption`; this keeps who waits since when.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

from kubediffusion.worker.engine.batching import Candidate, Portion, joining_images, next_batch
from kubediffusion.worker.engine.interface import EntryLimit
from kubediffusion.worker.engine.preemption import RunningBatch, UrgentImages, urgent_images
from kubediffusion.worker.engine.waits import Waits

K = TypeVar("K", bound=Hashable)


class ImageSelector(Generic[K]):
    """Chooses images by priority and age, as many as throughput is best with. None waits beyond a bound.

    Steps count those of all batches. Nothing is read but what is given, so the choice can be simulated.

    Args:
        max_images: The most images in a batch.
    """

    def __init__(self, max_images: int) -> None:
        self._max_images = max_images
        self._waits: Waits[tuple[K, int]] = Waits()

    def begin(self, candidates: Sequence[Candidate[K]], step: int) -> tuple[Portion[K], ...]:
        """Choose the images that begin a batch.

        Args:
            candidates: Jobs with images to make, in any order; at least one.
            step: Steps that have been run.
        """
        portions = next_batch(candidates, self._max_images)
        plan = next(candidate.plan for candidate in candidates if candidate.key == portions[0].key)
        if not plan.joins:
            self._waits.note({}, step)
            return portions
        # The others join when that makes the batch do more; until then they can go elsewhere.
        return self.join(candidates, plan.key, self._max_images, 0, plan.entry_limit, step)

    def join(
        self,
        candidates: Sequence[Candidate[K]],
        key: Hashable,
        room: int,
        calls: int,
        entry_limit: EntryLimit,
        step: int,
    ) -> tuple[Portion[K], ...]:
        """Choose the images that enter a running batch.

        Args:
            candidates: Jobs with images to make, in any order.
            key: What the batch's images share.
            room: How many may enter.
            calls: Calls of the model until the last of the batch's images is done.
            entry_limit: Tells how many of those who wait are to enter.
            step: Steps that will have been run when they enter.
        """
        return joining_images(candidates, key, room, calls, entry_limit=entry_limit, waits=self._waits, step=step)

    def preempt(self, candidates: Sequence[Candidate[K]], key: Hashable, batch: RunningBatch) -> UrgentImages[K]:
        """Choose the images that go before those of a running batch: see :mod:`.preemption`.

        Args:
            candidates: Jobs with images to make, in any order.
            key: What the batch's images share.
            batch: The batch.
        """
        return urgent_images(candidates, key, batch, self._max_images)

    def due(self, image: tuple[K, int], step: int) -> int:
        """Return before which step an image enters at the latest; ``step`` for one that did not have to wait."""
        return self._waits.due(image, step)

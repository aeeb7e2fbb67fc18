"""How long an image may wait for a slot that is there: a bound in steps of the running batch. Numbers only.

A batch takes on as many images as make it do the most (:mod:`.throughput`), so who comes later may wait until another
ends. How long that takes has nothing to do with its own length; the bound has.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

PATIENCE = 2
"""An image waits at most for so many times as many steps as it needs itself. With 1 even short jobs end later, since
batches then do less: see docs/adr/0015-as-many-images-as-do-the-most.md."""


class Waits(Generic[K]):
    """Which images could enter the running batch, and the step before which each enters at the latest."""

    def __init__(self) -> None:
        self._due: dict[K, int] = {}

    def note(self, images: Mapping[K, int], step: int) -> int:
        """Note the images that could enter before a step. Others are forgotten: they wait for something else.

        Args:
            images: How many calls of the model each needs, in the order in which they enter; for each there is a slot.
            step: Steps that will have been run when they enter, in this batch and those before it.

        Returns:
            How many of them have waited long enough, first of all.
        """
        self._due = {image: self._due.get(image, step + PATIENCE * calls) for image, calls in images.items()}
        return overdue(due <= step for due in self._due.values())

    def due(self, image: K, step: int) -> int:
        """Return after how many steps an image enters at the latest; ``step`` for one that was not noted."""
        return self._due.get(image, step)


def overdue(waited: Iterable[bool]) -> int:
    """Return how many images enter before all else: up to the last that has waited long enough, as none is overtaken.

    Args:
        waited: Of each image in order whether it has waited long enough.
    """
    return max((place for place, long in enumerate(waited, start=1) if long), default=0)

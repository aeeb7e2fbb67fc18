"""Which image of a running batch sits in which slot, and how large the batch is: functions of numbers.

On a GPU a batch is computed in one of a few sizes, each of which the engine prepares once. Between two steps images
leave and enter; the batch then has the smallest size that holds what there is. Who stays keeps its slot, unless the
batch gets smaller than that: rounding depends on size and slot, so both change only where they must.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

SIZES = (1, 2, 4, 8, 16)
"""Batch sizes worth preparing: at 16 a GPU is close to its limit, and another size costs time and memory at start."""


@dataclass(frozen=True)
class Arrangement:
    """What a batch looks like for its next step.

    Attributes:
        size: Slots that are computed.
        moves: From which slot to which an image moves; the target is empty, and is no other's.
        entries: Slots of those who enter, in their order.
    """

    size: int
    moves: tuple[tuple[int, int], ...]
    entries: tuple[int, ...]


def sizes_up_to(limit: int, *, prepared: bool) -> tuple[int, ...]:
    """Return the sizes of batches of at most ``limit`` images, which is at least 1, smallest first.

    Args:
        limit: The most images.
        prepared: Whether a size is prepared before it is computed; if not, every size will do, and no slot is empty.
    """
    if not prepared:
        return tuple(range(1, limit + 1))
    return (*(size for size in SIZES if size < limit), limit)


def arrange(occupied: Collection[int], entering: int, sizes: Sequence[int]) -> Arrangement:
    """Arrange the next step.

    Args:
        occupied: Slots of those who stay.
        entering: How many enter; together they fit the largest size.
        sizes: Sizes that may be computed, smallest first.
    """
    size = next(size for size in sizes if size >= len(occupied) + entering)
    free = iter(slot for slot in range(size) if slot not in occupied)
    moves = tuple((slot, next(free)) for slot in sorted(occupied) if slot >= size)
    return Arrangement(size, moves, tuple(next(free) for _ in range(entering)))


def lowered(sizes: Sequence[int], size: int) -> tuple[int, ...]:
    """Return the sizes up to half of ``size``, which did not fit the device's memory; at least the smallest size."""
    return tuple(other for other in sizes if other <= size // 2) or (sizes[0],)

"""How many images a running batch takes on: as many as make it do the most, and no more.

A GPU computes two images in little more time than one, but sixteen take nearly eight times as long as two. Beyond the
size at which it is busy a larger batch only makes everybody in it slower; and a batch of five computed in eight slots
does less than one of four. With jobs of like length those that came first should then be finished first: serving all at
once by turns (processor sharing) makes each wait longer than serving them in order. Functions of numbers, no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WORTH = 1.01
"""By how much more a larger batch must do: less is what two measurements of the same differ by."""

_TRUSTED = 5
"""Steps of a size before its time is believed: the first may include its capture."""

_LASTING = 4096
"""Steps after which a time that was not confirmed is forgotten, so that the size is tried again."""

_SLOWER = 1.01
"""A step as fast as the fastest one is expected again, and a little less so with each that is not."""


@dataclass
class _Time:
    seconds: float
    compiled: bool
    count: int = 0
    noted: int = 0


class StepTimes:
    """Seconds of a step by batch size, as they were measured lately."""

    def __init__(self) -> None:
        self._times: dict[int, _Time] = {}
        self._steps = 0

    def note(self, size: int, seconds: float, *, compiled: bool = False) -> None:
        """Note what a step took. What comes between two steps makes one seem longer, never shorter."""
        self._steps += 1
        time = self._times.get(size)
        if time is None or time.compiled is not compiled:
            time = self._times[size] = _Time(seconds, compiled)
        time.seconds = min(seconds, time.seconds * _SLOWER)
        time.count += 1
        time.noted = self._steps

    @property
    def known(self) -> dict[int, float]:
        """The times by batch size, in seconds, that were measured often and lately enough."""
        return {
            size: time.seconds
            # A copy: another thread may note a time meanwhile.
            for size, time in list(self._times.items())
            if time.count >= _TRUSTED and self._steps - time.noted < _LASTING
        }


def count_entering(
    running: int, waiting: int, sizes: Sequence[int], seconds: Mapping[int, float], overdue: int = 0
) -> int:
    """Return how many of the waiting images enter now.

    Args:
        running: Images in the batch.
        waiting: Images that could enter.
        sizes: Batch sizes that may be computed, smallest first.
        seconds: What a step of a size takes. A size without a time is filled, which measures it.
        overdue: How many of those who wait have waited long enough, first of all: they enter while there is a slot.

    Returns:
        A number up to ``waiting`` that the largest size has room for; at least 1 where nobody runs.
    """
    most = min(running + waiting, sizes[-1])
    least = min(max(running + overdue, 1), most)
    best, most_done = least, _done(least, sizes, seconds)
    for images in range(least + 1, most + 1):
        done = _done(images, sizes, seconds)
        # Of what is not measured, the most: so the whole size is filled.
        if done is None or (most_done is not None and done > most_done * WORTH):
            best, most_done = images, done
    return max(best - running, 0)


def _done(images: int, sizes: Sequence[int], seconds: Mapping[int, float]) -> float | None:
    """Return the throughput of a batch in image steps per second; None where its size was not measured."""
    size = next(size for size in sizes if size >= images)
    return images / seconds[size] if size in seconds else None

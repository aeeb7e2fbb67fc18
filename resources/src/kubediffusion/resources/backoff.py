"""Pauses between tries of what fails: each twice as long as the one before, up to the longest."""

from __future__ import annotations

import random

_MOST_DOUBLINGS = 30
"""More make no difference to any longest pause, and after a day of failures would not fit a float."""


def pause_after(failures: int, first: float, longest: float) -> float:
    """Give the seconds to wait after so many failures in a row.

    Args:
        failures: How many, at least 1.
        first: Seconds after the first one.
        longest: Seconds at most.
    """
    return min(first * 2.0 ** min(failures - 1, _MOST_DOUBLINGS), longest)


class Backoff:
    """The pauses of one thing that is tried again and again.

    Each is shortened by chance, by up to a half: after an outage all come back, and should not all come at once.

    Args:
        first: Seconds after the first failure.
        longest: Seconds at most.
    """

    def __init__(self, first: float, longest: float) -> None:
        self._first = first
        self._longest = longest
        self._failures = 0

    def next_pause(self) -> float:
        """Count a failure, and give the seconds to wait after it."""
        self._failures += 1
        pause = pause_after(self._failures, self._first, self._longest)
        return pause * random.uniform(0.5, 1.0)  # noqa: S311 - not a secret

    def reset(self) -> None:
        """Begin anew, since it has worked."""
        self._failures = 0

"""Exponential backoff with jitter: each pause is twice as long as the one before, up to the longest.

stamina and tenacity wrap one call and own its loop. Here the operator computes pauses in pure functions from failures
that it counts in the cluster, and endless loops (watches, uploads, reports) take their next pause, honour the server's
Retry-After and say in a status meanwhile why they wait. docs/adr/0017 has the table.
"""

from __future__ import annotations

import random

_MOST_DOUBLINGS = 30
"""More make no difference to any longest pause, and after a day of failures would not fit a float."""


def pause_after(failures: int, first: float, longest: float) -> float:
    """Compute the seconds to wait after some failures in a row.

    Args:
        failures: Failures in a row, at least 1.
        first: Seconds after the first one.
        longest: Seconds at most.
    """
    return min(first * 2.0 ** min(failures - 1, _MOST_DOUBLINGS), longest)


class Backoff:
    """The pauses between the attempts of one operation.

    Each is shortened at random, by up to a half, so that clients do not return all at once after an outage.

    Args:
        first: Seconds after the first failure.
        longest: Seconds at most.
    """

    def __init__(self, first: float, longest: float) -> None:
        self._first = first
        self._longest = longest
        self._failures = 0

    def next_pause(self) -> float:
        """Count a failure and return the seconds to wait after it."""
        self._failures += 1
        pause = pause_after(self._failures, self._first, self._longest)
        return pause * random.uniform(0.5, 1.0)  # noqa: S311 - not a secret

    def reset(self) -> None:
        """Start again from the first pause, after a success."""
        self._failures = 0


class Backoffs:
    """The pauses of many operations, by a key of each; nothing is kept of one that has not failed.

    Args:
        first: Seconds after the first failure of one.
        longest: Seconds at most.
    """

    def __init__(self, first: float, longest: float) -> None:
        self._first = first
        self._longest = longest
        self._backoffs: dict[str, Backoff] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._backoffs

    def next_pause(self, key: str) -> float:
        """Count a failure of an operation and return the seconds to wait after it."""
        return self._backoffs.setdefault(key, Backoff(self._first, self._longest)).next_pause()

    def forget(self, key: str) -> None:
        """Forget the failures of an operation: it has succeeded, or is not tried any more."""
        self._backoffs.pop(key, None)

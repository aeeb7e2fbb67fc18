"""How long a refused write is tried again: a denied prefix or a policy lasts until somebody changes it."""

from __future__ import annotations

import time
from collections.abc import Callable

from kubediffusion.resources.backoff import Backoff

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 60.0
"""Seconds between two tries at most. An outage is tried more often: it passes by itself."""


class RefusalBackoff:
    """Counts the refusals in a row of one write, and says how long to wait after each.

    Args:
        seconds: How long the write is tried again.
        clock: Returns monotonic seconds.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._backoff = Backoff(FIRST_PAUSE, LONGEST_PAUSE)
        self._since: float | None = None

    def next_pause(self) -> float | None:
        """Count a refusal, and return the seconds to wait after it; None when the write is to be given up."""
        now = self._clock()
        if self._since is None:
            self._since = now
        left = self._since + self._seconds - now
        # The last try is not before the time is over, and not long after it.
        return None if left <= 0 else min(self._backoff.next_pause(), left)

    def reset(self) -> None:
        """Forget the refusals: the write was answered otherwise since."""
        self._since = None
        self._backoff.reset()

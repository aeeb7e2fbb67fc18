"""Decides what ``/livez`` and ``/readyz`` answer.

The probes are answered on the event loop, so a stuck loop fails them by its silence. That leaves the engine's thread,
which must show signs of life while it has a batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class Health:
    """Records what the engine does, and answers the probes from it.

    Args:
        stuck_seconds: Seconds without a step after which the engine counts as stuck.
        clock: Returns monotonic seconds.
    """

    def __init__(self, stuck_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._stuck_seconds = stuck_seconds
        self._clock = clock
        self._active_at: float | None = None
        self._unready_reason: str | None = "starting"
        self._cut_off_reason: str | None = None

    def mark_unready(self, reason: str) -> None:
        """Set why the worker cannot take jobs; ``/readyz`` answers with it."""
        self._unready_reason = reason

    def mark_ready(self) -> None:
        """Let ``/readyz`` succeed: the worker takes jobs."""
        self._unready_reason = None

    def mark_cut_off(self, reason: str) -> None:
        """Set why the worker does not learn of its jobs; ``/readyz`` answers with it until it is connected again."""
        self._cut_off_reason = reason

    def mark_connected(self) -> None:
        """Record that the worker learns of its jobs."""
        self._cut_off_reason = None

    def engine_active(self) -> None:
        """Record that the engine began a batch or made a step."""
        self._active_at = self._clock()

    def engine_idle(self) -> None:
        """Record that the engine has nothing to do: silence is no failure then."""
        self._active_at = None

    def liveness_failure(self) -> str | None:
        """Return why the process should be restarted; None while it is alive."""
        active_at = self._active_at
        if active_at is not None and (silence := self._clock() - active_at) > self._stuck_seconds:
            return f"the engine has shown no sign of life for {silence:.0f} s"
        return None

    def readiness_failure(self) -> str | None:
        """Return why the worker takes no jobs; None while it does."""
        return self._unready_reason or self._cut_off_reason

"""Whether the worker is alive and ready: what ``/livez`` and ``/readyz`` answer.

The probes are answered on the event loop, so a stuck loop fails them by silence; what is left to decide is whether the
engine shows signs of life.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class Health:
    """Gathers signs of life.

    Args:
        stuck_seconds: A batch that shows no sign of life for this long is stuck.
        clock: Monotonic seconds.
    """

    def __init__(self, stuck_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._stuck_seconds = stuck_seconds
        self._clock = clock
        self._sign: float | None = None
        self._waiting_for: str | None = "starting"

    def waits_for(self, what: str | None) -> None:
        """Note what the worker still needs before it can take jobs; None once it is ready."""
        self._waiting_for = what

    def beat(self) -> None:
        """Note a sign of life of the engine: a batch began or made a step."""
        self._sign = self._clock()

    def rest(self) -> None:
        """Note that the engine has nothing to do."""
        self._sign = None

    def live(self) -> str | None:
        """Tell what is wrong with the process, or None."""
        sign = self._sign
        if sign is not None and (silence := self._clock() - sign) > self._stuck_seconds:
            return f"the engine has shown no sign of life for {silence:.0f} s"
        return None

    def ready(self) -> str | None:
        """Tell why the worker takes no jobs, or None."""
        return self._waiting_for

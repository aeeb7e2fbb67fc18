"""Whether a container starts again, and how long it waits before it does."""

from __future__ import annotations

from dataclasses import dataclass

ALWAYS = "Always"
ON_FAILURE = "OnFailure"
NEVER = "Never"


def should_restart(policy: str, exit_code: int) -> bool:
    """Return whether a container that ended starts again."""
    return policy == ALWAYS or (policy == ON_FAILURE and exit_code != 0)


@dataclass(frozen=True)
class CrashBackoff:
    """Kubelet's crash back-off: the first restart is immediate, then the wait doubles up to a limit.

    Attributes:
        initial: Seconds before the second restart.
        limit: The longest wait in seconds.
        forgiven_after: Seconds that a container must run for its crashes to be forgotten.
    """

    initial: float = 10.0
    limit: float = 300.0
    forgiven_after: float = 600.0

    def delay(self, crashes: int) -> float:
        """Return the seconds to wait after a number of ends in a row."""
        if crashes <= 1:
            return 0.0
        # A float's exponent is bounded, and a container may crash for weeks.
        return min(self.initial * 2.0 ** min(crashes - 2, 64), self.limit)

    def count(self, crashes: int, ran_seconds: float) -> int:
        """Return the number of ends in a row after one more, of a container that ran for some seconds."""
        return 1 if ran_seconds >= self.forgiven_after else crashes + 1

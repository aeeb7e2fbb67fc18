"""What a series of probe answers says about a container."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kubediffusion.local.node.objects import Probe


@dataclass(frozen=True)
class ProbeState:
    """The verdict so far, and the run of equal answers that may overturn it.

    Attributes:
        verdict: Whether the container counts as passing; None until enough answers agree.
        answer: The last answer.
        streak: How many of the last answers were the same as that one.
    """

    verdict: bool | None = None
    answer: bool | None = None
    streak: int = 0

    def observe(self, answer: bool, probe: Probe) -> ProbeState:
        """Return the state after one more answer: thresholds count answers in a row."""
        streak = self.streak + 1 if answer == self.answer else 1
        threshold = probe.success_threshold if answer else probe.failure_threshold
        state = replace(self, answer=answer, streak=streak)
        return replace(state, verdict=answer) if streak >= threshold else state

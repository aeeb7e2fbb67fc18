"""Decides when progress is written, from the time and from what was written before.

A job says Running only if its batch has not ended within a second, then its progress at most once a second. The whole
worker writes progress at most ten times a second: the caller asks no more often.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

JOB_PERIOD = 1.0
"""Seconds between two writes of a job, and before its first."""

LONGEST_PERIOD = 60.0
"""Seconds between two writes of a job at most, after writes in a row that were not accepted."""

WORKER_PERIOD = 0.1
"""Seconds between two writes of the worker."""


@dataclass(frozen=True)
class ProgressState(Generic[K]):
    """The progress of a job, and what of it was written.

    Attributes:
        key: Identifies the job.
        started_at: When the engine was given its first image, in monotonic seconds.
        step: Denoising steps done.
        written_at: When progress was last written, in monotonic seconds; None before the first time.
        written_step: The step that was written then.
        period: Seconds between two writes; longer after writes that were not accepted.
    """

    key: K
    started_at: float
    step: int
    written_at: float | None = None
    written_step: int | None = None
    period: float = JOB_PERIOD

    @property
    def due_at(self) -> float:
        """The earliest time of the next write, in monotonic seconds."""
        return (self.started_at if self.written_at is None else self.written_at) + self.period


def next_due(states: Iterable[ProgressState[K]], now: float) -> K | None:
    """Return the key of the job whose progress to write now: of those with a new step, the one due the longest.

    Args:
        states: The jobs that are computed.
        now: Monotonic seconds.
    """
    due = [s for s in states if s.due_at <= now and s.step != s.written_step]
    return min(due, key=lambda s: s.due_at).key if due else None

"""When progress is worth a write: a function of the time and of what was written.

A job says Running only if its batch has not ended within a second, then its progress at most once a second. The whole
worker writes progress at most ten times a second: the caller asks no more often.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

EVERY = 1.0
"""Seconds between two writes of a job, and before its first."""

TICK = 0.1
"""Seconds between two writes of the worker."""


@dataclass(frozen=True)
class Standing(Generic[K]):
    """What there is to say about a job.

    Attributes:
        key: Names the job.
        began: Monotonic seconds at which the engine got it.
        step: Denoising steps done.
        written_at: When progress was last written; None before the first time.
        written_step: What was written then.
    """

    key: K
    began: float
    step: int
    written_at: float | None = None
    written_step: int | None = None

    @property
    def due_at(self) -> float:
        """The earliest moment for the next write."""
        return (self.began if self.written_at is None else self.written_at) + EVERY


def next_due(standings: Iterable[Standing[K]], now: float) -> K | None:
    """Choose the job whose progress to write now: the one that is overdue the longest, if any has something new."""
    due = [s for s in standings if s.due_at <= now and s.step != s.written_step]
    return min(due, key=lambda s: s.due_at).key if due else None

"""How many finished jobs each namespace has, and which of them are too many. No I/O."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from kubediffusion.operator.deadline_queue import DeadlineQueue
from kubediffusion.resources.generation_job import GenerationJob

_KEPT_FREE_DIVISOR = 10
"""A tenth of a quota that counts jobs, and one job at least, is kept free of finished ones."""

LEAST_AGE = dt.timedelta(seconds=60)
"""How long a finished job stays although a quota is full: who asked for it can read how it ended."""


class FinishedCount(NamedTuple):
    """Finished jobs of a namespace: how many there are, and how many are kept; None for any number."""

    number: int
    limit: int | None


@dataclass
class _Namespace:
    """Finished jobs of one namespace.

    Attributes:
        kept: Those that stay, by the time at which they finished.
        surplus: Uids of those that go, as there are too many.
    """

    kept: DeadlineQueue = field(default_factory=DeadlineQueue)
    surplus: set[str] = field(default_factory=set)


class FinishedJobs:
    """The finished jobs of all namespaces, by age.

    Args:
        most: Finished jobs of one namespace that are kept; 0 for any number.
        unfinished: Returns how many unfinished jobs a namespace has: they count against its quota too.

    Attributes:
        quotas: How many jobs a namespace may have, where a ResourceQuota says so.
    """

    def __init__(self, most: int, unfinished: Callable[[str], int]) -> None:
        self.quotas: Mapping[str, int] = {}
        self._most = most
        self._unfinished = unfinished
        self._namespaces: dict[str, _Namespace] = {}

    def add(self, job: GenerationJob) -> None:
        """Count a job, if it has finished."""
        finished = job.status.completion_time
        if finished is None:
            return
        known = self._namespaces.setdefault(job.metadata.namespace, _Namespace())
        if job.uid not in known.surplus:
            known.kept.add(finished, job)

    def remove(self, uid: str) -> None:
        """Remove a job that is gone."""
        for known in self._namespaces.values():
            known.kept.remove(uid)
            known.surplus.discard(uid)

    def is_surplus(self, job: GenerationJob) -> bool:
        """Return whether a job goes since its namespace has more than are kept."""
        known = self._namespaces.get(job.metadata.namespace)
        return known is not None and job.uid in known.surplus

    def take_surplus(self, now: dt.datetime) -> Iterator[tuple[str, str, str]]:
        """Yield namespace, name and uid of the finished jobs that are too many, the oldest of each namespace first."""
        for namespace, known in self._namespaces.items():
            while (oldest := known.kept.next_due) is not None and self._too_many(namespace, known, now - oldest):
                entry = known.kept.pop_first()
                known.surplus.add(entry[2])
                yield entry

    def counts(self) -> dict[str, FinishedCount]:
        """Return the count of each namespace that has finished jobs, and forget the namespaces that have none."""
        self._namespaces = {name: known for name, known in self._namespaces.items() if known.kept or known.surplus}
        return {
            name: FinishedCount(len(known.kept) + len(known.surplus), self._limit(name))
            for name, known in self._namespaces.items()
        }

    def _too_many(self, namespace: str, known: _Namespace, age: dt.timedelta) -> bool:
        """Return whether the oldest job of a namespace goes, which finished ``age`` ago."""
        number = len(known.kept)
        admitted = self._quota_limit(namespace)
        if admitted is not None and number > admitted and age >= LEAST_AGE:
            return True
        return bool(self._most) and number > self._most

    def _limit(self, namespace: str) -> int | None:
        bounds = [self._quota_limit(namespace), self._most or None]
        return min((bound for bound in bounds if bound is not None), default=None)

    def _quota_limit(self, namespace: str) -> int | None:
        """Return how many finished jobs a quota leaves room for; None without one, or where it admits none anyway."""
        quota = self.quotas.get(namespace, 0)
        if quota <= 0:
            return None
        return max(quota - self._unfinished(namespace) - max(quota // _KEPT_FREE_DIVISOR, 1), 0)

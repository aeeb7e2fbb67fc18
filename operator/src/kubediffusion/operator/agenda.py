"""Moments at which something is due although nothing changes. No I/O."""

from __future__ import annotations

import datetime as dt
import heapq
from collections.abc import Iterator

from kubediffusion.resources.generation_job import GenerationJob


class Agenda:
    """Deadlines or times to live of jobs.

    A heap: what is due costs nothing until it is.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[dt.datetime, str, str, str]] = []

    def add(self, due: dt.datetime, job: GenerationJob) -> None:
        """Note that a job is due then. Several entries of one job do no harm: it is judged anew each time."""
        heapq.heappush(self._heap, (due, job.metadata.namespace, job.name, job.uid))

    def pop_due(self, now: dt.datetime) -> Iterator[tuple[str, str, str]]:
        """Give and forget what is due, one by one: namespace, name and uid."""
        while self._heap and self._heap[0][0] <= now:
            _, namespace, name, uid = heapq.heappop(self._heap)
            yield namespace, name, uid

    @property
    def next_due(self) -> dt.datetime | None:
        """When the next entry is due."""
        return self._heap[0][0] if self._heap else None

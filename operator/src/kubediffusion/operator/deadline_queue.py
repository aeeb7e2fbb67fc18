"""Moments at which something is due although nothing changes. No I/O."""

from __future__ import annotations

import datetime as dt
import heapq
from collections.abc import Iterator

from kubediffusion.resources.generation_job import GenerationJob

_Entry = tuple[dt.datetime, str, str, str]


def time_after(start: dt.datetime, seconds: float) -> dt.datetime | None:
    """Return the moment so many seconds later; None where the calendar ends before, as nothing is due then.

    A status may say anything that is a date, the year 9999 included.
    """
    try:
        return start + dt.timedelta(seconds=seconds)
    except OverflowError:
        return None


class DeadlineQueue:
    """Deadlines or times to live of jobs, one moment each.

    A heap: what is due costs nothing until it is. Entries that no longer count stay in it until they are more than
    those that do.
    """

    def __init__(self) -> None:
        self._heap: list[_Entry] = []
        self._due: dict[str, dt.datetime] = {}
        """When a job is due, by uid: an entry of another moment no longer counts."""

    def __len__(self) -> int:
        """Return how many jobs will be due."""
        return len(self._due)

    def add(self, due: dt.datetime, job: GenerationJob) -> None:
        """Note that a job is due then, and no longer when it was noted to be before."""
        if self._due.get(job.uid) == due:
            return
        self._due[job.uid] = due
        heapq.heappush(self._heap, (due, job.metadata.namespace, job.name, job.uid))
        self._compact()

    def drop(self, uid: str) -> None:
        """Forget a job."""
        if self._due.pop(uid, None) is not None:
            self._compact()

    def pop_due(self, now: dt.datetime) -> Iterator[tuple[str, str, str]]:
        """Return and forget what is due, one by one: namespace, name and uid."""
        while (due := self.next_due) is not None and due <= now:
            _, namespace, name, uid = heapq.heappop(self._heap)
            del self._due[uid]
            self._compact()
            yield namespace, name, uid

    @property
    def next_due(self) -> dt.datetime | None:
        """When the next job is due."""
        while self._heap and not self._counts(self._heap[0]):
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def _counts(self, entry: _Entry) -> bool:
        due, _, _, uid = entry
        return self._due.get(uid) == due

    def _compact(self) -> None:
        if len(self._heap) > 2 * len(self._due):
            # A job that came back to an earlier moment has two equal entries.
            self._heap = list(set(filter(self._counts, self._heap)))
            heapq.heapify(self._heap)

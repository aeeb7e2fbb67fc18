"""Moments at which something is due although nothing changes. No I/O."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator

from sortedcontainers import SortedList

from kubediffusion.resources.generation_job import GenerationJob

_Entry = tuple[dt.datetime, str, str, str]


def time_after(start: dt.datetime, seconds: float) -> dt.datetime | None:
    """Return the time ``seconds`` after a start; None where the calendar ends before, as nothing is due then.

    A status may say anything that is a date, the year 9999 included.
    """
    try:
        return start + dt.timedelta(seconds=seconds)
    except OverflowError:
        return None


class DeadlineQueue:
    """Deadlines or times to live of jobs, one moment each: what is due costs nothing until it is."""

    def __init__(self) -> None:
        self._entries = SortedList()
        self._by_uid: dict[str, _Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, due: dt.datetime, job: GenerationJob) -> None:
        """Set the moment at which a job is due, instead of an earlier one that was set."""
        self.add_entry(due, job.metadata.namespace, job.name, job.uid)

    def add_entry(self, due: dt.datetime, namespace: str, name: str, uid: str) -> None:
        """Set the moment at which a job is due, by what :meth:`pop_due` yields of it."""
        self.remove(uid)
        entry = (due, namespace, name, uid)
        self._by_uid[uid] = entry
        self._entries.add(entry)

    def remove(self, uid: str) -> None:
        """Remove a job, if it is there."""
        entry = self._by_uid.pop(uid, None)
        if entry is not None:
            self._entries.remove(entry)

    def pop_due(self, now: dt.datetime) -> Iterator[tuple[str, str, str]]:
        """Remove the jobs that are due, the earliest first, and yield namespace, name and uid of each."""
        while (due := self.next_due) is not None and due <= now:
            yield self.pop_first()

    def pop_first(self) -> tuple[str, str, str]:
        """Remove the job that is due first, whenever that is, and return its namespace, name and uid."""
        _, namespace, name, uid = self._entries.pop(0)
        del self._by_uid[uid]
        return namespace, name, uid

    @property
    def next_due(self) -> dt.datetime | None:
        """When the next job is due; None where none is."""
        return self._entries[0][0] if self._entries else None

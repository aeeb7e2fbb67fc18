"""What changed in the cache, in the order of resource versions: a reader needs to remember one number, and no more.

Every version of every GenerationJob comes from one sequence, the API server's. A reader that knows all up to a version
gets what came after it, each job once and as it is now; so nothing is kept for a slow reader, and a reader that comes
from another replica goes on with the number that it had there.
"""

from __future__ import annotations

import asyncio
from collections import deque
from itertools import islice
from typing import NamedTuple

from sortedcontainers import SortedList

from kubediffusion.api.job_cache.records import CachedJob

KEPT_DELETIONS = 1000
"""Deletions that are remembered, the last ones: what is gone has no state that could be told later."""

LAST_NAME = "\uffff"
"""Sorts after every name of a job."""


class Change(NamedTuple):
    """A job, and the version since which its state is what it is."""

    version: int
    name: str


class Deletion(NamedTuple):
    """A job that was deleted, as it was last; ``number`` counts the deletions that this process has seen."""

    number: int
    version: int
    job: CachedJob


class ChangeLog:
    """The jobs of a cache by the version of their last change, and the last deletions.

    Attributes:
        watched: The newest version that the watch has shown: all changes up to it are here.
        deletions: How many deletions this process has seen.
    """

    def __init__(self) -> None:
        self.watched = 0
        self.deletions = 0
        self._changes: SortedList[Change] = SortedList()
        self._deleted: deque[Deletion] = deque(maxlen=KEPT_DELETIONS)
        self._news = asyncio.Event()

    def add(self, job: CachedJob) -> None:
        """Put in a job that has come or changed."""
        self._changes.add(Change(job.changed, job.name))

    def discard(self, job: CachedJob) -> None:
        """Take out a job that has gone, or is about to be put in anew."""
        self._changes.remove(Change(job.changed, job.name))

    def on_watched(self, job: CachedJob, gone: bool) -> None:
        """Note how far the watch is, and what it says is deleted; then wake whoever waits."""
        self.watched = max(self.watched, job.version)
        if gone:
            self.deletions += 1
            # Not its own version: where a list tells of a deletion, that is an old one.
            self._deleted.append(Deletion(self.deletions, self.watched, job))
        self.wake()

    def wake(self) -> None:
        """Wake whoever waits for news."""
        self._news.set()
        self._news.clear()

    async def wait(self) -> None:
        """Return once there may be news."""
        await self._news.wait()

    def after(self, version: int, limit: int) -> list[Change]:
        """List the changes that the watch has shown after a version, oldest first.

        A state that this process has written, and the watch has not shown yet, is not among them: what others wrote
        before it may be missing still.
        """
        newest = Change(self.watched, LAST_NAME)
        return list(islice(self._changes.irange(Change(version + 1, ""), newest), limit))

    def deletions_after(self, number: int, version: int = 0) -> list[Deletion]:
        """List the remembered deletions after a number of them and after a version, oldest first."""
        if self.deletions <= number:
            return []
        return [deletion for deletion in self._deleted if deletion.number > number and deletion.version > version]

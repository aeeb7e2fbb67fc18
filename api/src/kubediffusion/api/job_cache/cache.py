"""The jobs of the namespace as the watch shows them, with this replica's own writes put in at once.

Reading the cache costs the API server nothing. The cache is never ahead of the API server, and behind it by a watch's
delay, except for what this process has written itself: that is in the cache once the write is confirmed.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from heapq import merge
from itertools import product
from typing import TypeVar

from sortedcontainers import SortedList

from kubediffusion.api.job_cache.changes import ChangeLog
from kubediffusion.api.job_cache.records import AgeKey, CachedJob, JobRecord
from kubediffusion.resources.generation_job import Phase
from kubediffusion.resources.queue_order import QueueKey

UNCONFIRMED_SECONDS = 300.0
"""How long a job is kept that the watch has not shown. Only an object that was deleted between a read of this process
and a list of the watch never shows; everything else does within milliseconds, or when the API server is back."""

ANY = "*"
"""Stands for every phase, or every model, in the keys of the index; it is the name of neither."""

_Name = TypeVar("_Name", bound=Hashable)
_Key = TypeVar("_Key")

_Group = tuple[str, str | None]
"""Jobs of one phase (or :data:`ANY`) and one model (None: those that name none; or :data:`ANY`)."""


class JobCache:
    """Every job of the namespace by name, by age, and by place in the queue.

    Args:
        on_confirmed: Called with the seconds between a write of this process and the watch showing it.
        clock: Monotonic seconds.

    Attributes:
        changes: The jobs by their last change, for those who follow all of them.
    """

    def __init__(
        self,
        on_confirmed: Callable[[float], None] = lambda _seconds: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._jobs: dict[str, CachedJob] = {}
        # By age, in a list for each filter that a client may ask for: a page costs what is on it, not what is not.
        self._groups: dict[_Group, SortedList[AgeKey]] = {}
        self._queues: dict[str | None, SortedList[QueueKey[float]]] = {}
        self._unfinished = 0
        self._unfinished_by_client: Counter[str] = Counter()
        # When each job was put in that the watch has not shown; in that order.
        self._unconfirmed: dict[str, float] = {}
        self.changes = ChangeLog()
        # Whoever waits for a job to change, by its name.
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}
        self._on_confirmed = on_confirmed
        self._clock = clock

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def unfinished(self) -> int:
        """How many jobs are in no terminal phase."""
        return self._unfinished

    def unfinished_of(self, client: str) -> int:
        """Return how many jobs of one API key are in no terminal phase."""
        return self._unfinished_by_client[client]

    def get(self, name: str) -> CachedJob | None:
        """Return the newest known state of a job, or None."""
        return self._jobs.get(name)

    async def wait_until(self, name: str, condition: Callable[[CachedJob], bool]) -> CachedJob | None:
        """Return a job once a condition holds for it; None when it is not in the cache, or no more.

        Args:
            name: Name of the job.
            condition: Called now, and after each change of the job; it must not block.
        """
        while (job := self._jobs.get(name)) is not None and not condition(job):
            change = asyncio.get_running_loop().create_future()
            waiting = self._waiting.setdefault(name, [])
            waiting.append(change)
            try:
                await change
            finally:
                waiting.remove(change)
                if not waiting and self._waiting.get(name) is waiting:
                    del self._waiting[name]
        return job

    def on_change(self, record: JobRecord, gone: bool) -> None:
        """Apply one change that the watch shows; ``gone`` says that the job was deleted."""
        job = record.job
        if (written := self._unconfirmed.pop(job.name, None)) is not None:
            self._on_confirmed(self._clock() - written)
        if gone:
            known = self._jobs.get(job.name)
            # Another job of this name may have been created since.
            if known is not None and known.uid == job.uid:
                self._remove(known)
        else:
            self._put(job)
        self.changes.on_watched(job, gone)
        self._forget_unconfirmed()

    def remember(self, job: CachedJob) -> None:
        """Put in a job that this process has just written or read, ahead of the watch."""
        if job.name not in self._jobs:
            if job.version <= self.changes.watched:
                # The watch is past this version and the job is not here: it has been deleted since.
                return
            self._unconfirmed[job.name] = self._clock()
        self._put(job)
        self._forget_unconfirmed()

    def forget(self, name: str) -> None:
        """Take out a job that this process has just deleted; the watch will say the same."""
        if (job := self._jobs.get(name)) is not None:
            self._remove(job)
        self._unconfirmed.pop(name, None)

    def queue_position(self, job: CachedJob, default_model: str | None) -> int | None:
        """Count the jobs that run before this one among those that wait for its model, plus one.

        Args:
            job: The job.
            default_model: The model of jobs that name none.

        Returns:
            The position from 1; None when the job does not wait.
        """
        key = job.queue_key
        if key is None:
            return None
        ahead: int = sum(
            self._queues[queue].bisect_left(key)
            for queue in _names_of(job.model or default_model, default_model)
            if queue in self._queues
        )
        return ahead + 1

    def newest_first(
        self,
        before: AgeKey | None = None,
        phases: frozenset[Phase] | None = None,
        model: str | None = None,
        default_model: str | None = None,
    ) -> Iterator[CachedJob]:
        """Iterate over jobs from the newest on. The cache must not change meanwhile.

        Args:
            before: Only jobs older than this.
            phases: Only jobs in these phases; None for all.
            model: Only jobs of this model; None for all.
            default_model: The model of jobs that name none.
        """
        models: frozenset[str | None] = frozenset({ANY}) if model is None else _names_of(model, default_model)
        groups = (self._groups.get(group) for group in product(phases or {ANY}, models))
        ages = (
            group.irange(maximum=before, inclusive=(True, False), reverse=True) for group in groups if group is not None
        )
        for age in merge(*ages, reverse=True):
            yield self._jobs[age.name]

    def oldest_running(self, client: str | None) -> CachedJob | None:
        """Return the oldest job that runs; of one API key, or of all for None."""
        ages = self._groups.get((Phase.RUNNING, ANY), ())
        jobs = (self._jobs[age.name] for age in ages)
        return next((job for job in jobs if client is None or job.client == client), None)

    def _put(self, job: CachedJob) -> None:
        known = self._jobs.get(job.name)
        if known is not None:
            if job.version <= known.version:
                return
            if _results_equal(known, job):
                job.result = known.result
            if (known.uid, known.digest) == (job.uid, job.digest):
                job.changed = known.changed
            self._remove(known)
        self._jobs[job.name] = job
        self.changes.add(job)
        age = job.age_key
        for group in _groups_of(job):
            self._groups.setdefault(group, SortedList()).add(age)
        self._count_unfinished(job, 1)
        if (key := job.queue_key) is not None:
            self._queues.setdefault(job.model, SortedList()).add(key)
        self._wake(job.name)

    def _remove(self, job: CachedJob) -> None:
        del self._jobs[job.name]
        self.changes.discard(job)
        for group in _groups_of(job):
            _discard(self._groups, group, job.age_key)
        self._count_unfinished(job, -1)
        if (key := job.queue_key) is not None:
            _discard(self._queues, job.model, key)
        self._wake(job.name)

    def wake_all(self) -> None:
        """Have whoever waits look again: something that is no job has changed."""
        for name in self._waiting:
            self._wake(name)
        self.changes.wake()

    def _wake(self, name: str) -> None:
        for change in self._waiting.get(name, ()):
            if not change.done():
                change.set_result(None)

    def _count_unfinished(self, job: CachedJob, change: int) -> None:
        if job.finished:
            return
        self._unfinished += change
        if job.client is not None:
            self._unfinished_by_client[job.client] += change
            if not self._unfinished_by_client[job.client]:
                del self._unfinished_by_client[job.client]

    def _forget_unconfirmed(self) -> None:
        oldest_allowed = self._clock() - UNCONFIRMED_SECONDS
        while self._unconfirmed:
            name, written = next(iter(self._unconfirmed.items()))
            if written > oldest_allowed:
                return
            self.forget(name)


def _names_of(model: str | None, default_model: str | None) -> frozenset[str | None]:
    return frozenset({model, None}) if model == default_model else frozenset({model})


def _groups_of(job: CachedJob) -> list[_Group]:
    return [(phase, model) for phase in (job.phase, ANY) for model in (job.model, ANY)]


def _discard(lists: dict[_Name, SortedList[_Key]], name: _Name, key: _Key) -> None:
    lists[name].remove(key)
    if not lists[name]:
        del lists[name]


def _results_equal(old: CachedJob, new: CachedJob) -> bool:
    """Return whether ``GET /results`` says the same of both states, as it does while only the progress moves."""
    return (old.uid, old.phase, old.error_message, old.warnings) == (
        new.uid,
        new.phase,
        new.error_message,
        new.warnings,
    )

"""The jobs of the namespace as the watch shows them, with this replica's own writes put in at once.

Reading it costs the API server nothing. It is never ahead of the API server, and behind it by a watch's delay, except
for what this process has written itself: that is in it from the moment the write was confirmed.
"""

from __future__ import annotations

import time
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

from kubediffusion.api.job_cache.records import CachedJob, JobRecord
from kubediffusion.resources.queue_order import QueueKey

UNCONFIRMED_SECONDS = 300.0
"""How long an entry lives that the watch has not shown. Only an object that was deleted between a read of this process
and a list of the watch never shows; everything else does within milliseconds, or when the API server is back."""


Key = TypeVar("Key", "AgeKey", QueueKey[float])


class AgeKey(NamedTuple):
    """Orders all jobs by age."""

    created: float
    name: str


class JobCache:
    """Every job of the namespace, by name, by age and by place in the queue.

    Args:
        on_confirmed: Called with the seconds between a write of this process and the watch showing it.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        on_confirmed: Callable[[float], None] = lambda _seconds: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._entries: dict[str, CachedJob] = {}
        self._by_age: list[AgeKey] = []
        self._queues: dict[str | None, list[QueueKey[float]]] = {}
        self._unfinished = 0
        # When each entry was put in that the watch has not shown; in that order.
        self._unconfirmed: dict[str, float] = {}
        self._watched = 0
        self._on_confirmed = on_confirmed
        self._clock = clock

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def unfinished(self) -> int:
        """How many jobs have no outcome yet."""
        return self._unfinished

    def get(self, name: str) -> CachedJob | None:
        """Give a job's newest known state."""
        return self._entries.get(name)

    def on_change(self, record: JobRecord, gone: bool) -> None:
        """Take in what the watch shows."""
        entry = record.entry
        self._watched = max(self._watched, entry.version)
        if (written := self._unconfirmed.pop(entry.name, None)) is not None:
            self._on_confirmed(self._clock() - written)
        if gone:
            known = self._entries.get(entry.name)
            # Another one of this name may have been created since.
            if known is not None and known.uid == entry.uid:
                self._drop(known)
        else:
            self._put(entry)
        self._forget_unconfirmed()

    def remember(self, entry: CachedJob) -> None:
        """Take in what this process has just written or read, ahead of the watch."""
        if entry.name not in self._entries:
            if entry.version <= self._watched:
                # The watch is past this version and the job is not here: it has been deleted since.
                return
            self._unconfirmed[entry.name] = self._clock()
        self._put(entry)
        self._forget_unconfirmed()

    def forget(self, name: str) -> None:
        """Take out a job that this process has just deleted; the watch will say the same."""
        if (entry := self._entries.get(name)) is not None:
            self._drop(entry)
        self._unconfirmed.pop(name, None)

    def queue_position(self, entry: CachedJob, default_model: str | None) -> int | None:
        """Tell which place the job has among those that wait for its model, from 1; None if it does not wait.

        Args:
            entry: The job.
            default_model: The model that jobs without one mean.
        """
        key = entry.queue_key
        if key is None:
            return None
        model = entry.model or default_model
        queues = {model, None} if model == default_model else {model}
        return 1 + sum(bisect_left(self._queues.get(queue, []), key) for queue in queues)

    def newest_first(self, before: AgeKey | None = None) -> Iterator[CachedJob]:
        """Give the jobs from the newest on, or those older than ``before``."""
        end = len(self._by_age) if before is None else bisect_left(self._by_age, before)
        for index in range(end - 1, -1, -1):
            yield self._entries[self._by_age[index].name]

    def _put(self, entry: CachedJob) -> None:
        known = self._entries.get(entry.name)
        if known is not None:
            if entry.version <= known.version:
                return
            if _answers_alike(known, entry):
                entry.answer = known.answer
            self._drop(known)
        self._entries[entry.name] = entry
        insort(self._by_age, AgeKey(entry.created, entry.name))
        self._unfinished += not entry.finished
        if (key := entry.queue_key) is not None:
            insort(self._queues.setdefault(entry.model, []), key)

    def _drop(self, entry: CachedJob) -> None:
        del self._entries[entry.name]
        _remove(self._by_age, AgeKey(entry.created, entry.name))
        self._unfinished -= not entry.finished
        if (key := entry.queue_key) is not None:
            queue = self._queues[entry.model]
            _remove(queue, key)
            if not queue:
                del self._queues[entry.model]

    def _forget_unconfirmed(self) -> None:
        oldest_allowed = self._clock() - UNCONFIRMED_SECONDS
        while self._unconfirmed:
            name, written = next(iter(self._unconfirmed.items()))
            if written > oldest_allowed:
                return
            self.forget(name)


def _remove(keys: list[Key], key: Key) -> None:
    del keys[bisect_left(keys, key)]


def _answers_alike(old: CachedJob, new: CachedJob) -> bool:
    """Tell whether ``GET /results`` says the same of both, as it does while only the progress moves."""
    return (old.uid, old.phase, old.error_message, old.warnings) == (
        new.uid,
        new.phase,
        new.error_message,
        new.warnings,
    )

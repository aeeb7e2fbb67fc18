"""The open streams: how many there may be, what each is told, and when they end.

A stream keeps what it has told, and nothing of what it will tell: it looks at the cache whenever its client has taken
what came before. So what changes more often than a client reads is told once, as it is by then, and a client that does
not read at all costs no more memory than its connection.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from operator import attrgetter

from cachetools import LRUCache

from kubediffusion.api.errors import TooManyRequestsError
from kubediffusion.api.job_cache.cache import JobCache
from kubediffusion.api.job_cache.changes import Change, Deletion
from kubediffusion.api.job_cache.filters import JobFilter
from kubediffusion.api.job_cache.records import CachedJob
from kubediffusion.api.job_events.states import (
    HEARTBEAT,
    OPENING,
    EncodedState,
    EventId,
    bookmark_event,
    deletion_event,
    encode_state,
    state_event,
)
from kubediffusion.api.metrics import Metrics
from kubediffusion.api.model_cache import ModelCache
from kubediffusion.api.previews import PreviewEvents
from kubediffusion.api.settings import Settings
from kubediffusion.resources.generation_job import Phase

QUEUE_SECONDS = 1.0
"""How often a stream looks whether its job has moved in the queue, where nothing else changes."""

PREVIEW_SECONDS = 1.0
"""How often a stream with previews looks for the next one."""

LIST_SECONDS = 0.1
"""How long a stream of many jobs lets changes add up: it would else be woken by each."""

CHUNK = 200
"""Jobs that a stream of many looks at before others get their turn."""

KEPT_STATES = 1024
"""States that are kept as JSON, for the other streams that tell the same."""

Stream = AsyncGenerator[bytes, None]
_StateKey = tuple[str, int, int | None, str | None]


class JobStreams:
    """The streams of events of one process.

    Args:
        settings: Settings of the API.
        jobs: GenerationJobs as the watch shows them.
        models: DiffusionModels as the watch shows them.
        metrics: Where open streams are counted.
    """

    def __init__(self, settings: Settings, jobs: JobCache, models: ModelCache, metrics: Metrics) -> None:
        self._settings = settings
        self._jobs = jobs
        self._models = models
        self._metrics = metrics
        self._open: Counter[str] = Counter()
        self._closed = False
        self._encoded: LRUCache[_StateKey, EncodedState] = LRUCache(KEPT_STATES)

    def close(self) -> None:
        """End all streams now, as the process stops; their clients resume at another replica."""
        self._closed = True
        self._jobs.wake_all()

    @contextmanager
    def opened(self, client: str) -> Iterator[None]:
        """Count a stream of a client for as long as the context lasts.

        Raises:
            TooManyRequestsError: There are too many, of this client or of all.
        """
        total, own = self._settings.max_streams, self._settings.max_streams_by_client
        if total and self._open.total() >= total:
            raise TooManyRequestsError(f"{total} streams of events are open already.", 5)
        if own and self._open[client] >= own:
            raise TooManyRequestsError(f"{own} streams of events of this client are open already.", 5)
        self._open[client] += 1
        try:
            with self._metrics.open_streams.track_inprogress():
                yield
        finally:
            self._open[client] -= 1
            if not self._open[client]:
                del self._open[client]

    def has_news(self, job: CachedJob, told: EventId | None) -> bool:
        """Return whether there is anything to tell of a job, now or later, to a client that knows it up to an event."""
        return not (job.finished and told is not None and self._has_told(job, told))

    async def of_job(
        self,
        job: CachedJob,
        told: EventId | None,
        allowed: Callable[[], Awaitable[bool]],
        previews: PreviewEvents | None = None,
    ) -> Stream:
        """Tell the states of one job until its end or its deletion: the present one, and each that is another.

        Args:
            job: The job.
            told: What the client has been told before.
            allowed: Whether the client may still read; asked at each heartbeat.
            previews: What its images will look like; None for a client that did not ask for it.
        """
        yield OPENING
        name, uid, spoke = job.name, job.uid, time.monotonic()
        told = told or EventId(0)
        seen: _StateKey | None = None
        while not self._closed:
            current = self._jobs.get(name)
            if current is None or current.uid != uid:
                yield deletion_event(name, told)
                return
            # An older version than the client knows: this replica's watch is behind the one that told it.
            if current.version >= told.version and (key := self._key(current)) != seen:
                seen = key
                state = self._encode(current, key)
                if state.digest != told.digest:
                    told = EventId(current.version, state.digest)
                    yield state_event(current, state.text, told)
                    spoke = time.monotonic()
                    if not current.finished:
                        continue
                if current.finished:
                    return
            if previews is not None and (event := await previews.next(current)) is not None:
                yield event
                spoke = time.monotonic()
            pause = self._silence(spoke)
            if pause <= 0:
                if not await allowed():
                    return
                yield HEARTBEAT
                spoke = time.monotonic()
            else:
                await self._changed(current, min(pause, self._look_again(current, previews)))

    async def of_jobs(self, wanted: JobFilter, told: EventId | None, allowed: Callable[[], Awaitable[bool]]) -> Stream:
        """Tell the states of the jobs that match: of those that have not finished first, or what changed since.

        Args:
            wanted: Which jobs.
            told: What the client has been told before.
            allowed: Whether the client may still read; asked at each heartbeat.
        """
        yield OPENING
        log = self._jobs.changes
        spoke = time.monotonic()
        # What had finished when the stream began is no news to somebody who has just come.
        old = log.watched if told is None else 0
        version = 0 if told is None else told.version
        seen = log.deletions - (0 if told is None else len(log.deletions_after(0, version)))
        marked: int | None = None
        while not self._closed:
            changes = log.after(version, CHUNK)
            more = len(changes) == CHUNK
            upto = changes[-1].version if more else max(version, log.watched)
            gone = [deletion for deletion in log.deletions_after(seen) if deletion.version <= upto]
            both: list[Change | Deletion] = [*changes, *gone]
            for news in sorted(both, key=attrgetter("version")):
                if (event := self._event(news, wanted, old)) is not None:
                    yield event
                    spoke = time.monotonic()
            version = upto
            if gone:
                seen = gone[-1].number
            if more or log.watched > version or log.deletions > seen:
                # There is more, or it has come while the client read.
                await asyncio.sleep(0)
                continue
            pause = self._silence(spoke)
            if marked is not None and pause > 0:
                await self._news(pause)
                continue
            if not await allowed():
                return
            yield HEARTBEAT if marked == version else bookmark_event(EventId(version))
            marked, spoke = version, time.monotonic()

    def _look_again(self, job: CachedJob, previews: PreviewEvents | None) -> float:
        """Return after how many seconds a stream looks for what no change of its job announces."""
        if job.phase is Phase.PENDING:
            return QUEUE_SECONDS
        return math.inf if previews is None else PREVIEW_SECONDS

    def _event(self, news: Change | Deletion, wanted: JobFilter, old: int) -> bytes | None:
        default = self._models.default_name
        if isinstance(news, Deletion):
            if not wanted.matches(news.job, default):
                return None
            return deletion_event(news.job.name, EventId(news.version))
        job = self._jobs.get(news.name)
        # What has changed again since it was listed comes again, in its new place.
        if job is None or job.changed != news.version or not wanted.matches(job, default):
            return None
        if job.finished and news.version <= old:
            return None
        return state_event(job, self._encode(job, self._key(job)).text, EventId(news.version))

    def _has_told(self, job: CachedJob, told: EventId) -> bool:
        return job.version >= told.version and self._encode(job, self._key(job)).digest == told.digest

    def _key(self, job: CachedJob) -> _StateKey:
        """Return all that the state of a job depends on, for much less than the state costs."""
        if job.phase is not Phase.PENDING:
            return job.uid, job.version, None, None
        model = self._models.find(job.model)
        position = self._jobs.queue_position(job, self._models.default_name)
        return job.uid, job.version, position, model.metadata.resource_version if model else None

    def _encode(self, job: CachedJob, key: _StateKey) -> EncodedState:
        if (known := self._encoded.get(key)) is not None:
            return known
        state = encode_state(job, key[2], self._models.find(job.model), self._settings.root_path)
        self._encoded[key] = state
        return state

    def _silence(self, spoke: float) -> float:
        """Return the seconds until a stream must say that it is still there."""
        return spoke + self._settings.stream_heartbeat_seconds - time.monotonic()

    async def _changed(self, job: CachedJob, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._jobs.wait_until(job.name, lambda now: now is not job or self._closed)
        except TimeoutError:
            return

    async def _news(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._jobs.changes.wait()
        except TimeoutError:
            return
        if not self._closed:
            await asyncio.sleep(LIST_SECONDS)

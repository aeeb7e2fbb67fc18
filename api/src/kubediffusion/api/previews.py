"""Asks for previews and reads them: asked for by an annotation of the job, read from beside its images.

No replica keeps what another needs: who looks is in the resource, what is seen in storage. A bound on the jobs that are
looked at through one replica bounds the writes to the API server (three a minute a job) and the reads from storage (two
a second a job), however many clients look.
"""

from __future__ import annotations

import asyncio
import base64
import datetime as dt
import json
import logging
from concurrent.futures import ThreadPoolExecutor

from cachetools import LRUCache, TTLCache
from fastapi.sse import format_sse_event

from kubediffusion.api.errors import TooManyRequestsError
from kubediffusion.api.job_cache.records import CachedJob, JobRecord
from kubediffusion.resources.apiserver.errors import KubernetesError
from kubediffusion.resources.apiserver.resource import Resource
from kubediffusion.resources.image_keys import preview_key
from kubediffusion.resources.meta import PREVIEW_REQUESTED_AT_ANNOTATION, PREVIEW_SECONDS
from kubediffusion.resources.schema import format_time
from kubediffusion.resources.storage import PNG, ImageStorage, Preview, StorageError
from kubediffusion.resources.transitions import BOUND

logger = logging.getLogger(__name__)

MOST_JOBS = 64
"""Jobs that are looked at through this process at the same time."""

RENEW_SECONDS = PREVIEW_SECONDS / 3
"""How often it is written that somebody looks at a job, for as long as that is so."""

FRESH_SECONDS = 0.5
"""For how long a preview that was read is handed out. A worker stores one a second at most."""

READ_SECONDS = 2.0
"""How long storage is waited for. What comes later is there for the next one who asks."""

THREADS = 4
"""Previews that are read at the same time."""


class PreviewReader:
    """Reads previews for clients.

    Args:
        storage: Where the workers store them; None when no storage is configured.
        resource: Access to the jobs.
        namespace: The namespace of the jobs.
        prefix: What the keys of images begin with.
    """

    def __init__(
        self, storage: ImageStorage | None, resource: Resource[JobRecord], namespace: str, prefix: str
    ) -> None:
        self._storage = storage
        self._resource = resource
        self._namespace = namespace
        self._prefix = prefix
        self._asked: TTLCache[str, None] = TTLCache(MOST_JOBS, RENEW_SECONDS)
        self._latest: TTLCache[str, Preview | None] = TTLCache(MOST_JOBS, FRESH_SECONDS)
        self._known: LRUCache[str, Preview] = LRUCache(MOST_JOBS)
        self._reading: dict[str, asyncio.Task[Preview | None]] = {}
        self._asking: set[asyncio.Task[None]] = set()
        # Not those that read images: storage that hangs must hold up nothing else.
        self._threads = ThreadPoolExecutor(THREADS, "previews")

    async def latest(self, job: CachedJob) -> Preview | None:
        """Return the preview of a job, and have its worker store more; None where there is none, or not yet.

        Raises:
            TooManyRequestsError: Too many jobs are looked at.
        """
        if self._storage is None or job.phase not in BOUND:
            return None
        self._ask(job)
        if job.uid in self._latest:
            return self._latest[job.uid]
        # All who look at the same job share one read.
        task = self._reading.get(job.uid)
        if task is None:
            task = self._reading[job.uid] = asyncio.create_task(self._read(self._storage, job))
        try:
            return await asyncio.wait_for(asyncio.shield(task), READ_SECONDS)
        except TimeoutError:
            # The read goes on for whoever asks next.
            return None

    def close(self) -> None:
        """End the threads, and what is being asked for."""
        for task in self._asking:
            task.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _ask(self, job: CachedJob) -> None:
        if job.uid in self._asked:
            return
        if len(self._asked) >= MOST_JOBS:
            raise TooManyRequestsError(f"Previews of {MOST_JOBS} jobs are being looked at already.", 5)
        self._asked[job.uid] = None
        task = asyncio.create_task(self._write(job), name=f"ask for previews of {job.name}")
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def _write(self, job: CachedJob) -> None:
        now = format_time(dt.datetime.now(dt.UTC))
        change = {"metadata": {"annotations": {PREVIEW_REQUESTED_AT_ANNOTATION: now}}}
        try:
            await self._resource.patch(self._namespace, job.name, change)
        except KubernetesError as error:
            # Asked again when it would have been renewed; the job may just have been deleted.
            logger.warning("previews cannot be asked for: %s", error, extra={"job": job.name})

    async def _read(self, storage: ImageStorage, job: CachedJob) -> Preview | None:
        key = preview_key(self._prefix, self._namespace, job.uid)
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._threads, storage.get_preview, key)
        except StorageError as error:
            # A server without atomic writes gives a torn one at times; the one before is no worse.
            logger.warning("storage: %s", error)
            found = self._known.get(job.uid)
        finally:
            del self._reading[job.uid]
        if found is not None and found.attempt != job.parse().status.attempt:
            # Of an attempt whose worker is gone.
            found = None
        self._latest[job.uid] = found
        if found is not None:
            self._known[job.uid] = found
        return found


class PreviewEvents:
    """The previews of one stream of events.

    Args:
        reader: Reads them.
    """

    def __init__(self, reader: PreviewReader) -> None:
        self._reader = reader
        self._shown: Preview | None = None

    async def next(self, job: CachedJob) -> bytes | None:
        """Return the event of a preview that has not been shown; None where there is none."""
        try:
            preview = await self._reader.latest(job)
        except TooManyRequestsError:
            # The stream asks again at its next turn.
            return None
        if preview is None or preview == self._shown:
            return None
        self._shown = preview
        data = {"index": preview.index, "image": f"data:{PNG};base64,{base64.b64encode(preview.data).decode()}"}
        return format_sse_event(event="preview", data_str=json.dumps(data, separators=(",", ":")))

"""Deletes finished jobs whose time to live is over, and images before the jobs that hold them.

When a job goes is decided by pure functions; the classes below wait, ask the API server and storage, and try again.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import logging
from functools import partial

from kubediffusion.operator.cluster import Cluster, retry_until_done
from kubediffusion.operator.deadline_queue import DeadlineQueue, time_after
from kubediffusion.resources import meta
from kubediffusion.resources.backoff import Backoff
from kubediffusion.resources.generation_job import GenerationJob
from kubediffusion.resources.image_keys import image_key
from kubediffusion.resources.storage import ImageStorage, StorageError
from kubediffusion.resources.transitions import TERMINAL

logger = logging.getLogger(__name__)

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 60.0

AT_ONCE = 4
"""Jobs that are deleted, and jobs whose images are, at the same time. Ten thousand may be due in one moment, and jobs
that wait for a worker must not wait behind them."""


def expiry(job: GenerationJob) -> dt.datetime | None:
    """Return when a finished job is to be deleted; None when it has not finished or is kept."""
    ttl, finished = job.spec.ttl_seconds_after_finished, job.status.completion_time
    if job.status.phase not in TERMINAL or ttl is None or finished is None:
        return None
    return time_after(finished, ttl)


def awaits_image_deletion(job: GenerationJob) -> bool:
    """Return whether a job is being deleted, has ended, and only its images hold it."""
    return (
        job.metadata.deletion_timestamp is not None
        and job.status.phase in TERMINAL
        and meta.IMAGES_FINALIZER in job.metadata.finalizers
    )


class ImageRemover:
    """Deletes the images of jobs.

    Args:
        storage: Where they lie; None when the operator has no storage settings.
        prefix: Prefix of every key.
    """

    def __init__(self, storage: ImageStorage | None, prefix: str) -> None:
        self._storage = storage
        self._prefix = prefix

    async def remove(self, job: GenerationJob) -> None:
        """Delete every image that the job can have left, also one that was stored but never reported.

        Storage being away is waited out: the finalizer keeps the job until its images are gone.
        """
        if self._storage is None:
            logger.error(
                "cannot delete images: the operator has no KUBEDIFFUSION_S3_BUCKET; they stay",
                extra={"job": job.name, "namespace": job.metadata.namespace},
            )
            return
        for index in range(job.spec.num_images or 1):
            uri = self._storage.uri(image_key(self._prefix, job.metadata.namespace, job.uid, index))
            await self._remove(self._storage, uri, job)

    async def _remove(self, storage: ImageStorage, uri: str, job: GenerationJob) -> None:
        backoff = Backoff(FIRST_PAUSE, LONGEST_PAUSE)
        while True:
            try:
                await asyncio.to_thread(storage.delete, uri)
            except StorageError as error:
                if error.permanent:
                    # A bucket that does not exist holds no image, and must not hold the job for ever.
                    logger.error("%s; given up", error, extra={"job": job.name})  # noqa: TRY400 - no defect of ours
                    return
                logger.warning("%s; trying again", error, extra={"job": job.name})
                await asyncio.sleep(backoff.next_pause())
            else:
                return


class Retention:
    """Deletes jobs whose time to live is over, and the images of deleted jobs that wait for that.

    Args:
        cluster: Where the jobs are.
        images: Deletes images.
    """

    def __init__(self, cluster: Cluster, images: ImageRemover) -> None:
        self._cluster = cluster
        self._images = images
        self._expiries = DeadlineQueue()
        self._added = asyncio.Event()
        self._taking = asyncio.Lock()
        self._deleted: asyncio.Queue[GenerationJob] = asyncio.Queue()
        self._releasing: set[str] = set()

    def add(self, job: GenerationJob) -> None:
        """Queue a finished job for what is due: its deletion, or that of its images."""
        if awaits_image_deletion(job):
            if job.uid not in self._releasing:
                self._releasing.add(job.uid)
                self._deleted.put_nowait(job)
        elif (due := expiry(job)) is not None:
            self._expiries.add(due, job)
            self._added.set()

    def remove(self, uid: str) -> None:
        """Remove a job that is gone."""
        self._expiries.remove(uid)

    async def run(self) -> None:
        """Delete what is due until cancelled."""
        async with asyncio.TaskGroup() as workers:
            for _ in range(AT_ONCE):
                workers.create_task(self._expire_all())
                workers.create_task(self._release_all())

    async def _expire_all(self) -> None:
        while True:
            namespace, name, uid = await self._next_due()
            try:
                await retry_until_done("delete an expired job", name, partial(self._expire, namespace, name, uid))
            except Exception:
                logger.exception("a defect: an expired job stays", extra={"job": name})

    async def _next_due(self) -> tuple[str, str, str]:
        """Wait for the next job that is due."""
        async with self._taking:
            while True:
                now = dt.datetime.now(dt.UTC)
                for entry in self._expiries.pop_due(now):
                    return entry
                self._added.clear()
                due = self._expiries.next_due
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout((due - now).total_seconds() if due is not None else None):
                        await self._added.wait()

    async def _expire(self, namespace: str, name: str, uid: str) -> None:
        """Delete a job whose time to live is over; its spec may have got another one since it was queued."""
        job = await self._cluster.get_job(namespace, name, uid)
        due = expiry(job)
        if due is not None and due <= dt.datetime.now(dt.UTC):
            await self._cluster.delete_job(job)
        else:
            self.add(job)

    async def _release_all(self) -> None:
        while True:
            job = await self._deleted.get()
            try:
                await self._images.remove(job)
                await retry_until_done("release a deleted job", job.name, partial(self._cluster.release_images, job))
            except Exception:
                logger.exception("a defect: a deleted job is held", extra={"job": job.name})
            finally:
                self._releasing.discard(job.uid)

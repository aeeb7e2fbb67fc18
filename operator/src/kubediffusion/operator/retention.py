"""Deletes finished jobs whose time to live is over, and images before the jobs that hold them.

When a job goes is decided by pure functions; :class:`Retention` waits, asks the API server and storage, tries again.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import logging

from kubediffusion.operator import metrics
from kubediffusion.operator.cluster import Cluster
from kubediffusion.operator.deadline_queue import DeadlineQueue, time_after
from kubediffusion.operator.events import Event, EventRecorder
from kubediffusion.operator.fair_queue import FairQueue
from kubediffusion.operator.images import ImageRemover
from kubediffusion.resources import meta
from kubediffusion.resources.apiserver.errors import KubernetesError, NotFoundError
from kubediffusion.resources.backoff import Backoff
from kubediffusion.resources.generation_job import GenerationJob
from kubediffusion.resources.storage import StorageError
from kubediffusion.resources.transitions import TERMINAL

logger = logging.getLogger(__name__)

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 60.0
"""Seconds until what failed is tried again, at first and at most."""

AT_ONCE = 4
"""Jobs that are deleted, and jobs whose images are, at the same time. Ten thousand may be due in one moment, and jobs
that wait for a worker must not wait behind them."""

OF_A_NAMESPACE = 2
"""Jobs of one namespace among those whose images are deleted at the same time: storage that is slow to refuse one
tenant's must leave a place for the others'."""

NEVER_BOUND_SECONDS = 5.0
UNFINISHED_SECONDS = 180.0
"""Seconds until a deleted job that has not ended is released all the same, where it was never bound, and else. It ends
within a moment; where that may not be written (its namespace is deleted, and its roles went first), its workers have
gone with the namespace after this time."""

IMAGES_HELD = "ImagesHeld"
"""Reason of an Event: a deleted job is held until its images are deleted, which fails."""
IMAGES_RETAINED = "ImagesRetained"
"""Reason of an Event: a deleted job goes, and images of it stay."""


def expiry(job: GenerationJob) -> dt.datetime | None:
    """Return when a finished job is to be deleted; None when it has not finished or is kept."""
    ttl, finished = job.spec.ttl_seconds_after_finished, job.status.completion_time
    if job.status.phase not in TERMINAL or ttl is None or finished is None:
        return None
    return time_after(finished, ttl)


def awaits_image_deletion(job: GenerationJob) -> bool:
    """Return whether a job is being deleted and its images hold it."""
    return job.metadata.deletion_timestamp is not None and meta.IMAGES_FINALIZER in job.metadata.finalizers


def release_pause(job: GenerationJob) -> float:
    """Return the seconds until a deleted job's images may be deleted: none once it has ended."""
    if job.status.phase in TERMINAL:
        return 0.0
    return UNFINISHED_SECONDS if job.status.attempt else NEVER_BOUND_SECONDS


class Retention:
    """Deletes jobs whose time to live is over, and the images of deleted jobs that wait for that.

    Args:
        cluster: Where the jobs are.
        images: Deletes images.
        recorder: Takes Events of what holds a job.
    """

    def __init__(self, cluster: Cluster, images: ImageRemover, recorder: EventRecorder) -> None:
        self._cluster = cluster
        self._images = images
        self._recorder = recorder
        self._expiries = DeadlineQueue()
        self._added = asyncio.Event()
        self._taking = asyncio.Lock()
        self._deleted = FairQueue[GenerationJob](OF_A_NAMESPACE)
        self._releasing: dict[str, bool] = {}
        """Whether jobs that are to be released had ended when that was queued, by uid."""
        self._backoffs: dict[str, Backoff] = {}
        """The pauses of jobs that could not be deleted or released, by uid."""

    def add(self, job: GenerationJob) -> None:
        """Queue a finished or deleted job for what is due: its deletion, or that of its images."""
        if awaits_image_deletion(job):
            self._add_deleted(job)
        elif (due := expiry(job)) is not None:
            self._expiries.add(due, job)
            self._added.set()

    def remove(self, uid: str) -> None:
        """Remove a job that is gone."""
        self._expiries.remove(uid)
        self._backoffs.pop(uid, None)

    async def run(self) -> None:
        """Delete what is due until cancelled."""
        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(AT_ONCE):
                    workers.create_task(self._expire_all())
                    workers.create_task(self._release_all())
        finally:
            self._deleted.close()

    def _add_deleted(self, job: GenerationJob) -> None:
        ended = job.status.phase in TERMINAL
        # One that was queued for later because it had not ended may be released at once when it has.
        if self._releasing.get(job.uid, False) or (job.uid in self._releasing and not ended):
            return
        self._releasing[job.uid] = ended
        if ended:
            self._deleted.put(job.metadata.namespace, job)
        else:
            self._deleted.put_later(job.metadata.namespace, job, release_pause(job))

    async def _expire_all(self) -> None:
        while True:
            namespace, name, uid = await self._next_due()
            try:
                await self._expire(namespace, name, uid)
            except NotFoundError:
                self._backoffs.pop(uid, None)
            except KubernetesError as error:
                logger.warning("cannot delete an expired job, trying again: %s", error, extra={"job": name})
                self._expire_later(namespace, name, uid, error.retry_after)
            except Exception:
                logger.exception("a defect: an expired job stays", extra={"job": name})
                self._expire_later(namespace, name, uid, None)

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
            self._backoffs.pop(uid, None)
        else:
            self.add(job)

    def _expire_later(self, namespace: str, name: str, uid: str, seconds: float | None) -> None:
        pause = seconds or self._pause(uid)
        self._expiries.add_entry(dt.datetime.now(dt.UTC) + dt.timedelta(seconds=pause), namespace, name, uid)
        self._added.set()

    async def _release_all(self) -> None:
        while True:
            namespace, job = await self._deleted.get()
            try:
                await self._release(job)
            except NotFoundError:
                self._forget(job.uid)
            except StorageError as error:
                await self._hold(job, str(error))
            except KubernetesError as error:
                logger.warning("cannot release a deleted job, trying again: %s", error, extra=_place(job))
                self._release_later(job, error.retry_after)
            except Exception as error:
                logger.exception("a defect: a deleted job is held", extra=_place(job))
                await self._hold(job, f"the operator failed ({type(error).__name__}); see its log")
            finally:
                self._deleted.done(namespace)

    async def _release(self, known: GenerationJob) -> None:
        """Delete a job's images and then its finalizer; it is read anew, as it may have changed while it waited."""
        job = await self._cluster.get_job(known.metadata.namespace, known.name, known.uid)
        if awaits_image_deletion(job):
            stays = await self._images.remove(job)
            if stays:
                logger.error("%s", stays, extra=_place(job))
                self._recorder.record(Event(job, "Warning", IMAGES_RETAINED, stays))
            await self._cluster.release_images(job)
        self._forget(job.uid)

    async def _hold(self, job: GenerationJob, message: str) -> None:
        """Say on a job, once, what holds it, and try again after a pause."""
        metrics.ERRORS.labels("GenerationJob").inc()
        message = f"it is held until its images are deleted, which fails: {message}"
        logger.warning("%s; trying again", message, extra=_place(job))
        if job.uid not in self._backoffs:
            self._recorder.record(Event(job, "Warning", IMAGES_HELD, message))
        try:
            await self._cluster.annotate_job(job, meta.IMAGES_HELD_ANNOTATION, message)
        except KubernetesError as error:
            logger.warning("cannot say what holds a job: %s", error, extra=_place(job))
        self._release_later(job, None)

    def _release_later(self, job: GenerationJob, seconds: float | None) -> None:
        self._deleted.put_later(job.metadata.namespace, job, seconds or self._pause(job.uid))

    def _pause(self, uid: str) -> float:
        return self._backoffs.setdefault(uid, Backoff(FIRST_PAUSE, LONGEST_PAUSE)).next_pause()

    def _forget(self, uid: str) -> None:
        self._releasing.pop(uid, None)
        self._backoffs.pop(uid, None)


def _place(job: GenerationJob) -> dict[str, str]:
    return {"job": job.name, "namespace": job.metadata.namespace}

"""Deletes finished jobs whose time to live is over, and images before the jobs that hold them.

When a job goes is decided by pure functions; :class:`Retention` waits, asks the API server and storage, tries again.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import logging
from collections.abc import Callable

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

NAMING_PAUSE = 0.2
"""Seconds between two jobs whose default time to live is written into their spec."""

IMAGES_HELD = "ImagesHeld"
"""Reason of an Event: a deleted job is held until its images are deleted, which fails."""
IMAGES_RETAINED = "ImagesRetained"
"""Reason of an Event: a deleted job goes, and images of it stay."""


def expiry(job: GenerationJob, default_ttl: int | None = None) -> dt.datetime | None:
    """Return when a finished job is to be deleted; None when it has not finished or is kept.

    Args:
        job: The job.
        default_ttl: Seconds that it stays where it names no time to live; None for ever.
    """
    named, finished = job.spec.ttl_seconds_after_finished, job.status.completion_time
    ttl = named if named is not None else default_ttl
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
        default_ttl: Returns the seconds that a job stays which names no time to live; None for ever.
        most_finished: Finished jobs of one namespace that are kept; 0 for any number.
    """

    def __init__(
        self,
        cluster: Cluster,
        images: ImageRemover,
        recorder: EventRecorder,
        default_ttl: Callable[[GenerationJob], int | None] = lambda _: None,
        most_finished: int = 0,
    ) -> None:
        self._cluster = cluster
        self._default_ttl = default_ttl
        self._most_finished = most_finished
        self._finished: dict[str, DeadlineQueue] = {}
        """Finished jobs by the time at which they did, by namespace."""
        self._surplus: set[str] = set()
        """Uids of jobs that go since their namespace has more finished ones than are kept."""
        self._unnamed: asyncio.Queue[GenerationJob] = asyncio.Queue()
        """Finished jobs that name no time to live yet."""
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
            return
        default = self._default_ttl(job)
        if (due := expiry(job, default)) is not None:
            self._expiries.add(due, job)
            self._added.set()
            if job.spec.ttl_seconds_after_finished is None:
                self._unnamed.put_nowait(job)
        self._count(job)

    def remove(self, job_uid: str) -> None:
        """Remove a job that is gone."""
        self._expiries.remove(job_uid)
        for finished in self._finished.values():
            finished.remove(job_uid)
        self._surplus.discard(job_uid)
        self._backoffs.pop(job_uid, None)

    async def run(self) -> None:
        """Delete what is due until cancelled."""
        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(AT_ONCE):
                    workers.create_task(self._expire_all())
                    workers.create_task(self._release_all())
                workers.create_task(self._name_all())
        finally:
            self._deleted.close()

    def _count(self, job: GenerationJob) -> None:
        """Count a finished job, and have the oldest of its namespace deleted where there are too many."""
        finished = job.status.completion_time
        if not self._most_finished or finished is None:
            return
        namespace = job.metadata.namespace
        queue = self._finished.setdefault(namespace, DeadlineQueue())
        queue.add(finished, job)
        if len(queue) > self._most_finished:
            _, name, uid = queue.pop_first()
            self._surplus.add(uid)
            self._expiries.add_entry(dt.datetime.now(dt.UTC), namespace, name, uid)
            self._added.set()

    async def _name_all(self) -> None:
        """Write the default time to live into the spec of finished jobs, a few a second: nobody waits for it."""
        while True:
            job = await self._unnamed.get()
            default = self._default_ttl(job)
            if default is None:
                continue
            try:
                await self._cluster.name_ttl(job, default)
            except NotFoundError:
                pass
            except KubernetesError as error:
                logger.warning(
                    "cannot write a job's time to live, which holds all the same: %s", error, extra=_place(job)
                )
            except Exception:
                logger.exception("a defect: cannot write a job's time to live", extra=_place(job))
            await asyncio.sleep(NAMING_PAUSE)

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
        due = expiry(job, self._default_ttl(job))
        surplus = uid in self._surplus and job.status.phase in TERMINAL
        if surplus or (due is not None and due <= dt.datetime.now(dt.UTC)):
            await self._cluster.delete_job(job)
            self._surplus.discard(uid)
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

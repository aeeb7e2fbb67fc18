"""Deletes the images of deleted jobs, then removes the finalizer that holds the job; in turn between namespaces.

What keeps a job from going is said on it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from kubediffusion.operator import metrics
from kubediffusion.operator.cluster import Cluster
from kubediffusion.operator.events import Event, EventRecorder, log_fields
from kubediffusion.operator.fair_queue import FairQueue
from kubediffusion.operator.images import ImageRemover
from kubediffusion.resources import meta
from kubediffusion.resources.apiserver.errors import ConflictError, KubernetesError, NotFoundError
from kubediffusion.resources.backoff import Backoffs
from kubediffusion.resources.generation_job import GenerationJob
from kubediffusion.resources.storage import StorageError
from kubediffusion.resources.transitions import TERMINAL

logger = logging.getLogger(__name__)

AT_ONCE = 4
"""Jobs whose images are deleted at the same time."""

OF_A_NAMESPACE = 2
"""Jobs of one namespace among them: storage that is slow to refuse one tenant's must leave a place for the others'."""

NEVER_BOUND_SECONDS = 5.0
"""Seconds until a deleted job that was never bound, and has not ended, is released all the same. It ends within a
moment, unless that may not be written: its namespace is deleted, and its roles went first."""

IMAGES_HELD = "ImagesHeld"
"""Reason of an Event: a deleted job is held, as its images may not be deleted, or its finalizer not be removed."""
IMAGES_RETAINED = "ImagesRetained"
"""Reason of an Event: a deleted job goes, and images of it stay."""


@dataclass(frozen=True)
class ReleasePauses:
    """Seconds until what failed is tried again.

    Attributes:
        first: At first.
        longest: At most.
    """

    first: float = 1.0
    longest: float = 60.0


def awaits_image_deletion(job: GenerationJob) -> bool:
    """Return whether a job is being deleted and its images hold it."""
    return job.metadata.deletion_timestamp is not None and meta.IMAGES_FINALIZER in job.metadata.finalizers


def release_pause(job: GenerationJob, worker_end: float) -> float:
    """Return the seconds until a deleted job's images may be deleted: none once it has ended.

    Args:
        job: The job.
        worker_end: Seconds after which its worker, where it has one, has gone with the namespace.
    """
    if job.status.phase in TERMINAL:
        return 0.0
    return worker_end if job.status.attempt else NEVER_BOUND_SECONDS


class ImageReleases:
    """Deletes the images of deleted jobs, then removes the finalizer that held them.

    Args:
        cluster: Where the jobs are.
        images: Deletes images.
        recorder: Takes Events of what holds a job.
        worker_end: Returns the seconds after which the worker of a job has ended that is told to now.
        pauses: Between the tries of what fails.
    """

    def __init__(
        self,
        cluster: Cluster,
        images: ImageRemover,
        recorder: EventRecorder,
        worker_end: Callable[[GenerationJob], float] = lambda _: 0.0,
        pauses: ReleasePauses = ReleasePauses(),
    ) -> None:
        self._cluster = cluster
        self._images = images
        self._recorder = recorder
        self._worker_end = worker_end
        self._deleted = FairQueue[GenerationJob](OF_A_NAMESPACE)
        self._releasing: dict[str, bool] = {}
        """Whether jobs that are to be released had ended when that was queued, by uid."""
        self._backoffs = Backoffs(pauses.first, pauses.longest)

    def add(self, job: GenerationJob) -> None:
        """Queue a deleted job whose images hold it."""
        ended = job.status.phase in TERMINAL
        # One that was queued for later because it had not ended may be released at once when it has.
        if self._releasing.get(job.uid, False) or (job.uid in self._releasing and not ended):
            return
        self._releasing[job.uid] = ended
        if ended:
            self._deleted.put(job.metadata.namespace, job)
        else:
            self._deleted.put_later(job.metadata.namespace, job, release_pause(job, self._worker_end(job)))

    def remove(self, job_uid: str) -> None:
        """Forget the failures of a job that is gone."""
        self._backoffs.forget(job_uid)

    async def release_all(self) -> None:
        """Release what is queued, one job after the other, until cancelled."""
        while True:
            namespace, job = await self._deleted.get()
            try:
                await self._release(job)
            except NotFoundError:
                self._forget(job.uid)
            except StorageError as error:
                await self._hold(job, f"it is held until its images are deleted, which fails: {error}")
            except ConflictError:
                # It has changed since it was read.
                self._release_later(job, None)
            except KubernetesError as error:
                if error.transient and not error.webhook_failed:
                    logger.warning("cannot release a deleted job, trying again: %s", error, extra=log_fields(job))
                    self._release_later(job, error.retry_after)
                else:
                    await self._hold(job, f"it is held, as its finalizer may not be removed: {error.message}")
            except Exception as error:
                logger.exception("a defect: a deleted job is held", extra=log_fields(job))
                await self._hold(job, f"it is held, as the operator failed ({type(error).__name__}); see its log")
            finally:
                self._deleted.done(namespace)

    def close(self) -> None:
        """Drop what was queued for later."""
        self._deleted.close()

    async def _release(self, known: GenerationJob) -> None:
        """Delete a job's images, then remove its finalizer. It is read anew first, as it may have changed meanwhile."""
        job = await self._cluster.get_job(known.metadata.namespace, known.name, known.uid)
        if awaits_image_deletion(job):
            stays = await self._images.remove(job)
            if stays:
                logger.error("%s", stays, extra=log_fields(job))
                self._recorder.record(Event(job, "Warning", IMAGES_RETAINED, stays))
            await self._cluster.remove_images_finalizer(job)
        self._forget(job.uid)

    async def _hold(self, job: GenerationJob, message: str) -> None:
        """Say on a job, once, what holds it, and try again after a pause."""
        metrics.ERRORS.labels("GenerationJob").inc()
        logger.warning("%s; trying again", message, extra=log_fields(job))
        if job.uid not in self._backoffs:
            self._recorder.record(Event(job, "Warning", IMAGES_HELD, message))
        try:
            await self._cluster.annotate_job(job, meta.IMAGES_HELD_ANNOTATION, message)
        except KubernetesError as error:
            logger.warning("cannot say what holds a job: %s", error, extra=log_fields(job))
        self._release_later(job, None)

    def _release_later(self, job: GenerationJob, seconds: float | None) -> None:
        self._deleted.put_later(job.metadata.namespace, job, seconds or self._backoffs.next_pause(job.uid))

    def _forget(self, uid: str) -> None:
        self._releasing.pop(uid, None)
        self._backoffs.forget(uid)

"""What happens to a job after its end: its time to live, and the images that go with it. Decided pure."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging

from kubediffusion.resources import meta
from kubediffusion.resources.generation_job import GenerationJob
from kubediffusion.resources.storage import ImageStorage, StorageError
from kubediffusion.resources.transitions import TERMINAL

logger = logging.getLogger(__name__)

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 60.0


def expiry(job: GenerationJob) -> dt.datetime | None:
    """Give when a finished job is to be deleted; None when it has not finished or is kept."""
    ttl, finished = job.spec.ttl_seconds_after_finished, job.status.completion_time
    if job.status.phase not in TERMINAL or ttl is None or finished is None:
        return None
    return finished + dt.timedelta(seconds=ttl)


def awaits_image_deletion(job: GenerationJob) -> bool:
    """Tell whether a job is being deleted, has ended, and only its images hold it."""
    return (
        job.metadata.deletion_timestamp is not None
        and job.status.phase in TERMINAL
        and meta.IMAGES_FINALIZER in job.metadata.finalizers
    )


class ImageRemover:
    """Delete the images of jobs.

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
            uri = self._storage.uri(meta.image_key(self._prefix, job.metadata.namespace, job.uid, index))
            await self._remove(self._storage, uri, job)

    async def _remove(self, storage: ImageStorage, uri: str, job: GenerationJob) -> None:
        pause = FIRST_PAUSE
        while True:
            try:
                await asyncio.to_thread(storage.delete, uri)
            except StorageError as error:
                if error.permanent:
                    # A bucket that does not exist holds no image, and must not hold the job for ever.
                    logger.error("%s; given up", error, extra={"job": job.name})  # noqa: TRY400 - no defect of ours
                    return
                logger.warning("%s; trying again", error, extra={"job": job.name})
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
            else:
                return

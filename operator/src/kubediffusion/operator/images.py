"""Which images go with a job, and their deletion from storage."""

from __future__ import annotations

import asyncio
import logging

from kubediffusion.resources.generation_job import GenerationJob
from kubediffusion.resources.image_keys import image_key, preview_key
from kubediffusion.resources.meta import PREVIEW_REQUESTED_AT_ANNOTATION
from kubediffusion.resources.storage import ImageStorage, StorageError

logger = logging.getLogger(__name__)


def image_uris(job: GenerationJob, home: str) -> tuple[list[str], list[str]]:
    """Return where the images of a job lie, reported or not, and what its status names that is none of its images.

    A status names images in the bucket and below the prefix that their worker was configured with, which need not be
    today's. One that was stored and never reported lies beside the others; where none was reported, at ``home``. So
    does a preview that its worker left. Only keys of the job's own are its images, whoever wrote the status: no
    other is deleted.

    Args:
        job: The job.
        home: Bucket and prefix that the operator is configured with: ``s3://bucket/prefix``.
    """
    reported = {image.index: image.uri for image in job.status.images}
    homes: list[str] = []
    own: list[str] = []
    foreign: list[str] = []
    for index, uri in reported.items():
        suffix = "/" + image_key("", job.metadata.namespace, job.uid, index)
        if uri.startswith("s3://") and uri.endswith(suffix):
            own.append(uri)
            homes.append(uri.removesuffix(suffix))
        else:
            foreign.append(uri)
    base = homes[0] if homes else home.rstrip("/")
    missing = (index for index in range(job.spec.num_images or 1) if index not in reported)
    own += [f"{base}/{image_key('', job.metadata.namespace, job.uid, index)}" for index in missing]
    if PREVIEW_REQUESTED_AT_ANNOTATION in job.metadata.annotations:
        # Its worker removes it, unless that died first.
        own.append(f"{base}/{preview_key('', job.metadata.namespace, job.uid)}")
    return own, foreign


class ImageRemover:
    """Deletes the images of jobs.

    Args:
        storage: Where they lie; None when the operator has no storage settings.
        prefix: Prefix of every key.
    """

    def __init__(self, storage: ImageStorage | None, prefix: str) -> None:
        self._storage = storage
        self._home = storage.uri(prefix.strip("/")) if storage is not None else ""

    async def remove(self, job: GenerationJob) -> str:
        """Delete every image that the job can have left; return which stay for good, and why, empty where none does.

        Raises:
            StorageError: One may still be there. Others may be gone.
        """
        if self._storage is None:
            return "the operator has no KUBEDIFFUSION_S3_BUCKET, so it cannot delete images; they stay"
        own, foreign = image_uris(job, self._home)
        stays = [f"the status names what is no image of this job, which stays: {', '.join(foreign)}"] if foreign else []
        for uri in own:
            try:
                await asyncio.to_thread(self._storage.delete, uri)
            except StorageError as error:
                if not error.permanent:
                    raise
                stays.append(f"{error}; it stays")
        return "; ".join(stays)

"""Images out of storage: read once, checked against the hash in the job's status, kept for a while."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from concurrent.futures import ThreadPoolExecutor

from cachetools import LRUCache

from kubediffusion.api.errors import CorruptImageError, UnavailableError
from kubediffusion.api.job_cache.records import StoredImage
from kubediffusion.api.metrics import Metrics
from kubediffusion.resources.storage import ImageStorage, StorageError

logger = logging.getLogger(__name__)

THREADS = 16
"""Images that are read from storage at the same time."""

MOST_READS = 128
"""Reads under way or waiting for a thread. Beyond it storage is too slow to make anybody wait for it."""

READ_SECONDS = 10.0
"""How long a request waits for storage. A read that takes longer goes on, and its image is there for the next one."""


class ImageReader:
    """Reads images for clients.

    Args:
        storage: Where they lie; None when the API is not told.
        public: The same storage by the address that clients reach it by, for URLs.
        cache_bytes: Memory for images that were read lately.
        metrics: Where reads are counted.
    """

    def __init__(
        self, storage: ImageStorage | None, public: ImageStorage | None, cache_bytes: int, metrics: Metrics
    ) -> None:
        self._storage = storage
        self._public = public
        # By the hash of the bytes.
        self._cache: LRUCache[str, bytes] = LRUCache(cache_bytes, getsizeof=len)
        # Threads of its own: storage that hangs must hold up nothing else.
        self._threads = ThreadPoolExecutor(THREADS, "storage")
        self._reading: dict[str, asyncio.Task[bytes | StorageError | CorruptImageError]] = {}
        self._metrics = metrics

    async def read(self, image: StoredImage) -> bytes:
        """Read the bytes of an image.

        Raises:
            StorageError: Storage is away, or the image is not there.
            CorruptImageError: The bytes are not those that the worker stored.
            UnavailableError: Storage does not answer, or none is configured.
        """
        data = self._cache.get(image.sha256)
        self._metrics.image_reads.labels("cache" if data is not None else "storage").inc()
        if data is not None:
            return data
        # Many who wait for the same job ask at the same moment, when it is done: they share one read.
        task = self._reading.get(image.sha256)
        if task is None:
            storage = _configured(self._storage)
            if len(self._reading) >= MOST_READS:
                raise UnavailableError("Image storage does not keep up; try again shortly.")
            task = asyncio.create_task(self._fetch(storage, image))
            self._reading[image.sha256] = task
        try:
            # Shielded: when this request is given up, others may still wait for the same read.
            result = await asyncio.wait_for(asyncio.shield(task), READ_SECONDS)
        except TimeoutError:
            raise UnavailableError("Image storage does not answer; try again shortly.") from None
        if isinstance(result, Exception):
            raise result
        return result

    async def url(self, image: StoredImage, seconds: int) -> str:
        """Sign a URL of an image that is valid for ``seconds``.

        Raises:
            StorageError: The image lies elsewhere than this API is told.
            UnavailableError: No storage is configured.
        """
        # Signed locally; but credentials of a role may have to be fetched first.
        sign = _configured(self._public).presign
        return await asyncio.get_running_loop().run_in_executor(self._threads, sign, image.uri, seconds)

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _fetch(self, storage: ImageStorage, image: StoredImage) -> bytes | StorageError | CorruptImageError:
        # Errors are values here, as nobody may be left to take an exception.
        try:
            data = await asyncio.get_running_loop().run_in_executor(self._threads, storage.get, image.uri)
        except StorageError as error:
            return error
        finally:
            del self._reading[image.sha256]
        if hashlib.sha256(data).hexdigest() != image.sha256:
            logger.error("stored image does not match its hash", extra={"uri": image.uri, "sha256": image.sha256})
            return CorruptImageError("The stored image is not the one that was generated: its hash differs.")
        if len(data) <= self._cache.maxsize:
            self._cache[image.sha256] = data
        return data


def _configured(storage: ImageStorage | None) -> ImageStorage:
    if storage is None:
        raise UnavailableError("This server has no image storage configured (KUBEDIFFUSION_S3_BUCKET).", 60)
    return storage

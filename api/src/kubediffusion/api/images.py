"""Images out of storage: small ones are read once, checked and kept for a while; large ones pass through in pieces.

Memory is bounded whatever clients ask for: by the bytes that are kept, by those that responses hold besides, and by a
piece of each image that passes through.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from cachetools import LRUCache
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from kubediffusion.api.errors import CorruptImageError, UnavailableError
from kubediffusion.api.job_cache.records import CachedJob, StoredImage
from kubediffusion.api.metrics import Metrics
from kubediffusion.resources.image_keys import is_image_key_of
from kubediffusion.resources.storage import ImageStorage, ImageStream, StorageError

logger = logging.getLogger(__name__)

THREADS = 16
"""Images that are read from storage at the same time."""

MOST_READS = 128
"""Images that are being read or passed through. Beyond it storage is too slow to make anybody wait for it."""

READ_SECONDS = 10.0
"""How long a request waits for storage. A small image that takes longer is there for the next request."""

PIECE = 3 * 64 * 1024
"""Bytes that are in memory of an image that passes through; a multiple of 3, so that base64 can be put together."""

SMALL = 4 * 1024 * 1024
"""Bytes up to which an image is small."""

HELD_BYTES = 64 * 1024 * 1024
"""Small images that are being read and sent, beside those that are kept. Beyond it small ones pass through as well."""


_Key = tuple[str, str]
"""Address and hash of an image: who names the hash of another job's image has no right to its bytes."""


class ImageBody:
    """The bytes of one image, in pieces. Whoever gets it closes it.

    Attributes:
        length: How many bytes the image has.
    """

    def __init__(self, length: int) -> None:
        self.length = length

    def pieces(self) -> AsyncIterator[bytes]:
        """Iterate over the bytes, :data:`PIECE` at a time.

        Raises:
            StorageError: Storage broke off.
            CorruptImageError: The bytes are not those that the worker stored. The last piece has been held back.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Let go of what the body holds."""


class WholeBody(ImageBody):
    """An image that is in memory as a whole, and checked."""

    def __init__(self, data: bytes) -> None:
        super().__init__(len(data))
        self._data = data

    async def pieces(self) -> AsyncIterator[bytes]:
        """Iterate over the bytes."""
        for start in range(0, len(self._data), PIECE):
            yield self._data[start : start + PIECE]


class ImageReader:
    """Reads images for clients.

    Args:
        storage: Where the workers store images; None when no storage is configured.
        public: The same storage by the address that clients reach it by, for URLs.
        namespace: The namespace of the jobs.
        cache_bytes: Memory for images that were read lately.
        metrics: Where reads are counted.
    """

    def __init__(
        self,
        storage: ImageStorage | None,
        public: ImageStorage | None,
        namespace: str,
        cache_bytes: int,
        metrics: Metrics,
    ) -> None:
        self._storage = storage
        self._public = public
        self._namespace = namespace
        self._cache: LRUCache[_Key, bytes] = LRUCache(cache_bytes, getsizeof=len)
        self._held: dict[_Key, _Held] = {}
        # Threads of its own: storage that hangs must hold up nothing else.
        self._threads = ThreadPoolExecutor(THREADS, "storage")
        self._reading: dict[_Key, asyncio.Task[bytes | StorageError | CorruptImageError]] = {}
        self._reading_bytes = 0
        self._streams = 0
        self._metrics = metrics

    async def open(self, job: CachedJob, image: StoredImage) -> ImageBody:
        """Begin to read an image of a job.

        Raises:
            StorageError: Storage is away, or the image is not there.
            CorruptImageError: The image is not the job's own, or its bytes are not those that the worker stored.
            UnavailableError: Storage does not answer, or none is configured.
        """
        self._check_own(job, image)
        data = self._cache.get(_key(image))
        self._metrics.image_reads.labels("cache" if data is not None else "storage").inc()
        if not self._may_hold(image):
            return await self._stream(image)
        if data is None:
            data = await self._read(image)
        return _HeldBody(data, self._held, _key(image))

    async def url(self, job: CachedJob, image: StoredImage, seconds: int) -> str:
        """Sign a URL of an image of a job that is valid for ``seconds``.

        Raises:
            CorruptImageError: The image is not the job's own.
            StorageError: The image lies elsewhere than this API is told.
            UnavailableError: No storage is configured.
        """
        self._check_own(job, image)
        # Signed locally; but credentials of a role may have to be fetched first.
        sign = _configured(self._public).presign
        return await asyncio.get_running_loop().run_in_executor(self._threads, sign, image.uri, seconds)

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _check_own(self, job: CachedJob, image: StoredImage) -> None:
        # Whoever may write one job's status would otherwise read and sign every object that this process may.
        if not is_image_key_of(image.uri, self._namespace, job.uid, image.index):
            logger.error("status names an image of another job", extra={"job": job.name, "uri": image.uri})
            raise CorruptImageError("The job's status names an image that is not the job's own.")

    def _may_hold(self, image: StoredImage) -> bool:
        """Return whether the image is small, and there is room for it beside those that are being read and sent."""
        if _key(image) in self._reading or _key(image) in self._held:
            return True
        taken = self._reading_bytes + sum(held.size for held in self._held.values())
        return image.bytes <= SMALL and taken + image.bytes <= HELD_BYTES

    async def _read(self, image: StoredImage) -> bytes:
        # Many who wait for the same job ask at the same moment, when it is done: they share one read.
        task = self._reading.get(_key(image))
        if task is None:
            task = asyncio.create_task(self._fetch(self._ready_storage(), image))
            self._reading[_key(image)] = task
            self._reading_bytes += image.bytes
        try:
            # Shielded: when this request is given up, others may still wait for the same read.
            result = await asyncio.wait_for(asyncio.shield(task), READ_SECONDS)
        except TimeoutError:
            raise _silent() from None
        if isinstance(result, Exception):
            raise result
        return result

    async def _fetch(self, storage: ImageStorage, image: StoredImage) -> bytes | StorageError | CorruptImageError:
        # Errors are values here, as nobody may be left to take an exception.
        try:
            data = await asyncio.get_running_loop().run_in_executor(self._threads, _whole, storage, image)
        except StorageError as error:
            return error
        finally:
            del self._reading[_key(image)]
            self._reading_bytes -= image.bytes
        if data is None:
            return _altered(image)
        if len(data) <= self._cache.maxsize:
            self._cache[_key(image)] = data
        return data

    async def _stream(self, image: StoredImage) -> ImageBody:
        storage = self._ready_storage()
        self._streams += 1
        opening = asyncio.get_running_loop().run_in_executor(self._threads, storage.open, image.uri)
        try:
            stream = await asyncio.wait_for(asyncio.shield(opening), READ_SECONDS)
        except BaseException as error:
            self._streams -= 1
            opening.add_done_callback(_close_late)
            if isinstance(error, TimeoutError):
                raise _silent() from None
            raise
        body = _StreamedBody(stream, image, self._threads, self._end_stream)
        if stream.length != image.bytes:
            body.close()
            raise _altered(image)
        return body

    def _end_stream(self) -> None:
        self._streams -= 1

    def _ready_storage(self) -> ImageStorage:
        storage = _configured(self._storage)
        if len(self._reading) + self._streams >= MOST_READS:
            raise UnavailableError("Image storage does not keep up; try again shortly.")
        return storage


@dataclass
class _Held:
    """A small image that responses hold: its bytes, and how many responses."""

    size: int
    responses: int = 0


class _HeldBody(WholeBody):
    """An image whose bytes several responses may share."""

    def __init__(self, data: bytes, held: dict[_Key, _Held], key: _Key) -> None:
        super().__init__(data)
        self._held = held
        self._key = key
        held.setdefault(key, _Held(len(data))).responses += 1

    def close(self) -> None:
        held = self._held[self._key]
        held.responses -= 1
        if not held.responses:
            del self._held[self._key]


class _StreamedBody(ImageBody):
    """An image that comes from storage while it is sent."""

    def __init__(
        self, stream: ImageStream, image: StoredImage, threads: ThreadPoolExecutor, on_close: Callable[[], None]
    ) -> None:
        super().__init__(stream.length)
        self._stream = stream
        self._image = image
        self._threads = threads
        self._on_close = on_close

    async def pieces(self) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        digest = hashlib.sha256()

        def read() -> bytes:
            piece = self._stream.read(PIECE)
            digest.update(piece)
            return piece

        # One piece is held back: without the last one no client takes an altered image for whole.
        before = b""
        while piece := await asyncio.wait_for(loop.run_in_executor(self._threads, read), READ_SECONDS):
            if before:
                yield before
            before = piece
        if digest.hexdigest() != self._image.sha256:
            raise _altered(self._image)
        yield before

    def close(self) -> None:
        self._on_close()
        self._threads.submit(self._stream.close)


class ImageResponse(StreamingResponse):
    """A response with an image in it, of a length that is known beforehand.

    Args:
        body: The image, which is closed in the end.
        media_type: Media type of the response.
        headers: Further headers.
        around: What comes before and after the image as base64; None for the bytes themselves.
    """

    def __init__(
        self,
        body: ImageBody,
        media_type: str,
        headers: Mapping[str, str],
        around: tuple[bytes, bytes] | None = None,
    ) -> None:
        if around is None:
            length, content = body.length, body.pieces()
        else:
            length = len(around[0]) + 4 * -(-body.length // 3) + len(around[1])
            content = _around_base64(body, *around)
        super().__init__(content, headers={**headers, "Content-Length": str(length)}, media_type=media_type)
        self._body = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response; to HEAD without reading the image."""
        try:
            if scope["state"].get("head"):
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                await send({"type": "http.response.body", "body": b""})
                return
            await super().__call__(scope, receive, send)
        finally:
            self._body.close()


async def base64_pieces(body: ImageBody) -> AsyncIterator[bytes]:
    """Iterate over an image as base64.

    Raises:
        StorageError: Storage broke off.
        CorruptImageError: The bytes are not those that the worker stored.
    """
    async for piece in body.pieces():
        yield base64.b64encode(piece)


async def _around_base64(body: ImageBody, before: bytes, after: bytes) -> AsyncIterator[bytes]:
    yield before
    async for piece in base64_pieces(body):
        yield piece
    yield after


def _key(image: StoredImage) -> _Key:
    return image.uri, image.sha256


def _whole(storage: ImageStorage, image: StoredImage) -> bytes | None:
    """Read a small image; None when it is not the one that the status describes."""
    stream = storage.open(image.uri)
    try:
        # Not a byte more than the status says is read, whatever lies there.
        data = stream.read(image.bytes) if stream.length == image.bytes else b""
    finally:
        stream.close()
    return data if hashlib.sha256(data).hexdigest() == image.sha256 else None


def _close_late(opening: asyncio.Future[ImageStream]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


def _altered(image: StoredImage) -> CorruptImageError:
    logger.error("stored image does not match its hash", extra={"uri": image.uri, "sha256": image.sha256})
    return CorruptImageError("The stored image is not the one that was generated: its hash differs.")


def _silent() -> UnavailableError:
    return UnavailableError("Image storage does not answer; try again shortly.")


def _configured(storage: ImageStorage | None) -> ImageStorage:
    if storage is None:
        raise UnavailableError("This server has no image storage configured (KUBEDIFFUSION_S3_BUCKET).", 60)
    return storage

"""PNG files from storage in the formats that clients ask for."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from PIL import Image

from kubediffusion.api.images import ImageBody, ImageReader, WholeBody, base64_pieces
from kubediffusion.api.job_cache.records import CachedJob, StoredImage
from kubediffusion.api.png_text import PngWithText

HELD_BYTES = 64 * 1024 * 1024
"""Encoded images that responses hold. With more, the next one waits."""


class OutputFormat(StrEnum):
    """How an image is encoded."""

    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"


@dataclass(frozen=True)
class Encoding:
    """How the images of a response are encoded.

    Attributes:
        format: PNG is what the worker stored, byte for byte.
        quality: Of the other formats, in percent; 100 is lossless for WebP.
    """

    format: OutputFormat = OutputFormat.PNG
    quality: int = 100

    @property
    def media_type(self) -> str:
        """The media type of an image."""
        return f"image/{self.format}"


class ImageEncoder:
    """Encodes images, one at a time: one of 4096² takes 48 MiB as a file of noise, and 48 MiB when it is decoded."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "encoder")
        self._turn = asyncio.Lock()
        self._held = 0
        self._released = asyncio.Event()

    async def encode(self, png: ImageBody, encoding: Encoding) -> ImageBody:
        """Encode a PNG anew; the result is held until its body is closed.

        Args:
            png: The image, read here.
            encoding: Another than PNG.

        Raises:
            StorageError: Storage broke off.
            CorruptImageError: The bytes are not those that the worker stored.
        """
        async with self._turn:
            data = b"".join([piece async for piece in png.pieces()])
            result = await asyncio.get_running_loop().run_in_executor(self._thread, _encode, data, encoding)
            del data
            # Clients may be slow to take what was made for them.
            while self._held and self._held + len(result) > HELD_BYTES:
                self._released.clear()
                await self._released.wait()
            self._held += len(result)
        return _EncodedBody(result, self._release)

    def _release(self, size: int) -> None:
        self._held -= size
        self._released.set()

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)


class _EncodedBody(WholeBody):
    """An image that was encoded anew."""

    def __init__(self, data: bytes, on_close: Callable[[int], None]) -> None:
        super().__init__(data)
        self._on_close = on_close

    def close(self) -> None:
        self._on_close(self.length)


class EncodedImages:
    """The images of jobs in one encoding.

    Args:
        images: Reads them.
        encoder: Encodes them anew where they are not to be as they were stored.
        encoding: The encoding.
        texts: Texts for PNGs to carry in their chunk ``parameters``, by the image's index.
    """

    def __init__(
        self,
        images: ImageReader,
        encoder: ImageEncoder,
        encoding: Encoding,
        texts: Mapping[int, str] | None = None,
    ) -> None:
        self._images = images
        self._encoder = encoder
        self._encoding = encoding
        self._texts = texts or {}

    async def open(self, job: CachedJob, image: StoredImage) -> ImageBody:
        """Begin to read an image of a job; whoever gets the body closes it.

        Raises:
            StorageError: Storage is away, or the image is not there.
            CorruptImageError: The image is not the job's own, or its bytes are not those that the worker stored.
            UnavailableError: Storage does not answer, or none is configured.
        """
        body = await self._images.open(job, image)
        if self._encoding.format is OutputFormat.PNG:
            text = self._texts.get(image.index)
            return body if text is None else PngWithText(body, text)
        try:
            return await self._encoder.encode(body, self._encoding)
        finally:
            body.close()

    async def base64(self, job: CachedJob, image: StoredImage) -> AsyncGenerator[bytes, None]:
        """Iterate over an image of a job as base64.

        Raises:
            StorageError: As for :meth:`open`, and the two below.
            CorruptImageError: Its bytes are not those that the worker stored.
            UnavailableError: Storage does not answer, or none is configured.
        """
        body = await self.open(job, image)
        try:
            async for piece in base64_pieces(body):
                yield piece
        finally:
            body.close()

    async def document(self, job: CachedJob, parts: Sequence[bytes]) -> AsyncGenerator[bytes, None]:
        """Iterate over a document with all images of a job in it.

        Args:
            job: The job.
            parts: What comes before the first image's base64, between each two, and after the last.

        Raises:
            StorageError: As for :meth:`open`, and the two below.
            CorruptImageError: An image's bytes are not those that the worker stored.
            UnavailableError: Storage does not answer, or none is configured.
        """
        first, *others = parts
        yield first
        for image, after in zip(job.images, others, strict=True):
            async with aclosing(self.base64(job, image)) as pieces:
                async for piece in pieces:
                    yield piece
            yield after


def _encode(png: bytes, encoding: Encoding) -> bytes:
    file = io.BytesIO()
    kind, quality = encoding.format, encoding.quality
    options: dict[str, Any] = {"quality": quality}
    if quality == 100:
        # The most that the format can keep: no halved colours in JPEG, every pixel in WebP.
        options = {"lossless": True} if kind is OutputFormat.WEBP else {"quality": 100, "subsampling": 0}
    with Image.open(io.BytesIO(png)) as image:
        image.convert("RGB").save(file, kind, **options)
    return file.getvalue()

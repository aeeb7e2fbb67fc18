"""PNG files from storage in the formats that clients ask for."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from PIL import Image

from kubediffusion.api.images import ImageBody

HELD_BYTES = 64 * 1024 * 1024
"""Encoded images that responses hold. With more, the next one waits."""


class ImageEncoder:
    """Encodes images, one at a time: one of 4096² takes 48 MiB as a file of noise, and 48 MiB when it is decoded."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "encoder")
        self._turn = asyncio.Lock()
        self._held = 0
        self._released = asyncio.Event()

    @asynccontextmanager
    async def encoded(self, png: ImageBody, kind: str, quality: int) -> AsyncIterator[bytes]:
        """Encode a PNG anew, and hold the result until the context ends.

        Args:
            png: The image, read here.
            kind: ``jpeg`` or ``webp``.
            quality: In percent; 100 is lossless for ``webp``.

        Raises:
            StorageError: Storage broke off.
            CorruptImageError: The bytes are not those that the worker stored.
        """
        async with self._turn:
            data = b"".join([piece async for piece in png.pieces()])
            result = await asyncio.get_running_loop().run_in_executor(self._thread, _encode, data, kind, quality)
            del data
            # Clients may be slow to take what was made for them.
            while self._held and self._held + len(result) > HELD_BYTES:
                self._released.clear()
                await self._released.wait()
            self._held += len(result)
        try:
            yield result
        finally:
            self._held -= len(result)
            self._released.set()

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def _encode(png: bytes, kind: str, quality: int) -> bytes:
    file = io.BytesIO()
    options: dict[str, Any] = {"quality": quality}
    if quality == 100:
        # The most that the format can keep: no halved colours in JPEG, every pixel in WebP.
        options = {"lossless": True} if kind == "webp" else {"quality": 100, "subsampling": 0}
    with Image.open(io.BytesIO(png)) as image:
        image.convert("RGB").save(file, kind, **options)
    return file.getvalue()

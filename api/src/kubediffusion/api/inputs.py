"""Takes images that jobs are made of: checks them, writes them anew as plain PNGs, and stores them by their hash.

What clients send is decoded one image at a time, in a thread, and only once its header has shown that it is small
enough: a file of a few bytes can claim to have thousands of millions of pixels.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from PIL import Image, ImageOps, UnidentifiedImageError
from starlette.requests import ClientDisconnect

from kubediffusion.api.access.identity import Identity
from kubediffusion.api.client_limits.rates import RatesByLimit
from kubediffusion.api.errors import (
    ClientGoneError,
    InvalidRequestError,
    TooLargeError,
    TooManyRequestsError,
    UnavailableError,
    problem,
)
from kubediffusion.api.settings import Settings
from kubediffusion.resources.generation_job import MAX_INPUT_PIXELS, MAX_SIZE
from kubediffusion.resources.image_keys import input_key
from kubediffusion.resources.storage import ImageStorage

logger = logging.getLogger(__name__)

MAX_BYTES = 20 * 1024 * 1024
"""Bytes of an image that is taken."""

MAX_BODY_BYTES = 28 * 1024 * 1024
"""Bytes of a body that has images beside other fields: an image of the most bytes in base64, and some more."""

AT_ONCE = 2
"""Requests with images that are read from clients, and their images stored, at the same time, each of another client;
one image of them is decoded."""

READ_SECONDS = 30.0
"""How long a client may take to send an image: it holds one of the few places meanwhile."""

STORE_SECONDS = 10.0
"""How long a request waits for storage."""

FORMATS = ("PNG", "JPEG", "WEBP")

Change = Callable[[Image.Image], Image.Image]
"""What is made of an image before it is written anew."""

_DEEP = ("I", "F")
"""What modes of more than 8 bits begin with."""


@dataclass(frozen=True)
class StoredInput:
    """An image that is stored.

    Attributes:
        id: SHA-256 of the bytes in storage.
        width: Pixels.
        height: Pixels.
        size: Bytes in storage.
    """

    id: str
    width: int
    height: int
    size: int


@dataclass(frozen=True)
class PlainImage:
    """An image written anew.

    Attributes:
        data: A PNG without metadata, of 8 bits a channel.
        width: Pixels.
        height: Pixels.
    """

    data: bytes
    width: int
    height: int


class InputStore:
    """Stores the inputs of one namespace's jobs.

    Args:
        storage: Where the workers read them; None when no storage is configured.
        settings: Settings of the API.
    """

    def __init__(self, storage: ImageStorage | None, settings: Settings) -> None:
        self._storage = storage
        self._prefix = settings.s3_prefix
        self._namespace = settings.namespace
        self._uploads = RatesByLimit("Too many images uploaded: at most {limit}.")
        self._uploading: set[str] = set()
        """The clients that hold a place."""
        self._decoder = ThreadPoolExecutor(1, "inputs")
        # Storage that hangs must hold up nothing else.
        self._writers = ThreadPoolExecutor(AT_ONCE, "store inputs")

    async def store(self, body: AsyncIterator[bytes], identity: Identity) -> StoredInput:
        """Read an image from a client, and store it.

        Args:
            body: The image as it comes.
            identity: Who sends it.

        Raises:
            TooManyRequestsError: The client has sent too many or sends one right now, or others hold all places.
            TooLargeError: It has too many bytes.
            InvalidRequestError: It is no image that is taken, or has not come in time.
            ClientGoneError: The client has closed the connection.
            StorageError: Storage is away.
            UnavailableError: Storage does not answer, or none is configured.
        """
        with self.place(identity) as place:
            return await place.store(await place.read(_bounded(body)))

    @contextlib.contextmanager
    def place(self, identity: Identity) -> Iterator[UploadPlace]:
        """Hold one of the few places for as long as the block runs: no client has two of them.

        Args:
            identity: Who sends images.

        Raises:
            TooManyRequestsError: The client has sent too many or sends one right now, or others hold all places.
            UnavailableError: No storage is configured.
        """
        if self._storage is None:
            raise UnavailableError("This server has no image storage configured (KUBEDIFFUSION_S3_BUCKET).", 60)
        with contextlib.ExitStack() as held:
            held.enter_context(self._occupied(identity.client))
            self._uploads.limiter(identity.limits.rate_limit).hit(identity.client)
            yield UploadPlace(self._rewrite, partial(self._put, self._storage), identity.client, held)

    async def _rewrite(self, data: bytes, change: Change | None) -> PlainImage:
        return await asyncio.get_running_loop().run_in_executor(self._decoder, rewritten, data, change)

    def _put(self, storage: ImageStorage, digest: str, data: bytes) -> asyncio.Future[None]:
        key = input_key(self._prefix, self._namespace, digest)
        return asyncio.get_running_loop().run_in_executor(self._writers, storage.put_input, key, data)

    def close(self) -> None:
        """End the threads."""
        for threads in (self._decoder, self._writers):
            threads.shutdown(wait=False, cancel_futures=True)

    @contextlib.contextmanager
    def _occupied(self, client: str) -> Iterator[None]:
        if client in self._uploading:
            raise TooManyRequestsError("An image of yours is being uploaded already; send one after the other.", 1)
        if len(self._uploading) >= AT_ONCE:
            raise TooManyRequestsError(f"{AT_ONCE} images are being uploaded already; try again shortly.", 1)
        self._uploading.add(client)
        try:
            yield
        finally:
            self._uploading.remove(client)


class UploadPlace:
    """A place of :meth:`InputStore.place`: whoever has it may have a request's images in memory.

    Args:
        rewrite: Writes an image anew.
        put: Begins to store an image under its hash.
        client: Who sends the images, for the log.
        held: What leaves the place.
    """

    def __init__(
        self,
        rewrite: Callable[[bytes, Change | None], Awaitable[PlainImage]],
        put: Callable[[str, bytes], asyncio.Future[None]],
        client: str,
        held: contextlib.ExitStack,
    ) -> None:
        self._rewrite = rewrite
        self._put = put
        self._client = client
        self._held = held

    async def read(self, body: AsyncIterator[bytes]) -> bytes:
        """Read a body within the time that a client may take to send it.

        Raises:
            InvalidRequestError: It has not come in time.
            ClientGoneError: The client has closed the connection.
        """
        async with self.in_time():
            return b"".join([piece async for piece in body])

    @contextlib.asynccontextmanager
    async def in_time(self) -> AsyncIterator[None]:
        """Read from the client meanwhile, as :meth:`read` does."""
        try:
            async with asyncio.timeout(READ_SECONDS):
                yield
        except TimeoutError:
            raise InvalidRequestError([problem(None, f"it was not there after {READ_SECONDS:.0f} s")]) from None
        except ClientDisconnect:
            raise ClientGoneError from None

    async def store(self, data: bytes, *, field: str | None = None, change: Change | None = None) -> StoredInput:
        """Store an image that has been read.

        Args:
            data: The image.
            field: The field of the request that it came in, for errors; None where it is the body.
            change: What is made of it first.

        Raises:
            TooLargeError: It has too many bytes.
            InvalidRequestError: It is no image that is taken.
            StorageError: Storage is away.
            UnavailableError: Storage does not answer.
        """
        _check_size(len(data))
        try:
            plain = await self._rewrite(data, change)
        except InvalidRequestError as error:
            raise error if field is None else _in_field(field, error) from None
        del data
        digest = hashlib.sha256(plain.data).hexdigest()
        storing = self._put(digest, plain.data)
        try:
            await asyncio.wait_for(asyncio.shield(storing), STORE_SECONDS)
        except (TimeoutError, asyncio.CancelledError) as ended:
            # The image is in memory until storage has answered, and so long it holds its place.
            storing.add_done_callback(partial(_leave, self._held.pop_all()))
            if isinstance(ended, asyncio.CancelledError):
                raise
            raise UnavailableError("Image storage does not answer; try again shortly.") from None
        logger.info("input stored", extra={"input": digest, "client": self._client})
        return StoredInput(digest, plain.width, plain.height, len(plain.data))


def _leave(place: contextlib.ExitStack, storing: asyncio.Future[None]) -> None:
    """Leave a place, and look at an outcome that nobody waits for any more."""
    place.close()
    if not storing.cancelled():
        storing.exception()


async def _bounded(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    size = 0
    async for piece in body:
        size += len(piece)
        _check_size(size)
        yield piece


def _check_size(size: int) -> None:
    if size > MAX_BYTES:
        raise TooLargeError(f"The image is too large: at most {MAX_BYTES} bytes are taken.")


def _in_field(field: str, error: InvalidRequestError) -> InvalidRequestError:
    return InvalidRequestError({**entry, "loc": ["body", field]} for entry in error.detail if isinstance(entry, dict))


def rewritten(data: bytes, change: Change | None = None) -> PlainImage:
    """Decode an image, turn it as its EXIF orientation says, and write it anew: grey, RGB or RGBA, 8 bits a channel.

    Nothing else of the file is kept: no EXIF, no text, no colour profile.

    Args:
        data: The file.
        change: What is made of the image before it is written; it raises InvalidRequestError where it cannot.

    Raises:
        InvalidRequestError: It is no image that is taken; the reason is in it.
    """
    try:
        # The header alone is read here.
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            _check(opened)
            plain = _plain(_upright(opened))
            if change is not None:
                plain = change(plain)
    except InvalidRequestError:
        raise
    except UnidentifiedImageError:
        raise _refused(f"it is none of {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError:
        raise _refused(f"it has too many pixels; at most {MAX_SIZE} a side are taken") from None
    except Exception as error:  # noqa: BLE001 - Pillow raises what it likes on what is broken
        raise _refused(f"it is broken and cannot be decoded ({type(error).__name__})") from None
    file = io.BytesIO()
    plain.save(file, "PNG", compress_level=1)
    return PlainImage(file.getvalue(), plain.width, plain.height)


def _check(image: Image.Image) -> None:
    """Refuse an image by its header.

    Raises:
        InvalidRequestError: It has too many pixels, or several frames.
    """
    if max(image.size) > MAX_SIZE:
        raise _refused(f"it has {image.width} by {image.height} pixels; at most {MAX_SIZE} a side are taken")
    if image.width * image.height > MAX_INPUT_PIXELS:
        raise _refused(
            f"it has {image.width} by {image.height} pixels; at most {MAX_INPUT_PIXELS} in all are taken, "
            "so scale it down"
        )
    # A JPEG of several pictures (MPO), as phones write them, shows its first.
    if image.format in {"PNG", "WEBP"} and getattr(image, "is_animated", False):
        raise _refused("it is animated; send one frame")


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    # Metadata that is broken is no reason to refuse an image that shows: it is dropped anyway.
    with contextlib.suppress(Exception):
        # In its place: a copy of the largest takes 32 MiB.
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _plain(image: Image.Image) -> Image.Image:
    """Return an image in 8 bits a channel, without metadata."""
    if image.mode.startswith(_DEEP):
        # 16 bits: Pillow's own conversion would cut what is above 8.
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if image.has_transparency_data:
        image = _in_mode(image, "RGBA")
        if image.getchannel("A").getextrema() == (255, 255):
            image = _in_mode(image, "RGB")
    else:
        image = _in_mode(image, "L" if image.mode in {"1", "L"} else "RGB")
    # What PNG would store of it.
    image.info = {}
    return image


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    # Pillow copies an image that has the mode already.
    return image if image.mode == mode else image.convert(mode)


def _refused(why: str) -> InvalidRequestError:
    return InvalidRequestError([problem(None, f"The image is not taken: {why}", "image_refused")])

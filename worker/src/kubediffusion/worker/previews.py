"""Stores previews of images that are being made: only while somebody asks, and only the latest.

Who asks says so by an annotation of the job. Each new value of it counts for a minute from when this worker sees it: no
clock is compared with another. The engine's thread asks which image is due and hands a preview over; it waits for
nobody. What is slow (storage) or fails costs previews, never an image: docs/adr/0022-previews-lie-beside-the-images.md.
"""

from __future__ import annotations

import asyncio
import io
import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

from PIL import Image as Pillow

from kubediffusion.resources.image_keys import preview_key
from kubediffusion.resources.meta import PREVIEW_REQUESTED_AT_ANNOTATION, PREVIEW_SECONDS
from kubediffusion.resources.storage import ImageStorage, Preview, StorageError
from kubediffusion.worker.assignments import Assignment, Binding
from kubediffusion.worker.engine import ImagePreview

logger = logging.getLogger(__name__)

PERIOD = 1.0
"""Seconds between two previews of a job."""

AFTER_FAILURE = 10.0
"""Seconds until the next one where storage did not take one."""

CLOSE_SECONDS = 5.0
"""How long previews that are being removed are waited for when the worker ends."""


@dataclass(eq=False)
class _Request:
    """What is known of one binding of a job at which somebody looks.

    Attributes:
        value: The annotation's value.
        until: When previews end, in monotonic seconds.
        due_at: When the next one is due. Written by the engine's thread, too.
        index: The image that is shown. Written by the engine's thread.
        upload: What is on its way to storage.
        stored: Whether anything may be there.
    """

    value: str
    until: float
    due_at: float = 0.0
    index: int | None = None
    upload: asyncio.Task[None] | None = None
    stored: bool = False


class Previews:
    """Stores previews of the jobs that are looked at.

    Args:
        storage: Where to.
        prefix: What their keys begin with.
        threads: Threads of its own, in which they are encoded and uploaded.
        clock: Returns monotonic seconds.
    """

    def __init__(
        self, storage: ImageStorage, prefix: str, threads: Executor, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._storage = storage
        self._prefix = prefix
        self._threads = threads
        self._clock = clock
        self._requests: dict[Binding, _Request] = {}
        self._removals: set[asyncio.Task[None]] = set()

    def observe(self, assignment: Assignment) -> None:
        """Take in whether somebody looks at a job, as its annotation says now."""
        value = assignment.job.metadata.annotations.get(PREVIEW_REQUESTED_AT_ANNOTATION)
        if value is None or assignment.dropped or assignment.finishing:
            return
        known = self._requests.get(assignment.binding)
        until = self._clock() + PREVIEW_SECONDS
        if known is None:
            self._requests[assignment.binding] = _Request(value, until)
        elif known.value != value:
            known.value, known.until = value, until

    def due(self, assignment: Assignment, index: int) -> bool:
        """Return whether an image's preview is due, and count it as made; in the engine's thread.

        One image of a job is shown until it is done, or does not come any more.
        """
        request = self._requests.get(assignment.binding)
        if request is None:
            return False
        now = self._clock()
        if not request.due_at <= now < request.until:
            return False
        shown = request.index
        if shown not in {None, index} and shown not in assignment.outputs and now < request.due_at + PERIOD:
            return False
        request.index, request.due_at = index, now + PERIOD
        return True

    def publish(self, assignment: Assignment, index: int, preview: ImagePreview) -> None:
        """Store a preview; none while the one before is still on its way."""
        request = self._requests.get(assignment.binding)
        if request is None or request.upload is not None:
            return
        request.stored = True
        request.upload = asyncio.get_running_loop().create_task(self._store(request, assignment, index, preview))

    def stop(self, assignment: Assignment) -> None:
        """End the previews of a job, and remove what was stored: its images are there, or never will be."""
        request = self._requests.pop(assignment.binding, None)
        if request is not None and request.stored:
            removal = asyncio.get_running_loop().create_task(self._remove(request, assignment))
            self._removals.add(removal)
            removal.add_done_callback(self._removals.discard)

    async def drain(self) -> None:
        """Wait, not for long, until what is to be removed is removed."""
        if self._removals:
            await asyncio.wait(self._removals, timeout=CLOSE_SECONDS)

    def _key(self, assignment: Assignment) -> str:
        return preview_key(self._prefix, assignment.job.metadata.namespace, assignment.binding.uid)

    async def _store(self, request: _Request, assignment: Assignment, index: int, preview: ImagePreview) -> None:
        attempt, key = assignment.binding.attempt, self._key(assignment)

        def put() -> None:
            self._storage.put_preview(key, Preview(_png(preview), attempt, index))

        try:
            await asyncio.get_running_loop().run_in_executor(self._threads, put)
        except StorageError as error:
            request.due_at = self._clock() + AFTER_FAILURE
            logger.warning("preview not stored: %s", error, extra={"job": assignment.name})
        finally:
            request.upload = None

    async def _remove(self, request: _Request, assignment: Assignment) -> None:
        if request.upload is not None:
            await asyncio.wait([request.upload])
        uri = self._storage.uri(self._key(assignment))
        try:
            await asyncio.get_running_loop().run_in_executor(self._threads, self._storage.delete, uri)
        except StorageError as error:
            logger.warning("preview not removed: %s", error, extra={"job": assignment.name})


def _png(preview: ImagePreview) -> bytes:
    buffer = io.BytesIO()
    image = Pillow.frombytes("RGB", (preview.width, preview.height), preview.rgb)
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()

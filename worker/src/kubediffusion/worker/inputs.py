"""Fetches the images that jobs are made of, and decodes them, while the engine computes other jobs.

What lies in storage is not trusted: its hash must be the one that the job names, and no more pixels are decoded than
the API takes.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import logging
from concurrent.futures import Executor

from PIL import Image

from kubediffusion.resources.failures import ErrorCode, JobFailure
from kubediffusion.resources.generation_job import MAX_INPUT_PIXELS, MAX_SIZE, InputRole, JobInput
from kubediffusion.resources.image_keys import input_key
from kubediffusion.resources.storage import ImageStorage, StorageError
from kubediffusion.worker.assignments import Assignment
from kubediffusion.worker.context import WorkerContext
from kubediffusion.worker.engine import EngineInfo, InputImage, InputImages
from kubediffusion.worker.fetches import FailedTry, Fetcher, FetchLog, FinishImage
from kubediffusion.worker.progress_reporter import ProgressReporter

MAX_BYTES = 80 * 2**20
"""Bytes of an input that are read: a PNG of the most pixels, which hardly compresses, with an alpha channel."""

_LOG = FetchLog(logging.getLogger(__name__), "inputs", "fetched", "an input is not read yet, trying again")


class InputFetcher:
    """Fetches the inputs of jobs, and gives them to their assignments.

    Args:
        context: What the parts of the worker share.
        finish_image: Takes in failures.
        progress: Writes that storage makes a job wait.
        threads: Read and decode.
    """

    def __init__(
        self, context: WorkerContext, finish_image: FinishImage, progress: ProgressReporter, threads: Executor
    ) -> None:
        self._engine = context.engine.info
        self._storage = context.storage
        self._prefix = context.prefix
        self._threads = threads
        self._fetcher = Fetcher(context, finish_image, progress, _LOG)

    def observe(self, assignment: Assignment) -> None:
        """Begin to fetch the inputs of a job that has just been bound."""
        if not assignment.awaits_inputs or assignment.fetches_inputs or assignment.finishing:
            return
        assignment.fetches_inputs = True
        self._fetcher.start(assignment, self._fetch_all(assignment))

    async def _fetch_all(self, assignment: Assignment) -> None:
        size = size_of(assignment, self._engine)
        found = {given.role: await self._fetch(assignment, given, size) for given in assignment.parameters.inputs or ()}
        # There is one: the API server refuses a job that has a mask alone.
        assignment.inputs = InputImages(found[InputRole.IMAGE], found.get(InputRole.MASK))

    async def _fetch(self, assignment: Assignment, given: JobInput, size: tuple[int, int] | None) -> InputImage:
        key = input_key(self._prefix, assignment.job.metadata.namespace, given.id)

        async def read() -> InputImage:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, read_input, self._storage, key, given, size)

        return await self._fetcher.until_fetched(assignment, read, lambda error: _judge(error, given), key=key)


def _judge(error: Exception, given: JobInput) -> FailedTry:
    """Tell what a failed read of an input means.

    Raises:
        JobFailure: Storage will never have it, or never give it.
        Exception: The error, which is none of storage.
    """
    if not isinstance(error, StorageError):
        raise error
    if error.missing:
        raise _unusable(given, "it is not in storage; upload it by POST /v1/inputs") from error
    failure = JobFailure(ErrorCode.STORAGE_FAILED, f"the {given.role} cannot be read: {error}")
    if error.permanent:
        raise failure from error
    return FailedTry(f"the {given.role} is not read yet: {error}", failure if error.refused else None)


def size_of(assignment: Assignment, engine: EngineInfo) -> tuple[int, int] | None:
    """Return the width and height of a job's images, in pixels, as far as they are known before one is made."""
    asked = assignment.parameters
    own = None if engine.facts is None else engine.facts.defaults
    width = asked.width or (own and own.width) or asked.height
    height = asked.height or (own and own.height) or asked.width
    return None if width is None or height is None else (width, height)


def read_input(storage: ImageStorage, key: str, given: JobInput, size: tuple[int, int] | None) -> InputImage:
    """Read and decode an input, in the size of the image that is made of it.

    Args:
        storage: Where it lies.
        key: Its key.
        given: Its hash, and what it is to the job.
        size: Width and height in pixels; None for its own.

    Raises:
        StorageError: It cannot be read.
        JobFailure: It is not what its hash says, or no image that is taken.
    """
    stream = storage.open(storage.uri(key))
    try:
        if stream.length > MAX_BYTES:
            raise _unusable(given, f"it has {stream.length} bytes, more than {MAX_BYTES}")
        data = stream.read(stream.length)
    finally:
        stream.close()
    if hashlib.sha256(data).hexdigest() != given.id:
        raise _unusable(given, "what lies in storage has another hash; upload it again by POST /v1/inputs")
    return decode_input(data, given, size)


def decode_input(data: bytes, given: JobInput, size: tuple[int, int] | None) -> InputImage:
    """Decode an input as the API stores it: a PNG, with an alpha channel at most.

    Args:
        data: Its bytes.
        given: Its hash, and what it is to the job.
        size: Width and height in pixels; None for its own.

    Raises:
        JobFailure: It is something else.
    """
    try:
        # The header alone is read here.
        with Image.open(io.BytesIO(data), formats=("PNG",)) as opened:
            _check_size(opened, given)
            # What is transparent is white in an image, and black, which is kept, in a mask.
            masks = given.role is InputRole.MASK
            below = Image.new("RGBA", opened.size, "black" if masks else "white")
            flat = Image.alpha_composite(below, opened.convert("RGBA")).convert("L" if masks else "RGB")
    except JobFailure:
        raise
    except Exception as error:
        raise _unusable(given, f"it is no PNG that can be read ({type(error).__name__})") from error
    if size is not None and flat.size != size:
        flat = flat.resize(size, Image.Resampling.LANCZOS)
    return InputImage(given.id, flat.width, flat.height, flat.tobytes())


def _check_size(image: Image.Image, given: JobInput) -> None:
    if max(image.size) > MAX_SIZE:
        raise _unusable(given, f"it has {image.width} by {image.height} pixels, more than {MAX_SIZE} a side")
    if image.width * image.height > MAX_INPUT_PIXELS:
        raise _unusable(given, f"it has {image.width} by {image.height} pixels, more than {MAX_INPUT_PIXELS} in all")


def _unusable(given: JobInput, why: str) -> JobFailure:
    return JobFailure(ErrorCode.INVALID_INPUT, f"the {given.role} {given.id} cannot be used: {why}")

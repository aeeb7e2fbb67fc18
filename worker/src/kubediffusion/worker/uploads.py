"""Uploads finished images. It retries for as long as storage is away, and for minutes where storage refuses."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor

from kubediffusion.resources.backoff import Backoff
from kubediffusion.resources.failures import ErrorCode, JobFailure
from kubediffusion.resources.storage import ImageStorage, StorageError
from kubediffusion.worker.refusal_backoff import RefusalBackoff

logger = logging.getLogger(__name__)

FIRST_PAUSE = 0.2
LONGEST_PAUSE = 10.0

REPORT_AFTER = 1.0
"""Seconds of failed tries after which trouble is reported."""

SLOW_SECONDS = 5.0
"""Seconds without an answer after which trouble is reported: an upload takes a fraction of one."""


class Uploader:
    """Uploads images, each until storage has confirmed it.

    Args:
        storage: Where to.
        executor: Threads for the blocking calls.
        refused_seconds: How long what storage refuses is tried again.
    """

    def __init__(self, storage: ImageStorage, executor: Executor, refused_seconds: float) -> None:
        self._storage = storage
        self._refused_seconds = refused_seconds
        self._executor = executor
        self._answered = asyncio.Event()

    async def put(self, key: str, data: bytes, attempt: int, on_trouble: Callable[[str], None]) -> str:
        """Store a PNG, and return its ``s3://`` address once storage has confirmed it.

        Cancelled, it ends when nothing of it can reach storage any more.

        Args:
            key: Key in the bucket.
            data: The PNG.
            attempt: Which binding of the job made it; storage keeps the file of the latest.
            on_trouble: Called with the problem, after the first second of trouble and then at every failed try.

        Raises:
            JobFailure: Storage refuses it for good, or has for ``refused_seconds``.
            SupersededError: A later attempt has stored its own.
        """
        backoff, failing_since = Backoff(FIRST_PAUSE, LONGEST_PAUSE), None
        refusals = RefusalBackoff(self._refused_seconds)
        while True:
            answered = self._answered
            try:
                uri = await self._try(key, data, attempt, on_trouble)
            except StorageError as error:
                if error.permanent:
                    raise JobFailure(ErrorCode.STORAGE_FAILED, str(error)) from error
                problem, refused = str(error), error.refused
            else:
                self._wake_others()
                return uri
            now = time.monotonic()
            failing_since = failing_since or now
            if now - failing_since >= REPORT_AFTER:
                on_trouble(problem)
            pause = refusals.next_pause() if refused else backoff.next_pause()
            if pause is None:
                message = f"storage has refused the image for {self._refused_seconds:.0f} s: {problem}"
                raise JobFailure(ErrorCode.STORAGE_FAILED, message)
            logger.warning("image not uploaded yet, trying again: %s", problem, extra={"key": key, "pause": pause})
            if refused:
                # That others get through says nothing of it.
                await asyncio.sleep(pause)
                continue
            refusals.reset()
            # Who waits the longest pause goes on at once when another upload got through.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await answered.wait()
                    backoff.reset()

    async def _try(self, key: str, data: bytes, attempt: int, on_trouble: Callable[[str], None]) -> str:
        """Try once; a try that hangs is trouble too."""
        thread = self._executor.submit(self._storage.put, key, data, attempt)
        trying = asyncio.wrap_future(thread)
        try:
            done, _ = await asyncio.wait([trying], timeout=SLOW_SECONDS)
            if not done:
                on_trouble(f"storage has not answered for {SLOW_SECONDS:.0f} s")
                await asyncio.wait([trying])
        except asyncio.CancelledError:
            # What has begun cannot be stopped.
            if not thread.cancel():
                await asyncio.wait([trying])
                trying.exception()
            raise
        return trying.result()

    async def delete(self, key: str) -> None:
        """Delete an object, retrying while storage is away; an object that does not exist is no error.

        What storage refuses for good, or for ``refused_seconds``, is left there, with a line in the log.
        """
        refusals = RefusalBackoff(self._refused_seconds)
        backoff, uri = Backoff(FIRST_PAUSE, LONGEST_PAUSE), self._storage.uri(key)
        loop = asyncio.get_running_loop()
        while True:
            try:
                return await loop.run_in_executor(self._executor, self._storage.delete, uri)
            except StorageError as error:
                pause = refusals.next_pause() if error.refused else backoff.next_pause()
                if error.permanent or pause is None:
                    logger.warning("image not removed: %s", error, extra={"key": key})
                    return None
                logger.warning("image not removed yet, trying again: %s", error, extra={"key": key})
                await asyncio.sleep(pause)

    def _wake_others(self) -> None:
        self._answered.set()
        self._answered = asyncio.Event()

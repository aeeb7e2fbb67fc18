"""Brings finished images to storage, however long that takes, without making them again."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Protocol

from kubediffusion.resources.errors import ErrorCode, JobFailure
from kubediffusion.resources.storage import StorageError

logger = logging.getLogger(__name__)

FIRST_PAUSE = 0.2
LONGEST_PAUSE = 10.0

GRACE = 1.0
"""Seconds of trouble before it is worth telling."""


class Store(Protocol):
    """The part of storage that uploads need: :class:`kubediffusion.resources.storage.ImageStorage`."""

    def put(self, key: str, data: bytes) -> str:
        """Store a PNG and give its address; raises StorageError."""


class Uploader:
    """Uploads images, each until storage has confirmed it.

    Args:
        store: Where to.
        executor: Threads for the blocking calls.
    """

    def __init__(self, store: Store, executor: Executor) -> None:
        self._store = store
        self._executor = executor
        self._answered = asyncio.Event()

    async def put(self, key: str, data: bytes, on_trouble: Callable[[str], None]) -> str:
        """Store a PNG and give its address once storage has confirmed it.

        Args:
            key: Where in the bucket.
            data: The file.
            on_trouble: Called with what is wrong, from the first second of trouble on and then at every failed try.

        Raises:
            JobFailure: Storage refuses it for good.
        """
        loop = asyncio.get_running_loop()
        pause, failing_since = FIRST_PAUSE, None
        while True:
            answered = self._answered
            try:
                uri = await loop.run_in_executor(self._executor, self._store.put, key, data)
            except StorageError as error:
                if error.permanent:
                    raise JobFailure(ErrorCode.STORAGE_FAILED, str(error)) from error
                problem = str(error)
            else:
                self._wake_others()
                return uri
            now = time.monotonic()
            failing_since = failing_since or now
            if now - failing_since >= GRACE:
                on_trouble(problem)
            logger.warning("image not uploaded yet, trying again: %s", problem, extra={"key": key, "pause": pause})
            # Who waits the longest pause goes on at once when another upload got through.
            try:
                async with asyncio.timeout(pause * random.uniform(0.5, 1.0)):  # noqa: S311 - jitter, not a secret
                    await answered.wait()
            except TimeoutError:
                pause = min(pause * 2, LONGEST_PAUSE)

    def _wake_others(self) -> None:
        self._answered.set()
        self._answered = asyncio.Event()

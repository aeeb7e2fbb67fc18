"""Reads of jobs that the watch has not shown: the price of read-your-writes on any replica.

A job that another replica accepted a moment ago may not have arrived here. So a name that is not in the cache is asked
for at the API server, and only its word makes a 404. That must not become a way to flood the API server:

- Requests for one name share a read, and reads of one name start at least :data:`INTERVAL` apart. A request never
  takes the result of a read that began before it came, since the job may have been accepted in between; it waits for
  the next one. So an answer is late at worst, and never wrong.
- Each client may cause only so many reads that find nothing; beyond that it is told to wait, which is no 404 either.
- Only so many reads run at the same time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from kubediffusion.api.entries import Entry
from kubediffusion.api.limits import Allowance
from kubediffusion.resources.client import KubernetesError

INTERVAL = 0.5
"""Seconds between two reads of one name."""

CONCURRENCY = 16
"""Reads that run at the same time."""

Read = Callable[[str], Awaitable[Entry | None]]


class Lookups:
    """Reads of names that are not in the cache.

    Args:
        read: Asks the API server for a job; None when there is none.
        allowance: How many reads that find nothing a client may cause.
        interval: Seconds between two reads of one name.
    """

    def __init__(self, read: Read, allowance: Allowance, interval: float = INTERVAL) -> None:
        self._read = read
        self._allowance = allowance
        self._interval = interval
        # Reads that have not begun: whoever comes now may wait for them.
        self._coming: dict[str, asyncio.Task[Entry | KubernetesError | None]] = {}
        # When the last read of a name began; in that order, and only those within the interval.
        self._begun: dict[str, float] = {}
        self._slots = asyncio.Semaphore(CONCURRENCY)

    async def find(self, name: str, client: str) -> Entry | None:
        """Read a job, or find that there is none.

        Args:
            name: Its name.
            client: Who asks.

        Raises:
            KubernetesError: The API server could not say.
            TooManyRequestsError: This client has asked for too many jobs that do not exist.
        """
        task = self._coming.get(name)
        if task is None:
            self._allowance.check(client)
            task = asyncio.create_task(self._find(name, client))
            self._coming[name] = task
        # Shielded: when this request is given up, others may still wait for the same read.
        result = await asyncio.shield(task)
        if isinstance(result, KubernetesError):
            raise result
        return result

    async def _find(self, name: str, client: str) -> Entry | KubernetesError | None:
        await asyncio.sleep(self._pause(name))
        async with self._slots:
            del self._coming[name]
            self._begun.pop(name, None)
            self._begun[name] = time.monotonic()
            try:
                entry = await self._read(name)
            except KubernetesError as error:
                # A value, as nobody may be left to take an exception.
                return error
        if entry is None:
            self._allowance.spend(client)
        return entry

    def _pause(self, name: str) -> float:
        now = time.monotonic()
        while self._begun:
            oldest, began = next(iter(self._begun.items()))
            if began + self._interval > now:
                break
            del self._begun[oldest]
        return self._begun.get(name, now - self._interval) + self._interval - now

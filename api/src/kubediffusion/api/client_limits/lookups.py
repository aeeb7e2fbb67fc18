"""Reads of jobs that the watch has not shown: the price of read-your-writes on any replica.

A job that another replica accepted a moment ago may not have arrived here. So a name that is not in the cache is asked
for at the API server, and only its word makes a 404. That must not become a way to flood the API server:

- A client's requests for one name share a read, and such reads start at least :data:`INTERVAL` apart. A request never
  takes the result of a read that began before it came, since the job may have been accepted in between; it waits for
  the next one. So a response is late at worst, and never wrong.
- Each client may cause only so many reads that find nothing; beyond that it gets 429, which is no 404 either. A read is
  counted when it begins and refunded when it finds the job: requests that wait in line together cannot get past the
  rate, and many that find their jobs are not held up.
- Only so many reads run at the same time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from kubediffusion.api.client_limits.rates import RateLimiter
from kubediffusion.api.errors import TooManyRequestsError
from kubediffusion.api.job_cache.records import CachedJob
from kubediffusion.resources.apiserver.errors import KubernetesError

INTERVAL = 0.5
"""Seconds between two reads of one name."""

CONCURRENCY = 16
"""Reads that run at the same time."""

Read = Callable[[str], Awaitable[CachedJob | None]]


class _Request(NamedTuple):
    """Who asks for which job. Clients share no reads: what one may no longer cause is no other's loss."""

    client: str
    name: str


_Outcome = CachedJob | KubernetesError | TooManyRequestsError | None


class JobLookups:
    """Reads jobs that are not in the cache.

    Args:
        read: Asks the API server for a job; None when there is none.
        misses: How many reads that find nothing a client may cause.
        interval: Seconds between two reads of one name.
    """

    def __init__(self, read: Read, misses: RateLimiter, interval: float = INTERVAL) -> None:
        self._read = read
        self._misses = misses
        self._interval = interval
        # Reads that have not begun: whoever comes now may wait for them.
        self._waiting: dict[_Request, asyncio.Task[_Outcome]] = {}
        # When the last read for a request began; in that order, and only those within the interval.
        self._begun: dict[_Request, float] = {}
        self._slots = asyncio.Semaphore(CONCURRENCY)

    def __len__(self) -> int:
        """How many requests are remembered: those that wait, and those whose read began within the interval."""
        self._forget_old(time.monotonic())
        return len(self._waiting) + len(self._begun)

    async def find(self, name: str, client: str) -> CachedJob | None:
        """Read a job at the API server.

        Args:
            name: The job's name.
            client: Who asks.

        Returns:
            The job, or None when there is none.

        Raises:
            KubernetesError: The API server could not say.
            TooManyRequestsError: This client has asked for too many jobs that do not exist.
        """
        request = _Request(client, name)
        task = self._waiting.get(request)
        if task is None:
            # A client over its rate need not stand in line to hear so.
            self._misses.check(client)
            task = asyncio.create_task(self._find(request))
            self._waiting[request] = task
        # Shielded: when this request is given up, others may still wait for the same read.
        outcome = await asyncio.shield(task)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def _find(self, request: _Request) -> _Outcome:
        await asyncio.sleep(self._pause(request))
        async with self._slots:
            del self._waiting[request]
            self._begun.pop(request, None)
            self._begun[request] = time.monotonic()
            # Errors are values here, as nobody may be left to take an exception.
            try:
                self._misses.hit(request.client)
            except TooManyRequestsError as error:
                return error
            outcome: _Outcome
            try:
                outcome = await self._read(request.name)
            except KubernetesError as error:
                outcome = error
        if outcome is not None:
            self._misses.refund(request.client)
        return outcome

    def _pause(self, request: _Request) -> float:
        now = time.monotonic()
        self._forget_old(now)
        return self._begun.get(request, now - self._interval) + self._interval - now

    def _forget_old(self, now: float) -> None:
        while self._begun:
            oldest, began = next(iter(self._begun.items()))
            if began + self._interval > now:
                return
            del self._begun[oldest]

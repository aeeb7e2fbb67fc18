"""Reads of jobs that the watch has not shown: the price of read-your-writes on any replica.

A job that another replica accepted a moment ago may not have arrived here. So a name that is not in the cache is asked
for at the API server, and only its word makes a 404. That must not become a way to flood the API server:

- A client's requests for one name share a read, and such reads start at least :data:`INTERVAL` apart. A request never
  takes the result of a read that began before it came, since the job may have been accepted in between; it waits for
  the next one. So an answer is late at worst, and never wrong.
- Each client may cause only so many reads that find nothing; beyond that it is told to wait, which is no 404 either.
  A read is taken off the client's allowance when it begins, and given back when it finds the job: requests that wait
  in line together cannot get past it, and many that find their jobs are not held up.
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


class _Question(NamedTuple):
    """Who asks for which job. Clients share no reads: what one may no longer cause is no other's loss."""

    client: str
    name: str


_Answer = CachedJob | KubernetesError | TooManyRequestsError | None


class JobLookups:
    """Reads of names that are not in the cache.

    Args:
        read: Asks the API server for a job; None when there is none.
        allowance: How many reads that find nothing a client may cause.
        interval: Seconds between two reads of one name.
    """

    def __init__(self, read: Read, allowance: RateLimiter, interval: float = INTERVAL) -> None:
        self._read = read
        self._allowance = allowance
        self._interval = interval
        # Reads that have not begun: whoever comes now may wait for them.
        self._coming: dict[_Question, asyncio.Task[_Answer]] = {}
        # When the last read for a question began; in that order, and only those within the interval.
        self._begun: dict[_Question, float] = {}
        self._slots = asyncio.Semaphore(CONCURRENCY)

    async def find(self, name: str, client: str) -> CachedJob | None:
        """Read a job, or find that there is none.

        Args:
            name: Its name.
            client: Who asks.

        Raises:
            KubernetesError: The API server could not say.
            TooManyRequestsError: This client has asked for too many jobs that do not exist.
        """
        question = _Question(client, name)
        task = self._coming.get(question)
        if task is None:
            # Who has nothing left need not stand in line for it.
            self._allowance.check(client)
            task = asyncio.create_task(self._find(question))
            self._coming[question] = task
        # Shielded: when this request is given up, others may still wait for the same read.
        result = await asyncio.shield(task)
        if isinstance(result, Exception):
            raise result
        return result

    async def _find(self, question: _Question) -> _Answer:
        await asyncio.sleep(self._pause(question))
        async with self._slots:
            del self._coming[question]
            self._begun.pop(question, None)
            self._begun[question] = time.monotonic()
            # Errors are values here, as nobody may be left to take an exception.
            try:
                self._allowance.take(question.client)
            except TooManyRequestsError as error:
                return error
            answer: _Answer
            try:
                answer = await self._read(question.name)
            except KubernetesError as error:
                answer = error
        if answer is not None:
            self._allowance.give_back(question.client)
        return answer

    def _pause(self, question: _Question) -> float:
        now = time.monotonic()
        while self._begun:
            oldest, began = next(iter(self._begun.items()))
            if began + self._interval > now:
                break
            del self._begun[oldest]
        return self._begun.get(question, now - self._interval) + self._interval - now

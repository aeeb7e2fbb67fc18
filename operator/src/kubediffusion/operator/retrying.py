"""Waits out what the API server does not answer or take for now."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from kubediffusion.resources.apiserver.errors import KubernetesError, NotFoundError
from kubediffusion.resources.backoff import Backoff

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
"""Seconds until the API server is asked again what it did not answer or take, where it does not say itself."""

LONGEST_RETRY_SECONDS = 30.0
"""The same at most, where it goes on like this."""

T = TypeVar("T")


async def retry_until_done(what: str, name: str, work: Callable[[], Awaitable[T]]) -> T | None:
    """Call a coroutine function until it returns or the job is gone; errors of the API server are waited out.

    Args:
        what: What is done, for the log.
        name: The job's name, for the log.
        work: The coroutine function.

    Returns:
        What ``work`` returns; None when the job is gone.
    """
    backoff = Backoff(RETRY_SECONDS, LONGEST_RETRY_SECONDS)
    while True:
        try:
            return await work()
        except NotFoundError:
            return None
        except KubernetesError as error:
            logger.warning("cannot %s, trying again: %s", what, error, extra={"job": name})
            pause = backoff.next_pause()
            await asyncio.sleep(error.retry_after or pause)

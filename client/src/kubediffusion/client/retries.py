"""What is tried again, and for how long: whatever may pass, until a time that was given is over."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from kubediffusion.client.errors import KubeDiffusionError, TooManyRequestsError, UnavailableError

FIRST_PAUSE = 0.25
LONGEST_PAUSE = 5.0

T = TypeVar("T")

OnRetry = Callable[[KubeDiffusionError, float], None]
"""Called before a request is tried again, with the error and the seconds until then."""


class Retries:
    """Tries requests again.

    Args:
        seconds: How long one request is tried again; 0 for once only.
        on_retry: Called before each further try.
    """

    def __init__(self, seconds: float, on_retry: OnRetry | None = None) -> None:
        self._seconds = seconds
        self._on_retry = on_retry

    async def run(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Return what an attempt returns; one that fails for a while only is repeated.

        Args:
            attempt: Makes the request. It must do no harm to make it twice.

        Raises:
            KubeDiffusionError: It failed for good, or for as long as it was tried.
        """
        from kubediffusion.resources.backoff import Backoff

        backoff = Backoff(FIRST_PAUSE, LONGEST_PAUSE)
        end = time.monotonic() + self._seconds
        while True:
            try:
                return await attempt()
            except (TooManyRequestsError, UnavailableError) as error:
                # The server's word counts, and our own pause where it says nothing.
                pause = max(error.retry_after or 0.0, backoff.next_pause())
                if time.monotonic() + pause > end:
                    raise
                if self._on_retry is not None:
                    self._on_retry(error, pause)
            await anyio.sleep(pause)

"""How much one client may ask for: slowapi on creation, an allowance on lookups of what does not exist."""

from __future__ import annotations

from limits import RateLimitItem, parse_many
from limits.strategies import FixedWindowRateLimiter
from slowapi import Limiter
from starlette.requests import Request

from kubediffusion.api.client_limits.counters import SCHEME, CounterStorage
from kubediffusion.api.errors import TooManyRequestsError
from kubediffusion.api.settings import Settings

STRATEGY = "fixed-window"
"""Two numbers a client, where a moving window keeps the time of every request. Around the turn of a window a client
may get through twice the limit at once, which does no harm here."""


def client_of(request: Request) -> str:
    """Name who asks: the API key's client, else the address. It is what limits are counted by."""
    client: str = request.state.client
    return client


def creation_limiter(settings: Settings) -> Limiter:
    """Give the limiter of job creation; it counts in this process's memory."""
    return Limiter(
        key_func=client_of,
        strategy=STRATEGY,
        storage_uri=f"{SCHEME}://",
        enabled=bool(settings.rate_limit),
    )


class RateLimiter:
    """A rate at which one client may do something that is only known afterwards to count.

    It is taken before, and given back where it did not.

    Args:
        limit: The rate as slowapi spells it; empty for any.
        message: What a client reads that has used it up.
    """

    def __init__(self, limit: str, message: str) -> None:
        self._limits: list[RateLimitItem] = parse_many(limit) if limit else []
        self._message = message
        self._counters = CounterStorage()
        self._limiter = FixedWindowRateLimiter(self._counters)

    def check(self, client: str) -> None:
        """Let pass a client that has something left.

        Raises:
            TooManyRequestsError: It has not.
        """
        for limit in self._limits:
            if not self._limiter.test(limit, client):
                reset = self._limiter.get_window_stats(limit, client).reset_time
                raise TooManyRequestsError.until(self._message, reset)

    def take(self, client: str) -> None:
        """Count one use, at once or not at all.

        Raises:
            TooManyRequestsError: The client has nothing left.
        """
        self.check(client)
        for limit in self._limits:
            self._limiter.hit(limit, client)

    def give_back(self, client: str) -> None:
        """Count one use less, since it did not count after all."""
        for limit in self._limits:
            self._counters.decr(limit.key_for(client))

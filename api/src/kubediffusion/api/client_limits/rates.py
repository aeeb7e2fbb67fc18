"""How often one client may do something, counted in this process's memory.

The storage that comes with the ``limits`` package starts a thread at a hit, which walks over all keys, and has no
bound. Keys may be addresses, so anybody could fill it; the counters here are bounded.
"""

from __future__ import annotations

import math
import time
from typing import NamedTuple

from cachetools import TLRUCache
from limits import RateLimitItem, parse_many
from limits.storage import Storage
from limits.strategies import FixedWindowRateLimiter

from kubediffusion.api.errors import InvalidRequestError, TooManyRequestsError, problem

CAPACITY = 100_000
"""Clients that are counted at the same time. Beyond it the one that was counted longest ago starts anew."""


class RateLimiter:
    """A rate at which each client may do something.

    Its windows are fixed, two numbers a client, where a moving window keeps the time of every request. Around the turn
    of a window a client may get through twice the limit at once, which does no harm here.

    Args:
        rate: The rate as the ``limits`` package spells it, for example ``10/second;5000/hour``; empty for none.
        message: What a client reads that is over it; ``{limit}`` in it becomes the limit that was hit.
    """

    def __init__(self, rate: str, message: str) -> None:
        self._limits: list[RateLimitItem] = parse_many(rate) if rate else []
        self._message = message
        self._counters = CounterStorage()
        self._strategy = FixedWindowRateLimiter(self._counters)

    def check(self, client: str, uses: int = 1) -> None:
        """Let a client pass that is below the rate, without counting.

        Args:
            client: The client.
            uses: How many uses there must be room for.

        Raises:
            InvalidRequestError: The rate never lets ``uses`` pass at once.
            TooManyRequestsError: The client is not below the rate.
        """
        for limit in self._limits:
            if uses > max(limit.amount, 1):
                message = f"{uses} jobs at once are more than the rate ever lets pass, {limit}; send fewer"
                raise InvalidRequestError([problem("jobs", message)])
            if not self._strategy.test(limit, client, cost=uses):
                reset = self._strategy.get_window_stats(limit, client).reset_time
                raise TooManyRequestsError.until(self._message.format(limit=limit), reset)

    def hit(self, client: str, uses: int = 1) -> None:
        """Count uses of a client, all of them or none.

        Raises:
            InvalidRequestError: The rate never lets ``uses`` pass at once.
            TooManyRequestsError: The client is over the rate; nothing was counted.
        """
        self.check(client, uses)
        for limit in self._limits:
            self._strategy.hit(limit, client, cost=uses)

    def headers(self, client: str) -> dict[str, str]:
        """Return the headers that tell a client the rate and what is left of it.

        They are those of draft-ietf-httpapi-ratelimit-headers-10: ``q`` is the quota of ``w`` seconds; of it ``r`` are
        left, for ``t`` seconds more. There is one entry for each limit of the rate, named after its seconds, and no
        header where there is no rate.
        """
        policies, states = [], []
        for limit in self._limits:
            name, stats = f'"{limit.get_expiry()}s"', self._strategy.get_window_stats(limit, client)
            policies.append(f"{name};q={limit.amount};w={limit.get_expiry()}")
            states.append(f"{name};r={stats.remaining};t={max(0, math.ceil(stats.reset_time - time.time()))}")
        return {"RateLimit-Policy": ", ".join(policies), "RateLimit": ", ".join(states)} if policies else {}

    def refund(self, client: str) -> None:
        """Take one use of a client back, since it did not count after all."""
        for limit in self._limits:
            self._counters.decr(limit.key_for(client))


class RatesByLimit:
    """The limiters of callers whose rates differ: one for each rate that is configured, in which each caller counts.

    Args:
        message: As of :class:`RateLimiter`.
    """

    def __init__(self, message: str) -> None:
        self._message = message
        self._limiters: dict[str, RateLimiter] = {}

    def limiter(self, rate: str) -> RateLimiter:
        """Return the limiter of a rate; rates are the settings' own, so there are few."""
        if rate not in self._limiters:
            self._limiters[rate] = RateLimiter(rate, self._message)
        return self._limiters[rate]


class _Counter(NamedTuple):
    """One window; ``expires`` is in seconds since the epoch."""

    hits: int
    expires: float


def _expiry(_key: str, counter: _Counter, _now: float) -> float:
    return counter.expires


class CounterStorage(Storage):
    """Counters that expire, for fixed windows: a window begins with a client's first request.

    Args:
        capacity: Counters to keep.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        super().__init__()
        self._counters: TLRUCache[str, _Counter] = TLRUCache(capacity, _expiry, lambda: time.time())

    @property
    def base_exceptions(self) -> type[Exception]:
        """The errors of the storage: it has none."""
        return ValueError

    def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        """Add to the count of the window, and return it; ``expiry`` is the window's length in seconds."""
        counter = self._counters.get(key) or _Counter(0, time.time() + expiry)
        self._counters[key] = counter._replace(hits=counter.hits + amount)
        return counter.hits + amount

    def decr(self, key: str) -> None:
        """Subtract one from the count of the window; nothing if the window has ended."""
        if (counter := self._counters.get(key)) is not None and counter.hits:
            self._counters[key] = counter._replace(hits=counter.hits - 1)

    def get(self, key: str) -> int:
        """Return the count of the window."""
        counter = self._counters.get(key)
        return counter.hits if counter else 0

    def get_expiry(self, key: str) -> float:
        """Return the moment at which the window ends, in seconds since the epoch."""
        counter = self._counters.get(key)
        return counter.expires if counter else time.time()

    def check(self) -> bool:
        """Return True: memory is always there."""
        return True

    def reset(self) -> int:
        """Forget all counters, and return how many there were."""
        forgotten = len(self._counters)
        self._counters.clear()
        return forgotten

    def clear(self, key: str) -> None:
        """Forget one counter."""
        self._counters.pop(key, None)

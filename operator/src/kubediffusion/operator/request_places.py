"""How many requests to the API server are under way at once: slow ones of a namespace hold up no other's. No I/O.

A webhook that does not answer makes each write of its namespace take ten seconds or thirty. With one bound for all, a
few dozen such writes are all that the operator does.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

OWN_PLACES = 4
"""Requests that each namespace may have under way, however many others have."""


class RequestPlaces:
    """Places for requests: some are each namespace's own, the others are shared, and given out in turn.

    Args:
        shared: How many are shared.
    """

    def __init__(self, shared: int) -> None:
        self._free = shared
        self._own = Counter[str]()
        """How many of its own places a namespace has taken."""
        self._waiting: dict[str, deque[asyncio.Future[bool]]] = {}
        """Who waits, by namespace; the namespace that got the last shared place is the last."""

    @asynccontextmanager
    async def place(self, namespace: str | None) -> AsyncIterator[None]:
        """Have a place for a request while the block runs.

        Args:
            namespace: The namespace that the request concerns; None for all of them.
        """
        key = namespace or ""
        own = await self._take(key)
        try:
            yield
        finally:
            self._give_back(key, own)

    async def _take(self, key: str) -> bool:
        """Take a place; return whether it is one of the namespace's own."""
        if self._own[key] < OWN_PLACES:
            self._own[key] += 1
            return True
        if self._free:
            self._free -= 1
            return False
        place: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, deque()).append(place)
        try:
            return await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self._give_back(key, place.result())
            raise

    def _give_back(self, key: str, own: bool) -> None:
        """Give a place to who waits for it, or back to where it came from."""
        if own and self._hand_over(key, own=True):
            return
        if own:
            self._own[key] -= 1
            if not self._own[key]:
                del self._own[key]
            return
        for other in list(self._waiting):
            if self._hand_over(other, own=False):
                return
        self._free += 1

    def _hand_over(self, key: str, *, own: bool) -> bool:
        """Give a place to the first of a namespace who still waits; return whether there is one."""
        waiting = self._waiting.pop(key, deque())
        while waiting:
            place = waiting.popleft()
            if not place.done():
                place.set_result(own)
                if waiting:
                    self._waiting[key] = waiting
                return True
        return False

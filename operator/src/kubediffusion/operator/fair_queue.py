"""A work queue that is fair between groups: none waits behind the many or the slow items of another. No I/O.

``asyncio.Queue`` serves no groups in turn, and does not bound what one of them has under way (docs/adr/0017).
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Items of several groups, which are served in turn.

    Args:
        most_of_a_group: Items of one group that may be under way at once.
    """

    def __init__(self, most_of_a_group: int) -> None:
        self._most = most_of_a_group
        self._waiting: dict[str, deque[T]] = {}
        """Items by group; the group that was served last is the last."""
        self._under_way = Counter[str]()
        self._changed = asyncio.Event()
        self._timers: set[asyncio.TimerHandle] = set()

    def put(self, group: str, item: T) -> None:
        """Add an item behind those of its group; the groups take turns."""
        self._waiting.setdefault(group, deque()).append(item)
        self._changed.set()

    def waiting(self, group: str) -> int:
        """Return how many items of a group wait."""
        return len(self._waiting.get(group, ()))

    def put_later(self, group: str, item: T, seconds: float) -> None:
        """Add an item once ``seconds`` have passed."""

        def put() -> None:
            self._timers.discard(timer)
            self.put(group, item)

        timer = asyncio.get_running_loop().call_later(seconds, put)
        self._timers.add(timer)

    async def get(self) -> tuple[str, T]:
        """Wait for the next item, and return its group and it; :meth:`done` must follow."""
        while True:
            for group in self._waiting:
                if self._under_way[group] < self._most:
                    return group, self._pop(group)
            self._changed.clear()
            await self._changed.wait()

    def done(self, group: str) -> None:
        """Count an item of a group as done."""
        self._under_way[group] -= 1
        if not self._under_way[group]:
            del self._under_way[group]
        self._changed.set()

    def close(self) -> None:
        """Drop the items that were to be added later."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    def _pop(self, group: str) -> T:
        items = self._waiting.pop(group)
        item = items.popleft()
        if items:
            self._waiting[group] = items
        self._under_way[group] += 1
        return item

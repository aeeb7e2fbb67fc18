"""Where limits are counted: this process's memory, bounded.

The storage that comes with the ``limits`` package starts a thread at every hit, which walks over all keys, and keeps
something of each key for ever. Keys may be addresses, so anybody could fill it.
"""

from __future__ import annotations

import time

from limits.storage import Storage

SCHEME = "kubediffusion"
"""The scheme of the address under which slowapi finds this storage."""

CAPACITY = 100_000
"""Clients that are counted at the same time. Beyond it the ones counted for longest start anew."""


class CounterStorage(Storage):
    """Counters that expire, for fixed windows: a window begins with a client's first request."""

    STORAGE_SCHEME = [SCHEME]  # noqa: RUF012 - the base class has it so

    def __init__(self, uri: str | None = None, wrap_exceptions: bool = False, **options: float | str | bool) -> None:
        super().__init__(uri, wrap_exceptions, **options)
        # Count and when it expires, by key, in the order in which the windows began.
        self._counters: dict[str, tuple[int, float]] = {}

    @property
    def base_exceptions(self) -> type[Exception]:
        """What may go wrong here: nothing."""
        return ValueError

    def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        """Count, and give the count of the window."""
        now = time.time()
        count, expires = self._counters.get(key, (0, 0.0))
        if expires <= now:
            count, expires = 0, now + expiry
            # To the end, as its window begins now.
            self._counters.pop(key, None)
            self._make_room(now)
        self._counters[key] = (count + amount, expires)
        return count + amount

    def decr(self, key: str) -> None:
        """Take a count back; one of a window that has ended is gone with it."""
        count, expires = self._counters.get(key, (0, 0.0))
        if count > 0 and expires > time.time():
            self._counters[key] = (count - 1, expires)

    def get(self, key: str) -> int:
        """Give the count of the window."""
        count, expires = self._counters.get(key, (0, 0.0))
        return count if expires > time.time() else 0

    def get_expiry(self, key: str) -> float:
        """Give the moment at which the window ends."""
        return self._counters.get(key, (0, time.time()))[1]

    def check(self) -> bool:
        """Tell that it works."""
        return True

    def reset(self) -> int:
        """Forget everything, and tell how much that was."""
        forgotten = len(self._counters)
        self._counters.clear()
        return forgotten

    def clear(self, key: str) -> None:
        """Forget one."""
        self._counters.pop(key, None)

    def _make_room(self, now: float) -> None:
        if len(self._counters) < CAPACITY:
            return
        self._counters = {key: counter for key, counter in self._counters.items() if counter[1] > now}
        # Half of it, so that this does not run at every request under attack.
        for key in list(self._counters)[: len(self._counters) - CAPACITY // 2]:
            del self._counters[key]

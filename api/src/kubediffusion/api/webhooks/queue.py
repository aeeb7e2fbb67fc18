"""What is to be sent, and when: fair between namespaces, and no receiver waits for a slow one. No I/O."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, deque
from dataclasses import dataclass, replace
from typing import TypeVar

from sortedcontainers import SortedList

Key = TypeVar("Key", str, tuple[str, str])

MOST = 64
"""Messages that are sent at the same time."""

MOST_OF_A_NAMESPACE = 24
"""Deliveries of one namespace: among these, and those that were sent and wait for their write."""

MOST_OF_A_RECEIVER = 8
"""Those to one receiver among these: one that does not answer leaves the namespace's other receivers their places."""


@dataclass(frozen=True)
class Owed:
    """That a receiver is owed the event of a job.

    Attributes:
        namespace: Namespace of the job.
        name: Name of the job.
        uid: Its uid; a job owes one event at a time.
        version: The job's resource version in which it is so.
        receiver: Host and port of the receiver.
        due: When the event is to be sent, in seconds since the epoch.
    """

    namespace: str
    name: str
    uid: str
    version: int
    receiver: str
    due: float


class DeliveryQueue:
    """Events that are owed, by the time at which they are due; :meth:`get` is for one caller.

    Args:
        most: Messages that may be sent at once.
        most_of_a_namespace: Deliveries of one namespace that may be under way at once.
        most_of_a_receiver: Those of one namespace to one receiver.
    """

    def __init__(
        self,
        most: int = MOST,
        most_of_a_namespace: int = MOST_OF_A_NAMESPACE,
        most_of_a_receiver: int = MOST_OF_A_RECEIVER,
    ) -> None:
        self._most = most
        self._most_of_a_namespace = most_of_a_namespace
        self._most_of_a_receiver = most_of_a_receiver
        self._owed: dict[str, Owed] = {}
        """The last that was told of each job, by uid."""
        self._under_way: dict[str, Owed] = {}
        self._sending: set[str] = set()
        """Uids of what is under way and has not been sent."""
        self._later: SortedList[tuple[float, str]] = SortedList()
        """Times and uids of what is not due yet."""
        self._due: dict[str, dict[str, deque[str]]] = {}
        """Uids of what is due by namespace and receiver; those served last are the last."""
        self._by_namespace = Counter[str]()
        self._by_receiver = Counter[tuple[str, str]]()
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._owed)

    def put(self, owed: Owed) -> None:
        """Add what a job owes, in place of what it owed in an older version."""
        known = self._owed.get(owed.uid)
        if known is not None:
            if known.version >= owed.version:
                return
            self._unschedule(known)
        self._owed[owed.uid] = owed
        if owed.uid not in self._under_way:
            self._schedule(owed)

    def postpone(self, owed: Owed, seconds: float) -> None:
        """Have a delivery that is under way made again after it is done, unless a newer version was told meanwhile."""
        if self._owed.get(owed.uid) is owed:
            self._owed[owed.uid] = replace(owed, due=time.time() + seconds)

    def remove(self, uid: str) -> None:
        """Remove a job that owes nothing."""
        known = self._owed.pop(uid, None)
        if known is not None:
            self._unschedule(known)

    async def get(self) -> Owed:
        """Wait until something is due that may be sent, and return it; :meth:`done` must follow."""
        while True:
            self._changed.clear()
            now = time.time()
            self._move_due(now)
            if len(self._sending) < self._most and (owed := self._next()) is not None:
                return owed
            pause = max(0.0, self._later[0][0] - now) if self._later else None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._changed.wait()

    def sent(self, owed: Owed) -> None:
        """Count a message as sent, while it is still to be written how that went.

        Where a namespace's writes are refused that takes as long as it lasts. Its own places alone are kept by it.
        """
        self._sending.discard(owed.uid)
        self._changed.set()

    def done(self, owed: Owed) -> None:
        """Count a delivery as done; what was told of its job meanwhile is scheduled."""
        del self._under_way[owed.uid]
        self._sending.discard(owed.uid)
        _count_down(self._by_namespace, owed.namespace)
        _count_down(self._by_receiver, (owed.namespace, owed.receiver))
        latest = self._owed.get(owed.uid)
        if latest is not None:
            if latest is owed:
                del self._owed[owed.uid]
            else:
                self._schedule(latest)
        self._changed.set()

    def _schedule(self, owed: Owed) -> None:
        self._later.add((owed.due, owed.uid))
        self._changed.set()

    def _unschedule(self, owed: Owed) -> None:
        # One that is due already is passed over when its turn comes.
        self._later.discard((owed.due, owed.uid))

    def _move_due(self, now: float) -> None:
        while self._later and self._later[0][0] <= now:
            _, uid = self._later.pop(0)
            owed = self._owed[uid]
            receivers = self._due.setdefault(owed.namespace, {})
            receivers.setdefault(owed.receiver, deque()).append(uid)

    def _next(self) -> Owed | None:
        for namespace in list(self._due):
            if self._by_namespace[namespace] >= self._most_of_a_namespace:
                continue
            for receiver in list(self._due.get(namespace, ())):
                if self._by_receiver[namespace, receiver] >= self._most_of_a_receiver:
                    continue
                if (owed := self._pop(namespace, receiver)) is not None:
                    self._under_way[owed.uid] = owed
                    self._sending.add(owed.uid)
                    self._by_namespace[namespace] += 1
                    self._by_receiver[namespace, receiver] += 1
                    return owed
        return None

    def _pop(self, namespace: str, receiver: str) -> Owed | None:
        """Take what is due to a receiver first, and put receiver and namespace at the end of their rows."""
        receivers = self._due.pop(namespace)
        uids = receivers.pop(receiver)
        found = None
        while uids and found is None:
            uid = uids.popleft()
            owed = self._owed.get(uid)
            # It may have been removed, or have got another time, or be under way, since it became due.
            if owed is None or uid in self._under_way or owed.receiver != receiver or (owed.due, uid) in self._later:
                continue
            found = owed
        if uids:
            receivers[receiver] = uids
        if receivers:
            self._due[namespace] = receivers
        return found


def _count_down(counter: Counter[Key], key: Key) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]

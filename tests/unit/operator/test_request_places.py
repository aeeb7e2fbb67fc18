"""Requests of one namespace that do not end leave places for those of others."""

from __future__ import annotations

import asyncio

from kubediffusion.operator.request_places import OWN_PLACES, RequestPlaces

SHARED = 3


class Requests:
    """Requests that last until they are told to end."""

    def __init__(self) -> None:
        self.places = RequestPlaces(SHARED)
        self.order: list[str] = []
        self._ends: dict[str, list[asyncio.Event]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, namespace: str, number: int) -> list[asyncio.Task[None]]:
        tasks = [asyncio.create_task(self._request(namespace)) for _ in range(number)]
        self._tasks |= set(tasks)
        return tasks

    def end(self, namespace: str) -> None:
        """End the request of a namespace that began first."""
        self._ends[namespace].pop(0).set()

    def under_way(self, namespace: str) -> int:
        return len(self._ends.get(namespace, ()))

    async def _request(self, namespace: str) -> None:
        async with self.places.place(namespace):
            self.order.append(namespace)
            event = asyncio.Event()
            self._ends.setdefault(namespace, []).append(event)
            await event.wait()


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_whoever_hangs_takes_no_other_namespaces_own_places() -> None:
    requests = Requests()
    requests.start("hangs", 100)
    await settled()
    assert requests.under_way("hangs") == OWN_PLACES + SHARED
    requests.start("quick", 100)
    await settled()
    assert requests.under_way("quick") == OWN_PLACES
    for _ in range(96):
        requests.end("quick")
        await settled()
        assert requests.under_way("quick") == OWN_PLACES
    assert requests.under_way("hangs") == OWN_PLACES + SHARED


async def test_one_namespace_alone_has_every_place() -> None:
    requests = Requests()
    requests.start("alone", 20)
    await settled()
    for left in range(20, 0, -1):
        assert requests.under_way("alone") == min(left, OWN_PLACES + SHARED)
        requests.end("alone")
        await settled()
    requests.start("other", 20)
    await settled()
    assert requests.under_way("other") == OWN_PLACES + SHARED


async def test_shared_places_are_given_in_turn() -> None:
    requests = Requests()
    requests.start("holds", OWN_PLACES + SHARED)
    await settled()
    requests.start("a", OWN_PLACES + 2)
    requests.start("b", OWN_PLACES + 2)
    await settled()
    requests.order.clear()
    # Those that began last have the shared places.
    for _ in range(OWN_PLACES + SHARED):
        requests.end("holds")
        await settled()
    assert requests.order == ["a", "b", "a"]


async def test_who_gives_up_waiting_keeps_no_place() -> None:
    requests = Requests()
    requests.start("a", OWN_PLACES + SHARED)
    await settled()
    waiting = requests.start("a", 3)
    await settled()
    for task in waiting[:2]:
        task.cancel()
    await settled()
    requests.end("a")
    await settled()
    assert requests.under_way("a") == OWN_PLACES + SHARED
    # One that is cancelled in the moment in which it is given a place hands it on.
    late = requests.start("a", 2)
    await settled()
    requests.end("a")
    late[0].cancel()
    await settled()
    assert requests.under_way("a") == OWN_PLACES + SHARED

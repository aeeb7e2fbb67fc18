"""What is sent next: when it is due, fairly, and nothing twice at the same time."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import replace

import pytest

from kubediffusion.api.webhooks.queue import DeliveryQueue, Owed


def owed(uid: str, namespace: str = "a", receiver: str = "r:443", due: float = 0.0, version: int = 1) -> Owed:
    return Owed(namespace, f"job-{uid}", uid, version, receiver, due)


async def taken(queue: DeliveryQueue, count: int) -> list[Owed]:
    return [await asyncio.wait_for(queue.get(), 10) for _ in range(count)]


async def nothing_due(queue: DeliveryQueue) -> bool:
    """Return whether nothing may be sent now; what is due is returned within one turn of the loop."""
    waiting = asyncio.create_task(queue.get())
    for _ in range(3):
        await asyncio.sleep(0)
    ended = waiting.done()
    waiting.cancel()
    return not ended


async def test_what_is_due_is_taken_once() -> None:
    queue = DeliveryQueue()
    first = owed("1")
    queue.put(first)
    queue.put(first)
    assert await taken(queue, 1) == [first]
    assert await nothing_due(queue)
    queue.done(first)
    assert await nothing_due(queue)
    assert len(queue) == 0


async def test_what_is_not_due_waits() -> None:
    queue = DeliveryQueue()
    queue.put(owed("later", due=time.time() + 3600))
    soon = owed("soon", due=time.time() + 0.05)
    queue.put(soon)
    assert await taken(queue, 1) == [soon]
    assert await nothing_due(queue)


async def test_what_was_told_meanwhile_follows() -> None:
    queue = DeliveryQueue()
    first = owed("1")
    queue.put(first)
    await taken(queue, 1)
    newer = replace(first, version=2)
    queue.put(newer)
    assert await nothing_due(queue)
    queue.done(first)
    assert await taken(queue, 1) == [newer]


async def test_an_older_version_changes_nothing() -> None:
    queue = DeliveryQueue()
    later = owed("1", due=time.time() + 3600, version=5)
    queue.put(later)
    queue.put(owed("1", version=4))
    assert await nothing_due(queue)


async def test_a_delivery_that_is_postponed_is_made_again() -> None:
    queue = DeliveryQueue()
    first = owed("1")
    queue.put(first)
    await taken(queue, 1)
    queue.postpone(first, 0.02)
    queue.done(first)
    assert [each.uid for each in await taken(queue, 1)] == ["1"]


async def test_a_newer_version_goes_before_a_postponement() -> None:
    queue = DeliveryQueue()
    first = owed("1")
    queue.put(first)
    await taken(queue, 1)
    newer = replace(first, version=2)
    queue.put(newer)
    queue.postpone(first, 3600)
    queue.done(first)
    assert await taken(queue, 1) == [newer]


async def test_what_is_removed_is_not_sent() -> None:
    queue = DeliveryQueue()
    for uid in ("1", "2", "3"):
        queue.put(owed(uid))
    await taken(queue, 1)
    queue.remove("2")
    assert [each.uid for each in await taken(queue, 1)] == ["3"]
    assert await nothing_due(queue)


async def test_what_gets_another_time_after_it_was_due_waits_for_that() -> None:
    queue = DeliveryQueue(most_of_a_receiver=1)
    queue.put(owed("1"))
    queue.put(owed("2"))
    (first,) = await taken(queue, 1)
    queue.put(owed("2", due=time.time() + 3600, version=2))
    queue.done(first)
    assert await nothing_due(queue)


async def test_a_receiver_that_is_slow_leaves_places_for_others() -> None:
    queue = DeliveryQueue(most=8, most_of_a_namespace=4, most_of_a_receiver=2)
    for number in range(10):
        queue.put(owed(f"slow-{number}", receiver="slow:443"))
    queue.put(owed("quick", receiver="quick:443"))
    queue.put(owed("other", namespace="b"))
    assert {each.uid for each in await taken(queue, 4)} == {"slow-0", "slow-1", "quick", "other"}
    assert await nothing_due(queue)


async def test_namespaces_take_turns_and_none_takes_all_places() -> None:
    queue = DeliveryQueue(most=6, most_of_a_namespace=4, most_of_a_receiver=4)
    for number in range(10):
        queue.put(owed(f"a{number}", receiver=f"r{number}:443"))
    for number in range(2):
        queue.put(owed(f"b{number}", namespace="b"))
    got = await taken(queue, 6)
    assert [each.namespace for each in got] == ["a", "b", "a", "b", "a", "a"]
    assert await nothing_due(queue)


@pytest.mark.parametrize("most", [1, 3])
async def test_no_more_are_under_way_than_may_be(most: int) -> None:
    queue = DeliveryQueue(most=most)
    for number in range(5):
        queue.put(owed(str(number), namespace=str(number)))
    got = await taken(queue, most)
    assert await nothing_due(queue)
    queue.done(got[0])
    assert len(await taken(queue, 1)) == 1


async def test_namespaces_whose_writes_are_refused_keep_their_own_places_alone() -> None:
    queue = DeliveryQueue(most=4, most_of_a_namespace=2)
    for namespace in "abc":
        for number in range(3):
            queue.put(owed(f"{namespace}{number}", namespace))
    stuck = await taken(queue, 4)
    assert await nothing_due(queue)
    for item in stuck:
        queue.sent(item)
    there = Counter(item.namespace for item in (*stuck, *await taken(queue, 2)))
    assert there == {"a": 2, "b": 2, "c": 2}
    assert await nothing_due(queue)
    queue.put(owed("d", "d"))
    assert [item.namespace for item in await taken(queue, 1)] == ["d"]
    queue.done(stuck[0])
    assert [item.namespace for item in await taken(queue, 1)] == [stuck[0].namespace]

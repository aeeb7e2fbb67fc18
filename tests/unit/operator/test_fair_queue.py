"""A fair queue serves groups in turn, and no more of one at once than it may have."""

from __future__ import annotations

import asyncio

import pytest

from kubediffusion.operator.fair_queue import FairQueue


async def test_groups_are_served_in_turn_however_many_one_has() -> None:
    queue = FairQueue[int](9)
    for number in range(5):
        queue.put("many", number)
    queue.put("few", 0)
    served = [await queue.get() for _ in range(6)]
    assert served == [("many", 0), ("few", 0), ("many", 1), ("many", 2), ("many", 3), ("many", 4)]


async def test_a_group_has_no_more_under_way_than_it_may() -> None:
    queue = FairQueue[int](2)
    for number in range(3):
        queue.put("slow", number)
    assert [await queue.get() for _ in range(2)] == [("slow", 0), ("slow", 1)]
    third = asyncio.create_task(queue.get())
    queue.put("other", 9)
    assert await third == ("other", 9)
    third = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    assert not third.done()
    queue.done("slow")
    assert await asyncio.wait_for(third, 5) == ("slow", 2)


async def test_what_is_added_later_comes_later_unless_the_queue_is_closed() -> None:
    queue = FairQueue[int](1)
    queue.put_later("a", 1, 0.01)
    assert await asyncio.wait_for(queue.get(), 5) == ("a", 1)
    queue.done("a")
    queue.put_later("a", 2, 0.01)
    queue.close()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(queue.get(), 0.1)

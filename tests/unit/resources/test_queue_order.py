"""One order for everybody who keeps jobs in a queue."""

from __future__ import annotations

from kubediffusion.resources.queue_order import queue_key
from kubediffusion.resources.testing import NOW


def test_priority_then_age_then_name_decides() -> None:
    urgent = queue_key(5, 30.0, "z")
    oldest, first, second = queue_key(0, 10.0, "z"), queue_key(None, 20.0, "a"), queue_key(0, 20.0, "b")
    low = queue_key(-1, 1.0, "a")
    assert sorted([low, second, first, oldest, urgent]) == [urgent, oldest, first, second, low]


def test_a_moment_sorts_as_its_seconds_do() -> None:
    assert queue_key(1, NOW, "a") < queue_key(0, NOW, "a")

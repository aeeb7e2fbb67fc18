"""How much is told at a time."""

from __future__ import annotations

import pytest

from kubediffusion.operator import telling
from kubediffusion.operator.telling import TokenBucket


class Clock:
    """A clock that stands until it is set."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.mark.parametrize("rate", [0.125, 0.5, 1.0, 4.0])
def test_at_any_rate_one_explanation_may_be_written_and_then_so_many_a_second(rate, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(telling, "time", clock)
    budget = TokenBucket(rate)
    written = 0
    for eighth in range(64 * 8 + 1):
        clock.now = eighth / 8
        while budget.left:
            budget.spend()
            written += 1
    assert written == max(rate, 1) + 64 * rate


def test_what_is_not_used_is_kept_for_a_second(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(telling, "time", clock)
    budget = TokenBucket(4.0)
    clock.now = 3600.0
    assert budget.left == 4

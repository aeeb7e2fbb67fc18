"""Laws of interruptions: who may interrupt a batch, and for how long in all."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import find, given
from hypothesis import strategies as st

from kubediffusion.worker.engine import BatchKey, GuidanceKind, ImagePlan
from kubediffusion.worker.engine.batching import Candidate
from kubediffusion.worker.engine.preemption import MUCH_SHORTER, interrupting

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
KEYS = [BatchKey(side, side, GuidanceKind.CFG) for side in (512, 768, 1024)]


@st.composite
def jobs(draw: st.DrawFn) -> list[Candidate[int]]:
    count = draw(st.integers(0, 8))
    return [
        Candidate(
            key=index,
            plan=ImagePlan(draw(st.sampled_from(KEYS)), draw(st.integers(1, 60)), joins=draw(st.booleans())),
            first=0,
            images=draw(st.integers(1, 5)),
            priority=draw(st.integers(0, 2)),
            created=START + dt.timedelta(seconds=draw(st.integers(0, 3))),
            name=f"job-{index}",
        )
        for index in range(count)
    ]


@given(jobs(), st.integers(0, 2), st.integers(0, 100), st.integers(0, 100), st.integers(1, 8))
def test_only_what_is_more_urgent_or_much_shorter_interrupts(
    candidates: list[Candidate[int]], priority: int, left: int, budget: int, most: int
) -> None:
    portions = interrupting(candidates, KEYS[0], priority, left, budget, most)
    chosen = [(candidates[portion.key], portion.count) for portion in portions]
    assert len({candidate.plan.key for candidate, _ in chosen}) <= 1
    for candidate, count in chosen:
        assert candidate.plan.joins
        assert candidate.plan.key != KEYS[0]
        assert 0 < count <= candidate.remaining
        shorter = candidate.priority == priority and candidate.plan.calls * MUCH_SHORTER <= left
        assert candidate.priority > priority or shorter
    # One by one, at worst.
    assert sum(candidate.plan.calls * count for candidate, count in chosen) <= budget
    assert sum(count for _, count in chosen) <= most


@pytest.mark.parametrize("urgent", [True, False], ids=["more urgent", "much shorter"])
def test_some_interrupt(urgent: bool) -> None:
    def interrupts(candidates: list[Candidate[int]]) -> bool:
        chosen = interrupting(candidates, KEYS[0], 1, 100, 100, 8)
        return any((candidates[portion.key].priority > 1) is urgent for portion in chosen)

    assert find(jobs(), interrupts)


@given(st.lists(jobs(), max_size=20), st.integers(0, 2), st.integers(1, 100))
def test_a_batch_is_interrupted_for_no_more_steps_than_it_needs(
    arrivals: list[list[Candidate[int]]], priority: int, calls: int
) -> None:
    interrupted = 0
    for candidates in arrivals:
        portions = interrupting(candidates, KEYS[0], priority, calls, calls - interrupted, 8)
        interrupted += sum(candidates[portion.key].plan.calls * portion.count for portion in portions)
    assert interrupted <= calls

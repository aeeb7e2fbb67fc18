"""Laws of preemption: who may interrupt a batch or take a slot of its images, and for how long in all."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import find, given
from hypothesis import strategies as st

from kubediffusion.worker.engine import BatchKey, GuidanceKind, ImagePlan, Parkable
from kubediffusion.worker.engine.batching import Candidate, Portion
from kubediffusion.worker.engine.parking import MUCH_SHORTER, image_to_park
from kubediffusion.worker.engine.preemption import RunningBatch, urgent_images

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


def interrupting(
    candidates: list[Candidate[int]], priority: int, left: int, budget: int, most: int
) -> tuple[Portion[int], ...]:
    """Choose who interrupts a batch of which nobody may be parked."""
    urgent = urgent_images(candidates, KEYS[0], RunningBatch(priority, left, budget), most)
    assert not urgent.joins
    return urgent.portions


@given(jobs(), st.integers(0, 2), st.integers(0, 100), st.integers(0, 100), st.integers(1, 8))
def test_only_what_is_more_urgent_or_much_shorter_interrupts(
    candidates: list[Candidate[int]], priority: int, left: int, budget: int, most: int
) -> None:
    portions = interrupting(candidates, priority, left, budget, most)
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
        chosen = interrupting(candidates, 1, 100, 100, 8)
        return any((candidates[portion.key].priority > 1) is urgent for portion in chosen)

    assert find(jobs(), interrupts)


@given(st.lists(jobs(), max_size=20), st.integers(0, 2), st.integers(1, 100))
def test_a_batch_is_interrupted_for_no_more_steps_than_it_needs(
    arrivals: list[list[Candidate[int]]], priority: int, calls: int
) -> None:
    interrupted = 0
    for candidates in arrivals:
        portions = interrupting(candidates, priority, calls, calls - interrupted, 8)
        interrupted += sum(candidates[portion.key].plan.calls * portion.count for portion in portions)
    assert interrupted <= calls


SLOTS = st.lists(st.builds(Parkable, st.integers(0, 2), st.integers(2, 60)), max_size=6)


def before(job: Candidate[int], other: Parkable) -> bool:
    """Whether a job goes before an image in a slot."""
    shorter = job.priority == other.priority and job.plan.calls * MUCH_SHORTER <= other.left
    return job.priority > other.priority or shorter


@given(st.integers(0, 2), st.integers(1, 60), SLOTS)
def test_who_is_parked_has_the_lowest_priority_and_then_the_most_steps_left(
    priority: int, calls: int, parkable: list[Parkable]
) -> None:
    job = Candidate(0, ImagePlan(KEYS[0], calls, joins=True), 0, 1, priority, START, "job")
    allowed = [other for other in parkable if before(job, other)]
    place = image_to_park(priority, calls, parkable)
    assert (place is None) is (not allowed)
    if place is not None:
        assert parkable[place] in allowed
        assert all(
            (parkable[place].priority, -parkable[place].left) <= (other.priority, -other.left) for other in allowed
        )


@given(jobs(), SLOTS, st.integers(0, 100), st.integers(1, 8))
def test_who_takes_slots_of_a_batch_goes_before_as_many_of_its_images(
    candidates: list[Candidate[int]], parkable: list[Parkable], budget: int, most: int
) -> None:
    left = max((other.left for other in parkable), default=0)
    batch = RunningBatch(max((other.priority for other in parkable), default=0), left, budget, tuple(parkable))
    urgent = urgent_images(candidates, KEYS[0], batch, most)
    chosen = [(candidates[portion.key], portion.count) for portion in urgent.portions]
    assert urgent.joins is (bool(chosen) and chosen[0][0].plan.key == KEYS[0])
    assert len({candidate.plan.key for candidate, _ in chosen}) <= 1
    assert sum(count for _, count in chosen) <= most
    queue = sorted(candidates, key=lambda job: (-job.priority, job.created, job.name))
    if urgent.joins:
        assert sum(count for _, count in chosen) <= len(parkable)
        for candidate, count in chosen:
            assert 0 < count <= candidate.remaining
            assert any(before(candidate, other) for other in parkable)
            # Nobody who waits for the batch's end waits longer for it.
            assert all(job.plan.key == KEYS[0] for job in queue[: queue.index(candidate)])
    # The first of the queue does not wait where it may go before somebody.
    if queue and queue[0].plan.key == KEYS[0] and any(before(queue[0], other) for other in parkable):
        assert urgent.joins
        assert chosen[0][0] is queue[0]

"""Laws of admission: who waits, and for how long, whatever a GPU's steps take."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubediffusion.benchmarks.admission import H100, Served, at_random, by_turns, simulated, spread, static
from kubediffusion.worker.engine.arrangement import SIZES
from kubediffusion.worker.engine.throughput import StepTimes, count_entering
from kubediffusion.worker.engine.waits import PATIENCE, Waits, overdue

SECONDS = st.dictionaries(st.sampled_from(SIZES), st.floats(0.001, 1.0), max_size=len(SIZES))
LIMIT = SIZES[-1]


@given(st.integers(0, LIMIT), st.integers(0, 40), SECONDS, st.integers(0, 40))
def test_no_more_enter_than_wait_or_have_room(
    running: int, waiting: int, seconds: dict[int, float], overdue: int
) -> None:
    if running + waiting == 0:
        return
    entering = count_entering(running, waiting, SIZES, seconds, min(overdue, waiting))
    assert 0 <= entering <= min(waiting, LIMIT - running)


@given(st.integers(1, 40), SECONDS)
def test_somebody_enters_where_nobody_runs(waiting: int, seconds: dict[int, float]) -> None:
    assert count_entering(0, waiting, SIZES, seconds) >= 1


@given(st.integers(0, LIMIT), st.integers(1, 40), SECONDS, st.integers(1, 40))
def test_who_has_waited_long_enough_enters_as_long_as_there_is_a_slot(
    running: int, waiting: int, seconds: dict[int, float], overdue: int
) -> None:
    overdue = min(overdue, waiting)
    assert count_entering(running, waiting, SIZES, seconds, overdue) >= min(overdue, LIMIT - running)


@given(st.integers(0, LIMIT), st.integers(1, 40))
def test_sizes_that_were_not_measured_are_filled(running: int, waiting: int) -> None:
    assert count_entering(running, waiting, SIZES, {}) == min(waiting, LIMIT - running)


@given(st.integers(0, LIMIT - 1), st.integers(1, 40), st.floats(1.02, 2.0))
def test_where_a_larger_size_does_more_a_full_one_is_used(running: int, waiting: int, gain: float) -> None:
    # Each size does so many times the images' steps a second of the one before.
    seconds = {size: size / gain**number for number, size in enumerate(SIZES)}
    images = running + count_entering(running, waiting, SIZES, seconds)
    # More would be computed in more slots and do less, or nobody waits.
    assert images == running or images in SIZES or images == running + waiting


def test_a_batch_is_not_computed_in_twice_the_slots_for_one_more() -> None:
    assert count_entering(4, 1, SIZES, H100) == 0
    assert count_entering(4, 2, SIZES, H100) == 0
    assert count_entering(4, 4, SIZES, H100) == 4
    assert count_entering(0, 3, SIZES, H100) == 2
    assert count_entering(8, 8, SIZES, H100) == 8
    assert count_entering(4, 1, SIZES, H100, overdue=1) == 1


@pytest.mark.parametrize("lengths", [(25,), (10, 25, 50)])
def test_jobs_are_served_in_order_rather_than_by_turns(lengths: tuple[int, ...]) -> None:
    batches = spread(simulated(at_random(lengths), static))
    turns = spread(simulated(at_random(lengths), by_turns))
    unbounded = spread(simulated(at_random(lengths), patience=None))
    in_order = spread(simulated(at_random(lengths)))
    for number in range(2):
        assert in_order[number] < 0.6 * batches[number]
        # The bound costs little of what order gains.
        assert in_order[number] < 1.05 * unbounded[number]
    assert in_order[0] < 0.8 * turns[0]


@given(st.integers(1, 40), st.sampled_from([1, 2, 4, 8]))
def test_a_short_job_waits_for_long_ones_in_proportion_to_its_own_length(steps: int, long: int) -> None:
    images = simulated([*(Served(0.0, 200) for _ in range(long)), Served(1.0, steps)])
    # Two do more than one; one more than these does less.
    assert images[-1].waited == (0 if long == 1 else PATIENCE * steps)


@given(st.lists(st.booleans()))
def test_who_has_waited_long_enough_overtakes_nobody(waited: list[bool]) -> None:
    count = overdue(waited)
    assert not any(waited[count:])
    assert count == 0 or waited[count - 1]


def test_a_wait_begins_when_there_is_a_slot_and_again_when_there_was_none() -> None:
    waits = Waits[str]()
    assert waits.note({"a": 10, "b": 3}, 7) == 0
    assert (waits.due("a", 8), waits.due("b", 8), waits.due("c", 8)) == (27, 13, 8)
    assert waits.note({"a": 10, "b": 3}, 12) == 0
    # Those before the second enter with it.
    assert waits.note({"a": 10, "b": 3}, 13) == 2
    assert waits.note({"a": 10}, 14) == 0
    assert waits.note({"a": 10, "b": 3}, 15) == 0
    assert waits.due("b", 15) == 21


def test_times_are_believed_after_a_few_steps_and_forgotten_when_they_are_old() -> None:
    times = StepTimes()
    # The first includes a capture.
    for seconds in (0.7, 0.065, 0.066):
        times.note(16, seconds)
        assert times.known == {}
    times.note(16, 0.067)
    times.note(16, 0.068)
    assert 0.065 <= times.known[16] <= 0.067
    for _ in range(5000):
        times.note(1, 0.006)
    assert set(times.known) == {1}

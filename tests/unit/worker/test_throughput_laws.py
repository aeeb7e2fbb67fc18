"""Laws of admission: who waits, and for how long, whatever a GPU's steps take."""

from __future__ import annotations

import itertools
import random
import statistics
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from kubediffusion.worker.slots import SIZES
from kubediffusion.worker.throughput import StepTimes, admitted

SECONDS = st.dictionaries(st.sampled_from(SIZES), st.floats(0.001, 1.0), max_size=len(SIZES))
LIMIT = SIZES[-1]
H100 = {1: 0.0063, 2: 0.0098, 4: 0.0186, 8: 0.0332, 16: 0.0647}
"""Steps of Stable Diffusion 2.1's UNet at 512x512, compiled; see docs/performance.md."""


@given(st.integers(0, LIMIT), st.integers(0, 40), SECONDS, st.integers(0, 40))
def test_no_more_enter_than_wait_or_have_room(
    running: int, waiting: int, seconds: dict[int, float], overdue: int
) -> None:
    if running + waiting == 0:
        return
    entering = admitted(running, waiting, SIZES, seconds, min(overdue, waiting))
    assert 0 <= entering <= min(waiting, LIMIT - running)


@given(st.integers(1, 40), SECONDS)
def test_somebody_enters_where_nobody_runs(waiting: int, seconds: dict[int, float]) -> None:
    assert admitted(0, waiting, SIZES, seconds) >= 1


@given(st.integers(0, LIMIT), st.integers(1, 40), SECONDS, st.integers(1, 40))
def test_who_has_waited_long_enough_enters_as_long_as_there_is_a_slot(
    running: int, waiting: int, seconds: dict[int, float], overdue: int
) -> None:
    overdue = min(overdue, waiting)
    assert admitted(running, waiting, SIZES, seconds, overdue) >= min(overdue, LIMIT - running)


@given(st.integers(0, LIMIT), st.integers(1, 40))
def test_sizes_that_were_not_measured_are_filled(running: int, waiting: int) -> None:
    assert admitted(running, waiting, SIZES, {}) == min(waiting, LIMIT - running)


@given(st.integers(0, LIMIT - 1), st.integers(1, 40), st.floats(1.02, 2.0))
def test_where_a_larger_size_does_more_a_full_one_is_used(running: int, waiting: int, gain: float) -> None:
    # Each size does so many times the images' steps a second of the one before.
    seconds = {size: size / gain**number for number, size in enumerate(SIZES)}
    images = running + admitted(running, waiting, SIZES, seconds)
    # More would be computed in more slots and do less, or nobody waits.
    assert images == running or images in SIZES or images == running + waiting


def test_a_batch_is_not_computed_in_twice_the_slots_for_one_more() -> None:
    assert admitted(4, 1, SIZES, H100) == 0
    assert admitted(4, 2, SIZES, H100) == 0
    assert admitted(4, 4, SIZES, H100) == 4
    assert admitted(0, 3, SIZES, H100) == 2
    assert admitted(8, 8, SIZES, H100) == 8
    assert admitted(4, 1, SIZES, H100, overdue=1) == 1


def simulated(admit: Callable[[int, int], int], steps: int = 25, share: float = 0.7) -> list[float]:
    """Seconds in the worker of jobs that come at random, ``share`` of what full batches do."""
    chance, now = random.Random(0), 0.0  # noqa: S311 - a simulation
    rate = share * LIMIT / (H100[LIMIT] * steps)
    coming = list(itertools.accumulate(chance.expovariate(rate) for _ in range(1500)))
    waiting: list[float] = []
    running: list[tuple[float, int]] = []
    took: list[float] = []
    while coming or waiting or running:
        while coming and coming[0] <= now:
            waiting.append(coming.pop(0))
        if not waiting and not running:
            now = coming[0]
            continue
        entering = admit(len(running), len(waiting))
        running += [(came, steps) for came in waiting[:entering]]
        waiting = waiting[entering:]
        now += H100[next(size for size in SIZES if size >= len(running))]
        took += [now - came for came, left in running if left == 1]
        running = [(came, left - 1) for came, left in running if left > 1]
    return took


def test_jobs_of_like_length_are_served_in_order_rather_than_by_turns() -> None:
    static = simulated(lambda running, waiting: 0 if running else min(waiting, LIMIT))
    by_turns = simulated(lambda running, waiting: min(waiting, LIMIT - running))
    in_order = simulated(lambda running, waiting: admitted(running, waiting, SIZES, H100))
    assert statistics.median(in_order) < 0.6 * statistics.median(static)
    assert statistics.quantiles(in_order, n=20)[-1] < 0.6 * statistics.quantiles(static, n=20)[-1]
    assert statistics.median(in_order) < 0.7 * statistics.median(by_turns)


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

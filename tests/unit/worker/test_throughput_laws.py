"""Laws of admission: who waits, and for how long, whatever a GPU's steps take."""

from __future__ import annotations

import itertools
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubediffusion.worker.slots import SIZES
from kubediffusion.worker.throughput import StepTimes, admitted
from kubediffusion.worker.waits import PATIENCE, Waits, overdue

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


@dataclass
class Served:
    """An image in the simulation of a worker.

    Attributes:
        came: Second at which it came.
        steps: How many it needs.
        left: How many are left.
        waited: Steps of others until its own first.
        seconds: In the worker.
    """

    came: float
    steps: int
    left: int = 0
    waited: int = 0
    seconds: float = 0.0


def at_random(lengths: Sequence[int], share: float = 0.7, count: int = 1500) -> list[Served]:
    """Give images that come at random, ``share`` of what full batches do."""
    chance = random.Random(0)  # noqa: S311 - a simulation
    rate = share * LIMIT / (H100[LIMIT] * statistics.mean(lengths))
    return [
        Served(came, chance.choice(lengths))
        for came in itertools.accumulate(chance.expovariate(rate) for _ in range(count))
    ]


def simulated(
    images: Sequence[Served],
    admit: Callable[[int, int, int], int] = lambda *numbers: admitted(*numbers[:2], SIZES, H100, numbers[2]),
    static: bool = False,
) -> list[Served]:
    """Serve images.

    Args:
        images: In the order in which they come.
        admit: Tells how many enter, of the images that run, that wait, and that have waited long enough.
        static: Nobody joins, and only images of the same length run together.
    """
    now, step, waits = 0.0, 0, Waits[int]()
    coming, waiting, running = list(enumerate(images)), list[tuple[int, Served]](), list[Served]()
    while coming or waiting or running:
        if not waiting and not running:
            now = max(now, coming[0][1].came)
        while coming and coming[0][1].came <= now:
            number, image = coming.pop(0)
            waiting.append((number, image))
            image.left, image.waited = image.steps, step
        entering = [image for image in waiting if image[1].steps == waiting[0][1].steps or not static]
        if static:
            count = 0 if running else LIMIT
        else:
            late = waits.note({number: image.steps for number, image in entering[: LIMIT - len(running)]}, step)
            count = admit(len(running), len(waiting), late)
        entering = entering[:count]
        waiting = [image for image in waiting if image not in entering]
        for _, image in entering:
            image.waited = step - image.waited
            running.append(image)
        now, step = now + H100[next(size for size in SIZES if size >= len(running))], step + 1
        for image in running:
            image.left, image.seconds = image.left - 1, now - image.came
        running = [image for image in running if image.left]
    return list(images)


def spread(images: Sequence[Served]) -> tuple[float, float]:
    """Give median and 95th percentile of the seconds in the worker."""
    seconds = [image.seconds for image in images]
    return statistics.median(seconds), statistics.quantiles(seconds, n=20)[-1]


@pytest.mark.parametrize("lengths", [(25,), (10, 25, 50)])
def test_jobs_are_served_in_order_rather_than_by_turns(lengths: tuple[int, ...]) -> None:
    static = spread(simulated(at_random(lengths), static=True))
    by_turns = spread(simulated(at_random(lengths), lambda running, waiting, _: min(waiting, LIMIT - running)))
    unbounded = spread(simulated(at_random(lengths), lambda *numbers: admitted(*numbers[:2], SIZES, H100)))
    in_order = spread(simulated(at_random(lengths)))
    for number in range(2):
        assert in_order[number] < 0.6 * static[number]
        # The bound costs little of what order gains.
        assert in_order[number] < 1.05 * unbounded[number]
    assert in_order[0] < 0.8 * by_turns[0]


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

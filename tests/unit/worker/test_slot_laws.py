"""Laws of running batches: who enters, when, and where they sit; over arbitrary jobs that come at arbitrary times."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field, replace

from hypothesis import find, given
from hypothesis import strategies as st

from kubediffusion.worker.engine import ImagePlan
from kubediffusion.worker.engine.arrangement import SIZES, arrange, lowered, sizes_up_to
from kubediffusion.worker.engine.batching import Candidate, Portion, joinable_images, joining_images, next_batch
from kubediffusion.worker.engine.throughput import count_entering
from kubediffusion.worker.engine.waits import PATIENCE, Waits

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
LIMITS = st.integers(1, 20)


@given(LIMITS)
def test_what_is_not_prepared_has_every_size(limit: int) -> None:
    assert sizes_up_to(limit, prepared=False) == tuple(range(1, limit + 1))


@given(LIMITS)
def test_prepared_sizes_are_powers_of_two_and_the_limit(limit: int) -> None:
    sizes = sizes_up_to(limit, prepared=True)
    assert sizes == tuple(sorted(set(sizes)))
    assert sizes[-1] == limit
    assert set(sizes) <= {*SIZES, limit}
    assert all(size in sizes for size in SIZES if size <= limit)


@st.composite
def seatings(draw: st.DrawFn) -> tuple[set[int], int, tuple[int, ...]]:
    sizes = sizes_up_to(draw(LIMITS), prepared=draw(st.booleans()))
    occupied = draw(st.sets(st.integers(0, sizes[-1] - 1)))
    return occupied, draw(st.integers(0, sizes[-1] - len(occupied))), sizes


@given(seatings())
def test_a_batch_has_the_smallest_size_that_holds_it(seating: tuple[set[int], int, tuple[int, ...]]) -> None:
    occupied, entering, sizes = seating
    size = arrange(occupied, entering, sizes).size
    assert size in sizes
    assert size >= len(occupied) + entering
    assert not any(smaller >= len(occupied) + entering for smaller in sizes if smaller < size)


@given(seatings())
def test_everybody_sits_alone_and_within_the_batch(seating: tuple[set[int], int, tuple[int, ...]]) -> None:
    occupied, entering, sizes = seating
    arrangement = arrange(occupied, entering, sizes)
    moved = dict(arrangement.moves)
    seats = [moved.get(slot, slot) for slot in occupied] + list(arrangement.entries)
    assert len(seats) == len(set(seats)) == len(occupied) + entering
    assert all(slot < arrangement.size for slot in seats)


@given(seatings())
def test_only_those_move_whose_slot_is_gone(seating: tuple[set[int], int, tuple[int, ...]]) -> None:
    occupied, entering, sizes = seating
    arrangement = arrange(occupied, entering, sizes)
    assert {source for source, _ in arrangement.moves} == {slot for slot in occupied if slot >= arrangement.size}
    # Nobody moves onto somebody: a move needs no third place.
    assert not {target for _, target in arrangement.moves} & occupied


@given(LIMITS, st.booleans(), st.data())
def test_what_does_not_fit_is_halved_and_not_tried_again(limit: int, prepared: bool, data: st.DataObject) -> None:
    sizes = sizes_up_to(limit, prepared=prepared)
    size = data.draw(st.sampled_from(sizes))
    left = lowered(sizes, size)
    assert left == sizes[: len(left)]
    assert 1 <= left[-1] <= max(size // 2, 1)


@dataclass
class Seat:
    """An image in a slot."""

    job: int
    left: int


@dataclass
class World:
    """A worker as the runner and the engine together are one: asks before a step, and fills after it."""

    limit: int
    arrivals: dict[int, list[Candidate[int]]]
    now: int = 0
    key: Hashable = ""
    waiting: dict[int, Candidate[int]] = field(default_factory=dict)
    seats: list[Seat] = field(default_factory=list)
    entered: list[tuple[int, int, int]] = field(default_factory=list)
    """Step, job, image."""
    seconds: dict[int, float] = field(default_factory=dict)
    """What a step of a size takes; where it takes nothing that is known, every slot is filled."""
    waits: Waits[tuple[int, int]] = field(default_factory=Waits)
    could: dict[tuple[int, int], int] = field(default_factory=dict)
    """Who could enter at this step, whether it did or not, and how many steps it needs."""

    def take(self, portions: tuple[Portion[int], ...]) -> list[Seat]:
        seats = []
        for portion in portions:
            job = self.waiting[portion.key]
            for index in range(portion.first, portion.first + portion.count):
                self.entered.append((self.now + 1, job.key, index))
                seats.append(Seat(job.key, job.plan.calls))
            if job.remaining == portion.count:
                del self.waiting[job.key]
            else:
                self.waiting[job.key] = replace(job, first=job.first + portion.count)
        return seats

    def step(self) -> None:
        """Ask, compute, and let enter who was found."""
        self.waiting |= {job.key: job for job in self.arrivals.pop(self.now, [])}
        if not self.seats:
            portions = next_batch(self.waiting.values(), self.limit)
            if portions:
                self.key = self.waiting[portions[0].key].plan.key
            self.seats = self.take(self.admitted([], 0))
        else:
            staying = [seat for seat in self.seats if seat.left > 1]
            entering = self.take(self.admitted(staying, max(seat.left for seat in self.seats) - 1))
            self.seats = [Seat(seat.job, seat.left - 1) for seat in staying] + entering
        self.now += 1

    def admitted(self, staying: list[Seat], longest: int) -> tuple[Portion[int], ...]:
        """Choose who enters after this step."""
        sizes, jobs, room = sizes_up_to(self.limit, prepared=True), self.waiting.values(), self.limit - len(staying)
        self.could = {
            (portion.key, portion.first + number): self.waiting[portion.key].plan.calls
            for portion in joinable_images(jobs, self.key, room, longest)
            for number in range(portion.count)
        }

        def entry_limit(waiting: int, overdue: int = 0, /) -> int:
            return count_entering(len(staying), waiting, sizes, self.seconds, overdue)

        return joining_images(
            jobs, self.key, room, longest, entry_limit=entry_limit, waits=self.waits, step=self.now + 1
        )


@st.composite
def worlds(draw: st.DrawFn, priorities: tuple[int, ...] = (0, 0, 1)) -> World:
    arrivals: dict[int, list[Candidate[int]]] = {}
    for key in range(draw(st.integers(1, 12))):
        images = draw(st.integers(1, 5))
        at = draw(st.integers(0, 20))
        arrivals.setdefault(at, []).append(
            Candidate(
                key=key,
                plan=ImagePlan(draw(st.sampled_from("aab")), calls=draw(st.integers(1, 9)), joins=True),
                first=0,
                images=images,
                priority=draw(st.sampled_from(priorities)),
                created=START + dt.timedelta(seconds=at),
                name=f"job-{key}",
            )
        )
    return World(limit=draw(st.integers(1, 6)), arrivals=arrivals)


def order(job: Candidate[int]) -> tuple[int, dt.datetime, str]:
    return -job.priority, job.created, job.name


@given(worlds())
def test_every_image_enters_once_and_no_batch_is_too_large(world: World) -> None:
    expected = sorted(
        (job.key, index) for jobs in world.arrivals.values() for job in jobs for index in range(job.images)
    )
    while world.arrivals or world.waiting or world.seats:
        world.step()
        assert len(world.seats) <= world.limit
    assert sorted((job, index) for _, job, index in world.entered) == expected


@given(worlds())
def test_nobody_who_may_enter_waits_while_a_slot_is_free(world: World) -> None:
    while world.arrivals or world.waiting or world.seats:
        world.step()
        free = world.limit - len(world.seats)
        queue = sorted(world.waiting.values(), key=order)
        if world.seats and queue and queue[0].plan.key == world.key:
            assert free == 0


# Whatever steps take: a larger batch may do more, or less.
@given(worlds(), st.fixed_dictionaries({size: st.floats(0.001, 1.0) for size in range(1, 7)}))
def test_nobody_waits_for_a_slot_that_is_there_out_of_proportion_to_its_own_length(
    world: World, seconds: dict[int, float]
) -> None:
    world.seconds = seconds
    waited: dict[tuple[int, int], int] = {}
    while world.arrivals or world.waiting or world.seats:
        entered = len(world.entered)
        world.step()
        new = {(job, image) for _, job, image in world.entered[entered:]}
        # Who cannot enter for a while, as others go first, begins to wait when it can again.
        waited = {image: waited.get(image, -1) + 1 for image in world.could}
        for image, steps in waited.items():
            assert steps < PATIENCE * world.could[image] or image in new


Passed = tuple[Candidate[int], Candidate[int]]


def entries(world: World) -> Iterator[tuple[list[Candidate[int]], list[Passed]]]:
    """Yield who enters at each step of a world, and with whom each passes over who is before it in the queue."""
    while world.arrivals or world.waiting or world.seats:
        before = {job.key: job for job in world.waiting.values()} | {
            j.key: j for j in world.arrivals.get(world.now, [])
        }
        entered = len(world.entered)
        world.step()
        new = [before[job] for _, job, _ in world.entered[entered:]]
        yield (
            new,
            [
                (job, other)
                for job in new
                for other in world.waiting.values()
                if other.plan.key == job.plan.key and order(other) < order(job)
            ],
        )


@given(worlds())
def test_those_of_one_key_enter_in_order(world: World) -> None:
    for new, passed in entries(world):
        assert new == sorted(new, key=order)
        # Only someone who would make others wait may be passed over, by those who do not.
        for job, other in passed:
            assert other.plan.calls > job.plan.calls


def test_some_worlds_have_somebody_who_is_passed_over() -> None:
    assert find(worlds(), lambda world: any(passed for _, passed in entries(world)))


def heads_of_another_key(world: World) -> Iterator[tuple[int, int, int]]:
    """Yield the step, a job that is first in the queue while a batch of another key runs, and when its turn is due.

    That is when those who ran would have ended, at the first step at which it was the first.
    """
    due: dict[int, int] = {}
    while world.arrivals or world.waiting or world.seats:
        world.step()
        queue = sorted(world.waiting.values(), key=order)
        heads = {job.key for job in queue[:1] if world.seats and job.plan.key != world.key and not job.first}
        longest = max((seat.left for seat in world.seats), default=0)
        due = {job: min(due.get(job, world.now + longest), world.now + longest) for job in heads}
        for job, when in due.items():
            yield world.now, job, when


# Somebody more urgent may come at any time.
@given(worlds(priorities=(0,)))
def test_the_head_of_another_key_waits_no_longer_than_the_batch_that_ran(world: World) -> None:
    for now, _, when in heads_of_another_key(world):
        assert now <= when


def test_some_worlds_have_a_head_of_another_key_that_waits_for_several_steps() -> None:
    def waits(world: World) -> bool:
        return max(Counter(job for _, job, _ in heads_of_another_key(world)).values(), default=0) > 3

    assert find(worlds(priorities=(0,)), waits)


@given(worlds())
def test_a_deterministic_job_never_joins(world: World) -> None:
    jobs = [replace(job, deterministic=True) for jobs in world.arrivals.values() for job in jobs]
    assert joinable_images(jobs, "a", 5, 100) == ()
    assert [portion.count for portion in next_batch(jobs, 5)] == [1]

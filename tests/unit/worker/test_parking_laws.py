"""Laws of parking: an urgent image gets a slot at the next step, nobody is parked without need, and nobody starves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from hypothesis import find, given
from hypothesis import strategies as st

from kubediffusion.worker.engine import ImageId
from kubediffusion.worker.engine.arrangement import sizes_up_to
from kubediffusion.worker.engine.parking import MOST_PARKS, MUCH_SHORTER
from kubediffusion.worker.engine.plan import StepPlan, StepResult
from kubediffusion.worker.engine.scheduler import AT_ONCE, StepScheduler
from unit.worker.test_step_scheduler_laws import Limit
from unit.worker.worker_builders import image_request


@dataclass
class Image:
    """An image as the laws see it: what they know of it is read off the plans.

    Attributes:
        calls: Calls of the model that it needs.
        priority: Of its job.
        comes: Before which step it comes.
        made: Calls that are made.
        waits: Steps for which it had no slot, one by one, since it came.
        since: Steps for which it had no slot since it was first parked.
        parks: How often it was parked.
        turns: How often it may have given its turn, before it had a slot: no plan says so, but that a much shorter one
            of its priority entered.
        since_turn: Steps for which it had no slot since it may first have given way in either manner.
        ready: Whether it was made ready.
    """

    calls: int
    priority: int
    comes: int
    made: int = 0
    waits: int = 0
    since: int = 0
    parks: int = 0
    turns: int = 0
    since_turn: int = 0
    ready: bool = False

    @property
    def left(self) -> int:
        return self.calls - self.made

    @property
    def aged(self) -> bool:
        """Whether it is aged for certain."""
        return self.parks > 0 and self.since >= self.calls

    @property
    def may_be_aged(self) -> bool:
        """Whether it is aged if it gave each turn that it may have given."""
        return self.parks + self.turns > 0 and self.since_turn >= self.calls

    def much_shorter(self, other: Image) -> bool:
        return self.priority == other.priority and self.left * MUCH_SHORTER <= other.left

    def before(self, other: Image) -> bool:
        """Whether it goes before another that is in a slot."""
        return self.aged or self.priority > other.priority or self.much_shorter(other)


@dataclass
class World:
    """A batch without failures, and the images that come to it."""

    limit: int
    images: list[Image]
    seconds: dict[int, float] = field(default_factory=dict)
    now: int = 0
    here: set[int] = field(default_factory=set)
    slots: set[int] = field(default_factory=set)

    def steps(self) -> Iterator[tuple[StepPlan, set[int]]]:
        """Run it to its end, and yield each plan before its step, with who had a slot before it."""
        scheduler = StepScheduler(Limit(sizes_up_to(self.limit, prepared=True)))
        coming = sorted(range(len(self.images)), key=lambda index: self.images[index].comes)
        while coming or scheduler.busy:
            while coming and (self.images[coming[0]].comes <= self.now or not scheduler.busy):
                index = coming.pop(0)
                scheduler.add(image_request(index), self.images[index].calls)
                self.here.add(index)
            plan = scheduler.next(self.seconds, priority=self.priority)
            before, self.slots = self.slots, {call.image.index for call in plan.calls}
            yield plan, before
            for _, image in plan.parks:
                self.images[image.index].parks += 1
            self._count_turns(plan)
            for call in plan.calls:
                assert call.call == self.images[call.image.index].made
                self.images[call.image.index].made += 1
                self.images[call.image.index].ready = True
            for index in self.here - self.slots:
                self.images[index].waits += 1
                self.images[index].since += self.images[index].parks > 0
                self.images[index].since_turn += self.images[index].parks + self.images[index].turns > 0
            for image in plan.prefetch:
                self.images[image.index].ready = True
            done = {call.image.index for call in plan.calls if call.last}
            self.here, self.slots = self.here - done, self.slots - done
            scheduler.update_from_result(plan, StepResult(stepped=True, prefetched=plan.prefetch))
            self.now += 1
            assert self.now < 5000

    def _count_turns(self, plan: StepPlan) -> None:
        parked = {image.index for _, image in plan.parks}
        entered = [self.images[image.index] for _, image in plan.entries]
        for index in self.here - self.slots - parked:
            image = self.images[index]
            image.turns += any(other.ready and other.much_shorter(image) for other in entered)

    def priority(self, image: ImageId) -> int:
        return self.images[image.index].priority


@st.composite
def worlds(draw: st.DrawFn) -> World:
    image = st.builds(Image, st.integers(1, 40), st.integers(0, 2), st.integers(0, 40))
    images = draw(st.lists(image, min_size=1, max_size=14))
    limit = draw(st.integers(1, 5))
    times = st.fixed_dictionaries({size: st.floats(0.001, 1.0) for size in sizes_up_to(limit, prepared=True)})
    return World(limit, images, draw(st.one_of(st.just({}), times)))


@given(worlds())
def test_an_urgent_image_that_is_ready_has_a_slot_at_the_next_step(world: World) -> None:
    for plan, before in world.steps():
        entered = {image.index for _, image in plan.entries}
        held = [world.images[index] for index in world.here - world.slots]
        stayed = [world.images[index] for index in world.slots & before - entered]
        for urgent in held:
            for other in stayed:
                bound = other.parks + other.turns >= MOST_PARKS or other.may_be_aged or other.left <= 1
                assert not urgent.ready or not urgent.before(other) or bound
        # It is made ready while one step runs, unless so many others are.
        waiting = [index for index in world.here - world.slots if not world.images[index].ready]
        assert len(plan.prefetch) == min(len(waiting), AT_ONCE)


@given(worlds())
def test_nobody_is_parked_without_need(world: World) -> None:
    for plan, before in world.steps():
        parked = [world.images[image.index] for _, image in plan.parks]
        entered = [world.images[image.index] for _, image in plan.entries]
        assert {image.index for _, image in plan.parks} <= before
        # Each for somebody else, who enters, goes before it, and is ready.
        urgent = [image for image in entered if image.ready]
        for image in parked:
            assert any(other.before(image) or other.may_be_aged for other in urgent)
            assert image not in entered
        assert len(parked) <= len(urgent)
        if not world.seconds:
            # While a slot is free nobody waits, and so nobody is parked.
            assert not parked or len(world.slots) == world.limit


@given(worlds())
def test_nobody_starves(world: World) -> None:
    for plan, _ in world.steps():
        aged = [index for index in world.here if world.images[index].aged]
        entered = [world.images[image.index] for _, image in plan.entries]
        if set(aged) - world.slots:
            # They go before all others.
            assert all(image.may_be_aged for image in entered)
        assert not any(world.images[image.index].aged for _, image in plan.parks)
    for image in world.images:
        assert image.left == 0
        assert image.parks <= MOST_PARKS
        # As many steps as it needs, and until others that waited as long have left slots.
        others = sum(other.calls for other in world.images if other is not image)
        assert image.since <= image.calls + others


@given(st.integers(1, 40), st.integers(2, 60))
def test_an_image_that_others_keep_out_of_the_only_slot_goes_on_in_time(calls: int, number: int) -> None:
    # One of a higher priority comes at each step.
    images = [Image(calls, 0, 0), *(Image(5, 1, step) for step in range(number))]
    world = World(1, images)
    for _ in world.steps():
        pass
    assert images[0].since <= calls + 5


def test_an_image_whose_turn_came_is_not_passed_forever() -> None:
    # Much shorter ones of the same priority come all the time.
    images = [Image(40, 0, 0), *(Image(4, 0, step) for step in range(2, 200, 4))]
    for _ in World(1, images).steps():
        pass
    assert 0 < images[0].parks <= MOST_PARKS
    assert images[0].since <= 40 + 4


def test_an_image_gives_way_so_often_and_no_more() -> None:
    # Each comes when the last has gone, and takes one step.
    images = [Image(100, 0, 0), *(Image(1, 1, step) for step in range(2, 80, 4))]
    for _ in World(1, images).steps():
        pass
    assert images[0].parks == MOST_PARKS
    assert images[0].since < images[0].calls


def some(found: Callable[[World], bool]) -> None:
    assert find(worlds(), found)


def test_some_are_parked_for_a_higher_priority_and_some_for_a_much_shorter_image() -> None:
    def parked(world: World, same: bool) -> bool:
        for plan, _ in world.steps():
            priorities = {world.priority(image) for _, image in plan.entries}
            if any((world.priority(image) in priorities) is same for _, image in plan.parks):
                return True
        return False

    some(lambda world: parked(world, same=True))
    some(lambda world: parked(world, same=False))


def test_some_are_parked_more_than_once_and_some_wait_until_they_are_aged() -> None:
    some(lambda world: any(image.parks > 1 for _ in world.steps() for image in world.images))
    some(lambda world: any(image.aged for _ in world.steps() for image in world.images))


def test_those_that_were_parked_go_on_before_others_of_the_same_priority() -> None:
    images = [Image(20, 0, 0), Image(20, 0, 1), Image(3, 1, 4)]
    order = [[image.index for _, image in plan.entries] for plan, _ in World(1, images).steps() if plan.entries]
    assert order == [[0], [2], [0], [1]]

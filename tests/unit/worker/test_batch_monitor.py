"""How images get from the event loop into a running batch, and back out of it."""

from __future__ import annotations

import asyncio
import datetime as dt
from concurrent.futures import Executor
from typing import cast

import pytest
from prometheus_client import CollectorRegistry

from kubediffusion.resources.failures import ErrorCode, JobFailure
from kubediffusion.resources.storage import ImageStorage
from kubediffusion.resources.testing import present
from kubediffusion.worker.assignments import Assignment, Binding
from kubediffusion.worker.batch_monitor import BatchListeners, BatchMonitor, Member, Members
from kubediffusion.worker.engine import EntryLimit, ImageId, Outcome, Parkable, StepStats, no_limit
from kubediffusion.worker.engine.preemption import RunningBatch
from kubediffusion.worker.health import Health
from kubediffusion.worker.metrics import Metrics
from kubediffusion.worker.previews import Previews
from unit.worker.worker_builders import NOW, bound_job, picture

BEFORE = 5
"""Steps of batches before."""
UNMADE = JobFailure(ErrorCode.INTERNAL, "not made")


class Ends:
    """Takes in ends as the finisher does."""

    def __init__(self) -> None:
        self.outcomes: dict[tuple[str, int], Outcome] = {}

    def finish_image(self, assignment: Assignment, index: int, outcome: Outcome) -> None:
        self.outcomes[assignment.name, index] = outcome


def members(name: str, images: int = 1, due: int = 0) -> Members:
    job = bound_job(name, parameters={"numImages": images})
    assignment = Assignment(job, Binding(job.uid, 1), present(job.status.parameters))
    return {task.id: Member(task, assignment, due) for task in assignment.take_requests(images, NOW, 0.0)}


class Bench:
    """A monitor whose queue is a list."""

    def __init__(self) -> None:
        self.first = members("first")
        self.queue: list[Members] = []
        self.urgent: list[Members] = []
        self.urgent_joins = False
        self.looked_urgent: list[RunningBatch] = []
        self.asked: list[tuple[int, int]] = []
        self.steps: list[int] = []
        self.entry_limits: list[EntryLimit] = []
        self.ends = Ends()
        self.registry = CollectorRegistry()
        listeners = BatchListeners(
            finisher=self.ends,
            previews=Previews(cast(ImageStorage, None), "", cast(Executor, None)),  # nobody looks
            health=Health(60.0),
            metrics=Metrics(self.registry),
        )
        self.monitor = BatchMonitor(self.first, self, BEFORE, listeners)

    def take_urgent(self, batch: RunningBatch, step: int) -> tuple[Members, bool]:
        assert step == self.monitor.steps + 1
        self.looked_urgent.append(batch)
        return self.urgent.pop(0) if self.urgent else {}, self.urgent_joins

    def take_joining(self, room: int, calls: int, entry_limit: EntryLimit, step: int) -> Members:
        self.asked.append((room, calls))
        self.steps.append(step)
        self.entry_limits.append(entry_limit)
        return self.queue.pop(0) if self.queue else {}

    async def joining_images(self, room: int, calls: int = 9, entry_limit: EntryLimit = no_limit) -> list[ImageId]:
        """Ask from another thread, as the engine does."""
        return [task.id for task in await asyncio.to_thread(self.monitor.joining_images, room, calls, entry_limit)]

    def metric(self, name: str) -> float:
        return self.registry.get_sample_value(f"kubediffusion_worker_{name}") or 0.0


@pytest.fixture
async def bench() -> Bench:
    return Bench()


async def test_what_is_found_is_given_by_the_next_call(bench: Bench) -> None:
    joining = members("second", images=2)
    bench.queue = [joining]
    assert await bench.joining_images(3, 7) == []
    assert bench.asked == [(3, 7)]
    assert await bench.joining_images(3, 6) == list(joining)
    # Two of the three that there is room for have just been given.
    assert bench.asked[1] == (1, 6)
    assert bench.monitor.images == 3
    assert all(bench.monitor.wanted(image_id) for image_id in joining)


async def test_those_who_were_just_given_count_among_the_admitted(bench: Bench) -> None:
    bench.queue = [members("second", images=2)]
    await bench.joining_images(6)
    await bench.joining_images(6, entry_limit=lambda waiting, overdue=0, /: min(waiting, max(overdue, 3)))
    # Three in all: two have them.
    assert [bench.entry_limits[1](waiting) for waiting in (0, 1, 2)] == [0, 1, 1]
    # Who has waited long enough comes after those two.
    assert [bench.entry_limits[1](5, overdue) for overdue in (0, 1, 2, 4)] == [1, 1, 2, 4]


async def test_who_was_given_enters_at_the_latest_when_it_is_due(bench: Bench) -> None:
    bench.queue = [members("second", due=BEFORE + 2)]
    await bench.joining_images(3)
    (image_id,) = await bench.joining_images(3)
    waited = []
    for _ in range(3):
        waited.append(bench.monitor.overdue(image_id))
        bench.monitor.count_step(StepStats(1, 1, limit=4))
        await bench.joining_images(3)
    assert waited == [False, False, True]
    assert bench.monitor.steps == BEFORE + 3
    # Whoever is found enters after the step that is made meanwhile.
    assert bench.steps == [BEFORE + 1, BEFORE + 1, BEFORE + 2, BEFORE + 3, BEFORE + 4]


async def test_nobody_is_looked_for_without_room(bench: Bench) -> None:
    assert await bench.joining_images(0) == []
    assert bench.asked == []


async def test_what_is_found_too_late_is_kept_for_the_next_batch(bench: Bench) -> None:
    joining, dropped = members("second"), members("dropped")
    bench.queue = [joining | dropped]
    await bench.joining_images(2)
    next(iter(dropped.values())).assignment.drop()
    assert bench.monitor.close(UNMADE) == [joining]
    # What the engine was given, and left without an end, has one now; what it was not given has none.
    assert bench.ends.outcomes == {("first", 0): UNMADE}


async def test_what_interrupts_is_found_meanwhile_and_its_steps_are_counted_against_the_batch(bench: Bench) -> None:
    async def urgent() -> list[ImageId]:
        return [request.id for request in await asyncio.to_thread(bench.monitor.interrupting_images, 20, 25, ())]

    joining = members("urgent")
    bench.urgent = [joining]
    assert await urgent() == []
    assert bench.looked_urgent == [RunningBatch(0, 20, 25)]
    assert await urgent() == list(joining)
    # Three steps of what interrupts, and one of the batch.
    for _ in range(4):
        bench.monitor.count_step(StepStats(1, 1, limit=4))
    assert await urgent() == []
    assert bench.looked_urgent[1:] == [RunningBatch(0, 20, 22)]
    # It is not looked for at every step.
    bench.monitor.count_step(StepStats(1, 1, limit=4))
    assert await urgent() == []
    assert len(bench.looked_urgent) == 2


async def test_what_takes_slots_of_the_batch_joins_it_though_it_has_no_room(bench: Bench) -> None:
    joining, parkable = members("urgent"), (Parkable(0, 20),)
    bench.urgent, bench.urgent_joins = [joining], True
    assert await asyncio.to_thread(bench.monitor.interrupting_images, 20, 25, parkable) == ()
    assert bench.looked_urgent == [RunningBatch(0, 20, 25, parkable)]
    assert await bench.joining_images(0) == list(joining)


async def test_the_priority_of_an_image_is_its_jobs_as_it_is_now(bench: Bench) -> None:
    (image_id,) = bench.first
    assert bench.monitor.priority(image_id) == 0
    bench.first[image_id].assignment.update_job(bound_job("first", version=2, priority=7))
    assert bench.monitor.priority(image_id) == 7


async def test_what_interrupts_and_is_found_too_late_is_a_batch_of_its_own(bench: Bench) -> None:
    joining, urgent = members("second"), members("urgent")
    bench.queue, bench.urgent = [joining], [urgent]
    await bench.joining_images(2)
    await asyncio.to_thread(bench.monitor.interrupting_images, 20, 25, ())
    assert bench.monitor.close(UNMADE) == [urgent, joining]


async def test_an_end_is_told_once(bench: Bench) -> None:
    (image_id,) = bench.first
    await asyncio.to_thread(bench.monitor.ended, image_id, picture())
    assert bench.monitor.close(UNMADE) == []
    assert bench.ends.outcomes == {("first", 0): picture()}
    assert bench.metric("inference_seconds_count") == 1


async def test_a_running_batch_is_counted_at_each_step_and_a_static_one_once(bench: Bench) -> None:
    for images, size in ((1, 1), (3, 4)):
        bench.monitor.count_step(StepStats(images, size, limit=4, compiled=images > 1, memory=123))
    bench.monitor.close(UNMADE)
    found = [bench.metric(name) for name in ("batch_images_count", "batch_images_sum", "slot_steps_total")]
    assert found == [2, 4, 5]
    assert [bench.metric(name) for name in ("batch_limit", "compiled_batch_steps_total")] == [4, 1]
    assert bench.metric("device_memory_bytes") == 123
    static = Bench()
    static.monitor.close(UNMADE)
    assert [static.metric(name) for name in ("batch_images_count", "batch_images_sum")] == [1, 1]


async def test_the_wait_for_the_first_step_begins_in_the_queue(bench: Bench) -> None:
    (image_id,) = bench.first
    began = (dt.datetime.now(dt.UTC) - NOW).total_seconds()
    for step in (1, 2, 3):
        bench.monitor.stepped(image_id, step, 10)
    ended = (dt.datetime.now(dt.UTC) - NOW).total_seconds()
    assert bench.metric("first_step_seconds_count") == 1
    assert began <= bench.metric("first_step_seconds_sum") <= ended
    assert bench.metric("steps_total") == 3

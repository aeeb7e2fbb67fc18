"""Only who makes its worker die pays for it, by search: the scheduler's own decisions, played to the end."""

from __future__ import annotations

import dataclasses
import datetime as dt
import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from kubediffusion.operator.actions import Bind, Finish, Requeue
from kubediffusion.operator.job_status import next_status
from kubediffusion.operator.placement import WorkerCapacity, most_together
from kubediffusion.operator.scheduling import schedule_model
from kubediffusion.operator.snapshots import SchedulerOptions
from kubediffusion.operator.store import Store
from kubediffusion.operator.workers import WorkerState
from kubediffusion.resources.generation_job import GenerationJob, Phase
from kubediffusion.resources.testing import NAMESPACE, NOW, bound_job, job, model, present
from unit.operator.builders import HASH, pod_name, snapshot, worker

OPTIONS = SchedulerOptions()
LIMIT = 1


@dataclasses.dataclass
class Simulation:
    """Jobs and workers of one model; workers die as soon as the engine has one of the guilty.

    Attributes:
        jobs: By name.
        guilty: Names of those that make their worker die.
        workers: How many there are at a time.
        batch: Images that run together.
        chance: Decides which worker does something next, and what.
        deaths: How many workers have died.
    """

    jobs: dict[str, GenerationJob]
    guilty: set[str]
    workers: int
    batch: int
    chance: random.Random
    deaths: int = 0

    def run(self) -> None:
        """Schedule and run until every job has ended."""
        bound: dict[str, list[str]] = {pod_name(ordinal): [] for ordinal in range(self.workers)}
        for _ in itertools.count():
            if all(item.status.phase in {Phase.SUCCEEDED, Phase.FAILED} for item in self.jobs.values()):
                return
            self._pass(bound, None)
            assert any(bound.values()), "jobs wait, and no worker has any"
            pod = self.chance.choice([pod for pod, jobs in bound.items() if jobs])
            self._work(bound, pod)

    def _work(self, bound: dict[str, list[str]], pod: str) -> None:
        """The worker takes its next batch: it dies, or some of it is done."""
        batch = bound[pod][: self.batch]
        for name in batch:
            if self.chance.random() < 0.5:
                self._becomes(name, Phase.RUNNING)
        if self.guilty.intersection(batch):
            self.deaths += 1
            self._pass(bound, pod)
            assert bound[pod] == []
            return
        for name in batch:
            self._becomes(name, Phase.SUCCEEDED)
            bound[pod].remove(name)

    def _pass(self, bound: dict[str, list[str]], died: str | None) -> None:
        """One pass of the scheduler, whose writes are all taken."""
        pods = [pod_name(ordinal) for ordinal in range(self.workers)]
        states = [WorkerState.FAILED if pod == died else WorkerState.READY for pod in pods]
        waiting = [item for item in self.jobs.values() if item.status.phase is Phase.PENDING]
        cluster = snapshot(
            waiting,
            [worker(ordinal, state) for ordinal, state in enumerate(states)],
            {pod: [self.jobs[name] for name in names] for pod, names in bound.items()},
            max_replicas=self.workers,
            max_batch_size=self.batch,
        )
        for action in schedule_model(cluster, NOW, OPTIONS).actions:
            if not isinstance(action, Bind | Requeue | Finish):
                continue
            name = action.job.name
            for names in bound.values():
                if name in names:
                    names.remove(name)
            self.jobs[name] = action.job.model_copy(update={"status": next_status(action, NOW, 0)})
            if isinstance(action, Bind):
                bound[action.pod].append(name)

    def _becomes(self, name: str, phase: Phase) -> None:
        status = self.jobs[name].status.model_copy(update={"phase": phase})
        self.jobs[name] = self.jobs[name].model_copy(update={"status": status})


@given(st.integers(1, 12), st.integers(0, 2), st.integers(1, 3), st.integers(1, 4), st.randoms(use_true_random=False))
def test_mates_succeed_and_only_the_guilty_spend_their_limit(
    number: int, guilty: int, workers: int, batch: int, chance: random.Random
) -> None:
    names = [f"job-{n:02}" for n in range(number)]
    culprits = set(chance.sample(names, min(guilty, number)))
    jobs = {name: job(name, age=number - n, backoff_limit=LIMIT) for n, name in enumerate(names)}
    simulation = Simulation(jobs, culprits, workers, batch, chance)
    simulation.run()
    for name, item in simulation.jobs.items():
        expected = (Phase.FAILED, LIMIT + 1) if name in culprits else (Phase.SUCCEEDED, 0)
        assert (item.status.phase, item.status.retries) == expected
    # Each has its own tries, and is found by halving: of two batches of four in three deaths.
    halvings = (OPTIONS.batches_ahead * batch).bit_length() - 1
    assert simulation.deaths <= len(culprits) * (LIMIT + 1 + halvings)


@given(st.lists(st.integers(2, 128), min_size=1, max_size=8))
def test_suspects_are_tried_at_most_half_as_many_together(suspects: list[int]) -> None:
    place = WorkerCapacity("pod", 1000, [])
    for among in suspects:
        if place.takes(among):
            place.take(1, among)
    assert 1 <= len(place.suspect_group_sizes) <= most_together(place.suspect_group_sizes)
    # Nobody else goes where suspects are, and no suspect where others are.
    assert not place.takes(0)
    assert not WorkerCapacity("pod", 1000, [0]).takes(suspects[0])


@given(st.integers(2, 5), st.data())
def test_a_job_that_is_taken_back_last_pays_no_more_than_its_mates(number: int, data: st.DataObject) -> None:
    """They are taken back one write at a time, and the one whose write conflicts is decided on alone, and anew."""
    store = Store(lambda _: HASH, dt.timedelta(seconds=30))
    crashed, kept = worker(0, WorkerState.FAILED), present(worker(0, WorkerState.FAILED).pod)
    store.observe_model(model(), deleted=False)
    store.observe_batch_job(crashed.job, deleted=False)
    store.observe_pod(kept, deleted=False)
    names = [f"job-{n}" for n in range(number)]
    for name in names:
        store.observe_job(bound_job(name, worker=pod_name(0), phase=Phase.RUNNING), deleted=False)
    late = data.draw(st.sampled_from(names))
    for action in decisions(store):
        store.assume_job(action.job, None)
        taken = action.job.name != late
        status = next_status(action, NOW, 0) if taken else action.job.status
        metadata = action.job.metadata.model_copy(update={"resource_version": "2"})
        result = action.job.model_copy(update={"metadata": metadata, "status": status})
        store.settle_job(action.job, result)
    [again] = [action for action in decisions(store) if action.job.name == late]
    assert (again.costs_retry, again.suspect_group_size) == (False, number)


def decisions(store: Store) -> list[Requeue]:
    state = present(store.namespace(NAMESPACE))
    [seen] = state.model_snapshots(NOW)
    return [action for action in schedule_model(seen, NOW, OPTIONS).actions if isinstance(action, Requeue)]

"""The laws of scheduling, for every cluster that a search can think of: this is the scheduler's description."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st

from kubediffusion.operator.actions import Action, Bind, CreateWorker, DeleteWorker, Explain, Finish, Requeue
from kubediffusion.operator.placement import WorkerCapacity
from kubediffusion.operator.snapshots import LIVE, ModelSnapshot, order_key
from kubediffusion.operator.workers import (
    ObservedWorker,
    WorkerState,
)
from kubediffusion.resources.generation_job import GenerationJob, Phase
from kubediffusion.resources.testing import bound_job, job, present
from unit.operator.builders import HASH, OLD_HASH, OPTIONS, plan, pod_of, snapshot, worker


@st.composite
def clusters(draw: st.DrawFn) -> ModelSnapshot:
    states = draw(st.lists(st.sampled_from(list(WorkerState)), max_size=5))
    templates = draw(st.lists(st.sampled_from([HASH, HASH, OLD_HASH]), min_size=5, max_size=5))
    workers = [
        worker(
            n,
            state,
            template=template,
            idle=draw(st.sampled_from([None, 1, 1000])),
            failed=draw(st.integers(0, 60)),
            drained=state in {WorkerState.STARTING, WorkerState.READY} and draw(st.sampled_from([False, False, True])),
        )
        for n, (state, template) in enumerate(zip(states, templates, strict=False))
    ]
    names = [pod_of(w).metadata.name for w in workers if w.pod is not None]
    names += draw(st.lists(st.sampled_from(["vanished"]), max_size=1))
    bound: dict[str, list[GenerationJob]] = {}
    for n in range(draw(st.integers(0, 6)) if names else 0):
        name = draw(st.sampled_from(names))
        phase = draw(st.sampled_from([Phase.SCHEDULED, Phase.RUNNING]))
        retries = draw(st.integers(0, 3))
        suspend = draw(st.sampled_from([None, None, True]))
        priority = draw(st.integers(-1, 1))
        item = bound_job(f"bound-{n}", worker=name, phase=phase, retries=retries, priority=priority, suspend=suspend)
        among = draw(st.sampled_from([None, None, None, 2, 8]))
        item = item.model_copy(update={"status": item.status.model_copy(update={"suspects": among})})
        bound.setdefault(name, []).append(item)
    waiting = [
        job(
            f"waiting-{n}",
            age=draw(st.integers(0, 9)),
            priority=draw(st.integers(-1, 1)),
            num_images=draw(st.integers(1, 4)),
        )
        for n in range(draw(st.integers(0, 12)))
    ]
    most = draw(st.integers(1, 4))
    return snapshot(
        waiting,
        workers,
        bound,
        max_replicas=most,
        min_replicas=draw(st.integers(0, most)),
        max_batch_size=draw(st.integers(1, 4)),
        idle_seconds=60,
    )


def capacities_of(cluster: ModelSnapshot) -> dict[str, WorkerCapacity]:
    """The ready workers before anything is bound."""
    found = {}
    for ready in cluster.current(WorkerState.READY):
        pod = pod_of(ready).metadata.name
        free = OPTIONS.batches_ahead * cluster.batch - cluster.load(ready)
        found[pod] = WorkerCapacity(pod, free, [item.status.suspects or 0 for item in cluster.jobs_of(ready)])
    return found


def live(cluster: ModelSnapshot, *, current: bool) -> list[ObservedWorker]:
    return [w for w in cluster.workers if w.state in LIVE and (w.template_hash == HASH) is current]


def crashed_on(action: Action) -> bool:
    """Return whether an action counts a retry of a job that was never seen running."""
    if not isinstance(action, Bind | Requeue | Finish):
        return False
    return action.costs_retry and action.job.status.phase is not Phase.RUNNING


CASES: dict[str, Callable[[ModelSnapshot, tuple[Action, ...]], object]] = {
    "several jobs are bound": lambda _, actions: sum(isinstance(a, Bind) for a in actions) > 1,
    "a suspect is bound": lambda _, actions: any(isinstance(a, Bind) and a.suspect_group_size for a in actions),
    "some are bound and others go on waiting": lambda cluster, actions: (
        any(isinstance(a, Bind) for a in actions)
        and {item.uid for item in cluster.waiting} - {a.job.uid for a in actions if isinstance(a, Bind | Finish)}
    ),
    "a retry is costs_retry": lambda _, actions: any(
        isinstance(a, Bind | Requeue | Finish) and a.costs_retry for a in actions
    ),
    "a retry is costs_retry of a job that was not seen running": lambda _, actions: any(map(crashed_on, actions)),
    "a worker with a Pod is deleted while others have jobs": lambda cluster, actions: (
        any(cluster.bound.values())
        and {a.name for a in actions if isinstance(a, DeleteWorker)}
        & {w.name for w in cluster.workers if w.pod is not None}
    ),
    "several workers are created": lambda _, actions: sum(isinstance(a, CreateWorker) for a in actions) > 1,
    "a job was on a worker that vanished": lambda cluster, _: cluster.bound.get("vanished"),
    "a job is taken from a sound worker": lambda cluster, actions: any(
        isinstance(a, Requeue)
        and a.job.status.worker in {pod_of(w).metadata.name for w in cluster.current(WorkerState.READY)}
        for a in actions
    ),
    "workers go and min_replicas stay": lambda cluster, actions: (
        cluster.model.spec.workers.min_replicas and any(isinstance(a, DeleteWorker) for a in actions)
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_search_comes_upon(case: str) -> None:
    """Else the laws below would hold for want of what they speak of."""
    search = settings(max_examples=2000, derandomize=True)
    assert find(clusters(), lambda cluster: bool(CASES[case](cluster, plan(cluster))), settings=search)


@given(clusters())
def test_no_job_is_decided_on_twice(cluster: ModelSnapshot) -> None:
    decided = [a.job.uid for a in plan(cluster) if isinstance(a, Bind | Requeue | Finish | Explain)]
    assert max(Counter(decided).values(), default=0) <= 1


@given(clusters())
def test_jobs_are_bound_only_to_ready_workers_of_todays_template(cluster: ModelSnapshot) -> None:
    ready = {pod_of(w).metadata.name for w in cluster.current(WorkerState.READY)}
    assert {a.pod for a in plan(cluster) if isinstance(a, Bind)} <= ready


@given(clusters())
def test_a_worker_gets_work_only_while_it_has_room(cluster: ModelSnapshot) -> None:
    room = OPTIONS.batches_ahead * cluster.batch
    load = {pod_of(w).metadata.name: cluster.load(w) for w in cluster.current(WorkerState.READY)}
    for action in plan(cluster):
        if isinstance(action, Bind):
            assert load[action.pod] < room
            load[action.pod] += cluster.slots(action.job)


@given(clusters())
def test_nobody_is_passed_over(cluster: ModelSnapshot) -> None:
    """A job that goes on waiting is never more urgent than one that was bound."""
    actions = plan(cluster)
    bound = [order_key(a.job) for a in actions if isinstance(a, Bind)]
    left_out = {a.job.uid for a in actions if isinstance(a, Bind | Finish)}
    left = [order_key(item) for item in cluster.waiting if item.uid not in left_out]
    if bound and left:
        assert max(bound) < min(left)


@given(clusters())
def test_no_room_is_left_that_the_next_job_could_take(cluster: ModelSnapshot) -> None:
    actions = plan(cluster)
    places = capacities_of(cluster)
    for action in actions:
        if isinstance(action, Bind):
            places[action.pod].take(cluster.slots(action.job), action.suspect_group_size)
    ended = {a.job.uid for a in actions if isinstance(a, Bind | Finish)}
    left = [(item, item.status.suspects or 0) for item in cluster.waiting if item.uid not in ended]
    left += [(a.job, a.suspect_group_size) for a in actions if isinstance(a, Requeue) and not a.job.spec.suspend]
    if left:
        _, suspects = min(left, key=lambda pair: order_key(pair[0]))
        assert not any(place.takes(suspects) for place in places.values())


@given(clusters())
def test_work_is_spread_evenly(cluster: ModelSnapshot) -> None:
    """Before the binding of any job, its worker is the least loaded one of those that may take it."""
    places = capacities_of(cluster)
    for action in plan(cluster):
        if isinstance(action, Bind):
            free = [place.free for place in places.values() if place.takes(action.suspect_group_size)]
            assert places[action.pod].takes(action.suspect_group_size)
            assert places[action.pod].free == max(free)
            places[action.pod].take(cluster.slots(action.job), action.suspect_group_size)


@given(clusters())
def test_there_are_never_more_workers_than_max_replicas(cluster: ModelSnapshot) -> None:
    """Those that are going hold their GPU until they have ended, so they count."""
    held = [w for w in cluster.workers if w.state in LIVE or (w.pod is not None and not pod_of(w).finished)]
    created = sum(isinstance(a, CreateWorker) for a in plan(cluster))
    assert created == 0 or len(held) + created <= cluster.model.spec.workers.max_replicas


@given(clusters())
def test_workers_follow_the_backlog(cluster: ModelSnapshot) -> None:
    actions = plan(cluster)
    ended = {a.job.uid for a in actions if isinstance(a, Finish)}
    settings = cluster.model.spec.workers
    jobs = [item for item in cluster.waiting if item.uid not in ended]
    created = sum(isinstance(a, CreateWorker) for a in actions)
    if not jobs and not cluster.bound and settings.min_replicas == 0:
        assert created == 0
    if len(live(cluster, current=True)) >= max(settings.min_replicas, math.ceil(len(jobs) + 24 / cluster.batch)):
        assert created == 0


@given(clusters())
@settings(max_examples=300)
def test_no_worker_is_created_that_no_job_asks_for(cluster: ModelSnapshot) -> None:
    """A job asks once, whether it waits, is on a worker or is just taken from one, and a suspended one not at all."""
    actions = plan(cluster)
    bound = [item for jobs in cluster.bound.values() for item in jobs]
    suspended = {a.job.uid for a in actions if isinstance(a, Requeue) and a.reason == "Suspended"}
    places = sum(cluster.slots(item) for item in (*cluster.waiting, *bound) if item.uid not in suspended)
    wanted = max(math.ceil(places / cluster.batch), cluster.model.spec.workers.min_replicas)
    created = sum(isinstance(a, CreateWorker) for a in actions)
    assert created == 0 or len(live(cluster, current=True)) + created <= wanted


@given(clusters())
def test_the_names_of_new_workers_are_free_and_differ(cluster: ModelSnapshot) -> None:
    taken = {w.name for w in cluster.workers}
    created = [f"emoji-{a.template_hash}-{a.ordinal}" for a in plan(cluster) if isinstance(a, CreateWorker)]
    assert len(set(created)) == len(created)
    assert not taken & set(created)


@given(clusters())
def test_a_worker_with_jobs_is_never_deleted(cluster: ModelSnapshot) -> None:
    busy = {pod for pod, jobs in cluster.bound.items() if jobs}
    names = {w.name: pod_of(w).metadata.name for w in cluster.workers if w.pod is not None}
    bound_now = {a.pod for a in plan(cluster) if isinstance(a, Bind)}
    for action in plan(cluster):
        if isinstance(action, DeleteWorker):
            assert names.get(action.name) not in busy | bound_now


@given(clusters())
def test_min_replicas_stay(cluster: ModelSnapshot) -> None:
    deleted = {a.name for a in plan(cluster) if isinstance(a, DeleteWorker)}
    before = live(cluster, current=True)
    left = [w for w in before if w.name not in deleted]
    assert len(left) >= min(len(before), cluster.model.spec.workers.min_replicas)


@given(clusters())
def test_only_a_job_that_was_alone_spends_its_backoff_limit(cluster: ModelSnapshot) -> None:
    """It was running; or its worker crashed, and a batch that ends within a second is never reported as running."""
    by_pod = {pod_of(w).metadata.name: w for w in cluster.workers if w.pod is not None}
    for action in plan(cluster):
        if not isinstance(action, Bind | Requeue | Finish) or not action.costs_retry:
            continue
        assert len(cluster.bound[present(action.job.status.worker)]) == 1
        if action.job.status.phase is not Phase.RUNNING:
            ended = by_pod[present(action.job.status.worker)]
            assert ended.state is WorkerState.FAILED
            assert all(item.status.phase is Phase.SCHEDULED for item in cluster.jobs_of(ended))


@given(clusters())
def test_every_job_of_a_vanished_worker_is_taken_back(cluster: ModelSnapshot) -> None:
    decided = {a.job.uid for a in plan(cluster) if isinstance(a, Bind | Requeue | Finish)}
    assert {item.uid for item in cluster.bound.get("vanished", ())} <= decided


@given(clusters())
def test_a_job_of_a_sound_worker_is_left_alone(cluster: ModelSnapshot) -> None:
    """Unless it is suspended before it has begun."""
    sound = {
        pod_of(w).metadata.name
        for w in cluster.workers
        if w.state in {WorkerState.READY, WorkerState.STARTING} and w.pod
    }
    for action in plan(cluster):
        if isinstance(action, Bind | Requeue | Finish):
            paused = action.job.spec.suspend and action.job.status.phase is Phase.SCHEDULED
            assert paused or action.job.status.worker not in sound


@given(clusters())
@settings(max_examples=50)
def test_the_same_view_gives_the_same_plan(cluster: ModelSnapshot) -> None:
    assert plan(cluster) == plan(cluster)

"""The laws of scheduling, for every cluster that a search can think of: this is the scheduler's description."""

from __future__ import annotations

import dataclasses
import datetime as dt
import math
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st

from kubediffusion.operator.actions import Action, Bind, CreateWorker, DeletePod, DeleteWorker, Explain, Finish, Requeue
from kubediffusion.operator.placement import Place
from kubediffusion.operator.scheduling import deadline, decide_termination, schedule_model
from kubediffusion.operator.views import LIVE, ModelView, SchedulerOptions, order_key
from kubediffusion.operator.workers import (
    BatchJobStatus,
    ContainerState,
    ContainerStatus,
    PlatformCondition,
    Terminated,
    Waiting,
    Worker,
    WorkerState,
)
from kubediffusion.resources.failures import ErrorCode
from kubediffusion.resources.generation_job import GenerationJob, Phase
from kubediffusion.resources.testing import NOW, bound_job, job, present
from unit.operator.builders import HASH, OLD_HASH, pod_name, pod_of, view, worker

OPTIONS = SchedulerOptions()


@st.composite
def clusters(draw: st.DrawFn) -> ModelView:
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
    return view(
        waiting,
        workers,
        bound,
        max_replicas=most,
        min_replicas=draw(st.integers(0, most)),
        max_batch_size=draw(st.integers(1, 4)),
        idle_seconds=60,
    )


def plan(cluster: ModelView) -> tuple[Action, ...]:
    return schedule_model(cluster, NOW, OPTIONS, explanations=5).actions


def places_of(cluster: ModelView) -> dict[str, Place]:
    """The ready workers before anything is bound."""
    found = {}
    for ready in cluster.current(WorkerState.READY):
        pod = pod_of(ready).metadata.name
        free = OPTIONS.batches_ahead * cluster.batch - cluster.load(ready)
        found[pod] = Place(pod, free, [item.status.suspects or 0 for item in cluster.jobs_of(ready)])
    return found


def live(cluster: ModelView, *, current: bool) -> list[Worker]:
    return [w for w in cluster.workers if w.state in LIVE and (w.template_hash == HASH) is current]


def crashed_on(action: Action) -> bool:
    """Return whether an action counts a retry of a job that was never seen running."""
    if not isinstance(action, Bind | Requeue | Finish):
        return False
    return action.counted and action.job.status.phase is not Phase.RUNNING


CASES: dict[str, Callable[[ModelView, tuple[Action, ...]], object]] = {
    "several jobs are bound": lambda _, actions: sum(isinstance(a, Bind) for a in actions) > 1,
    "a suspect is bound": lambda _, actions: any(isinstance(a, Bind) and a.suspects for a in actions),
    "some are bound and others go on waiting": lambda cluster, actions: (
        any(isinstance(a, Bind) for a in actions)
        and {item.uid for item in cluster.waiting} - {a.job.uid for a in actions if isinstance(a, Bind | Finish)}
    ),
    "a retry is counted": lambda _, actions: any(isinstance(a, Bind | Requeue | Finish) and a.counted for a in actions),
    "a retry is counted of a job that was not seen running": lambda _, actions: any(map(crashed_on, actions)),
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
def test_no_job_is_decided_on_twice(cluster: ModelView) -> None:
    decided = [a.job.uid for a in plan(cluster) if isinstance(a, Bind | Requeue | Finish | Explain)]
    assert max(Counter(decided).values(), default=0) <= 1


@given(clusters())
def test_jobs_are_bound_only_to_ready_workers_of_todays_template(cluster: ModelView) -> None:
    ready = {pod_of(w).metadata.name for w in cluster.current(WorkerState.READY)}
    assert {a.pod for a in plan(cluster) if isinstance(a, Bind)} <= ready


@given(clusters())
def test_a_worker_gets_work_only_while_it_has_room(cluster: ModelView) -> None:
    room = OPTIONS.batches_ahead * cluster.batch
    load = {pod_of(w).metadata.name: cluster.load(w) for w in cluster.current(WorkerState.READY)}
    for action in plan(cluster):
        if isinstance(action, Bind):
            assert load[action.pod] < room
            load[action.pod] += cluster.slots(action.job)


@given(clusters())
def test_nobody_is_passed_over(cluster: ModelView) -> None:
    """A job that goes on waiting is never more urgent than one that was bound."""
    actions = plan(cluster)
    bound = [order_key(a.job) for a in actions if isinstance(a, Bind)]
    left_out = {a.job.uid for a in actions if isinstance(a, Bind | Finish)}
    left = [order_key(item) for item in cluster.waiting if item.uid not in left_out]
    if bound and left:
        assert max(bound) < min(left)


@given(clusters())
def test_no_room_is_left_that_the_next_job_could_take(cluster: ModelView) -> None:
    actions = plan(cluster)
    places = places_of(cluster)
    for action in actions:
        if isinstance(action, Bind):
            places[action.pod].take(cluster.slots(action.job), action.suspects)
    ended = {a.job.uid for a in actions if isinstance(a, Bind | Finish)}
    left = [(item, item.status.suspects or 0) for item in cluster.waiting if item.uid not in ended]
    left += [(a.job, a.suspects) for a in actions if isinstance(a, Requeue) and not a.job.spec.suspend]
    if left:
        _, suspects = min(left, key=lambda pair: order_key(pair[0]))
        assert not any(place.takes(suspects) for place in places.values())


@given(clusters())
def test_work_is_spread_evenly(cluster: ModelView) -> None:
    """Before the binding of any job, its worker is the least loaded one of those that may take it."""
    places = places_of(cluster)
    for action in plan(cluster):
        if isinstance(action, Bind):
            free = [place.free for place in places.values() if place.takes(action.suspects)]
            assert places[action.pod].takes(action.suspects)
            assert places[action.pod].free == max(free)
            places[action.pod].take(cluster.slots(action.job), action.suspects)


@given(clusters())
def test_there_are_never_more_workers_than_max_replicas(cluster: ModelView) -> None:
    """Those that are going hold their GPU until they have ended, so they count."""
    held = [w for w in cluster.workers if w.state in LIVE or (w.pod is not None and not pod_of(w).finished)]
    created = sum(isinstance(a, CreateWorker) for a in plan(cluster))
    assert created == 0 or len(held) + created <= cluster.model.spec.workers.max_replicas


@given(clusters())
def test_workers_follow_the_backlog(cluster: ModelView) -> None:
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
def test_no_worker_is_created_that_no_job_asks_for(cluster: ModelView) -> None:
    """A job asks once, whether it waits, is on a worker or is just taken from one, and a suspended one not at all."""
    actions = plan(cluster)
    bound = [item for jobs in cluster.bound.values() for item in jobs]
    suspended = {a.job.uid for a in actions if isinstance(a, Requeue) and a.reason == "Suspended"}
    places = sum(cluster.slots(item) for item in (*cluster.waiting, *bound) if item.uid not in suspended)
    wanted = max(math.ceil(places / cluster.batch), cluster.model.spec.workers.min_replicas)
    created = sum(isinstance(a, CreateWorker) for a in actions)
    assert created == 0 or len(live(cluster, current=True)) + created <= wanted


def test_a_suspended_job_that_is_taken_from_its_worker_gets_no_other() -> None:
    suspended = [bound_job(f"b-{n}", worker=pod_name(0), suspend=True) for n in range(4)]
    cluster = view(workers=[worker(0, WorkerState.READY)], bound={pod_name(0): suspended}, max_replicas=3)
    assert {type(action) for action in plan(cluster)} == {Requeue}


def replaced(ordinal: int) -> Worker:
    """A worker whose Pod the platform has ended; its batch/v1 Job has not failed, and makes another."""
    pod = pod_of(worker(ordinal, WorkerState.FAILED))
    condition = PlatformCondition(type="DisruptionTarget", status="True")
    status = pod.status.model_copy(update={"conditions": (condition,)})
    return Worker(worker(ordinal, WorkerState.STARTING).job, pod.model_copy(update={"status": status}))


def test_jobs_that_a_disrupted_worker_left_ask_for_no_worker_beside_it() -> None:
    """Its batch/v1 Job makes another Pod, which is on its way."""
    disrupted = replaced(0)
    left = [bound_job(f"b-{n}", worker=pod_name(0), phase=Phase.RUNNING) for n in range(4)]
    cluster = view(workers=[disrupted], bound={pod_name(0): left}, max_replicas=3)
    assert disrupted.state is WorkerState.STARTING
    assert {type(action) for action in plan(cluster)} == {Requeue}


@pytest.mark.parametrize(
    ("waiting", "others", "deleted"),
    [
        (1, [WorkerState.STARTING], True),
        (1, [WorkerState.READY], True),
        (1, [], False),
        (8, [WorkerState.STARTING], False),
        (0, [], True),
    ],
)
def test_a_disrupted_worker_is_given_up_where_others_are_enough(
    waiting: int, others: list[WorkerState], deleted: bool
) -> None:
    """Its batch/v1 Job would replace what the operator has replaced while its Pod was going."""
    workers = [replaced(0), *(worker(n, state) for n, state in enumerate(others, 1))]
    jobs = [job(f"job-{n}", age=0) for n in range(waiting)]
    actions = plan(view(jobs, workers, max_batch_size=4, max_replicas=3))
    assert [a.name for a in actions if isinstance(a, DeleteWorker)] == ([workers[0].name] if deleted else [])
    assert not any(isinstance(a, CreateWorker) for a in actions)


@pytest.mark.parametrize(("images", "workers"), [(1, 1), (2, 2), (4, 4), (16, 4)])
def test_jobs_of_many_images_ask_for_more_workers(images: int, workers: int) -> None:
    """As many as find work: a job is one worker's, however many batches it takes."""
    waiting = [job(f"job-{n}", num_images=images) for n in range(4)]
    cluster = view(waiting, max_batch_size=4, max_replicas=9)
    assert sum(isinstance(a, CreateWorker) for a in plan(cluster)) == workers


@given(clusters())
def test_the_names_of_new_workers_are_free_and_differ(cluster: ModelView) -> None:
    taken = {w.name for w in cluster.workers}
    created = [f"emoji-{a.template_hash}-{a.ordinal}" for a in plan(cluster) if isinstance(a, CreateWorker)]
    assert len(set(created)) == len(created)
    assert not taken & set(created)


@given(clusters())
def test_a_worker_with_jobs_is_never_deleted(cluster: ModelView) -> None:
    busy = {pod for pod, jobs in cluster.bound.items() if jobs}
    names = {w.name: pod_of(w).metadata.name for w in cluster.workers if w.pod is not None}
    bound_now = {a.pod for a in plan(cluster) if isinstance(a, Bind)}
    for action in plan(cluster):
        if isinstance(action, DeleteWorker):
            assert names.get(action.name) not in busy | bound_now


@given(clusters())
def test_min_replicas_stay(cluster: ModelView) -> None:
    deleted = {a.name for a in plan(cluster) if isinstance(a, DeleteWorker)}
    before = live(cluster, current=True)
    left = [w for w in before if w.name not in deleted]
    assert len(left) >= min(len(before), cluster.model.spec.workers.min_replicas)


@given(clusters())
def test_only_a_job_that_was_alone_spends_its_backoff_limit(cluster: ModelView) -> None:
    """It was running; or its worker crashed, and a batch that ends within a second is never reported as running."""
    by_pod = {pod_of(w).metadata.name: w for w in cluster.workers if w.pod is not None}
    for action in plan(cluster):
        if not isinstance(action, Bind | Requeue | Finish) or not action.counted:
            continue
        assert len(cluster.bound[present(action.job.status.worker)]) == 1
        if action.job.status.phase is not Phase.RUNNING:
            ended = by_pod[present(action.job.status.worker)]
            assert ended.state is WorkerState.FAILED
            assert all(item.status.phase is Phase.SCHEDULED for item in cluster.jobs_of(ended))


@given(clusters())
def test_every_job_of_a_vanished_worker_is_taken_back(cluster: ModelView) -> None:
    decided = {a.job.uid for a in plan(cluster) if isinstance(a, Bind | Requeue | Finish)}
    assert {item.uid for item in cluster.bound.get("vanished", ())} <= decided


@given(clusters())
def test_a_job_of_a_sound_worker_is_left_alone(cluster: ModelView) -> None:
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
def test_the_same_view_gives_the_same_plan(cluster: ModelView) -> None:
    assert plan(cluster) == plan(cluster)


def test_a_deadline_after_the_end_of_the_calendar_is_none() -> None:
    item = job(active_deadline_seconds=31_536_000)
    metadata = item.metadata.model_copy(update={"creation_timestamp": dt.datetime(9999, 6, 1, tzinfo=dt.UTC)})
    late = item.model_copy(update={"metadata": metadata})
    assert deadline(item) == present(item.metadata.creation_timestamp) + dt.timedelta(days=365)
    assert (deadline(late), decide_termination(late, NOW)) == (None, None)


def test_a_job_is_tried_as_often_as_its_backoff_limit_says() -> None:
    crashed = [worker(0, WorkerState.FAILED), worker(1, WorkerState.FAILED)]
    spent = bound_job("spent", worker=pod_name(0), phase=Phase.RUNNING, retries=3)
    left = bound_job("left", worker=pod_name(1), phase=Phase.RUNNING, retries=2)
    actions = plan(view(workers=crashed, bound={pod_name(0): [spent], pod_name(1): [left]}))
    (failed,) = [a for a in actions if isinstance(a, Finish)]
    (again,) = [a for a in actions if isinstance(a, Requeue)]
    assert (failed.job, failed.code) == (spent, ErrorCode.BACKOFF_LIMIT_EXCEEDED)
    assert "exit code 137" in failed.message
    assert "for the 4th time" in failed.message
    assert (again.job, again.counted) == (left, True)


def test_a_job_that_was_running_when_its_worker_was_drained_spends_nothing() -> None:
    """The grace period was too short for it; that is not its worker's death."""
    drained = worker(0, WorkerState.FAILED)
    status = pod_of(drained).status.model_copy(
        update={"conditions": (PlatformCondition(type="DisruptionTarget", status="True"),)}
    )
    drained = dataclasses.replace(drained, pod=pod_of(drained).model_copy(update={"status": status}))
    running = bound_job("running", worker=pod_name(0), phase=Phase.RUNNING, retries=3)
    (again,) = [a for a in plan(view(workers=[drained], bound={pod_name(0): [running]})) if isinstance(a, Requeue)]
    assert (again.job, again.counted) == (running, False)


NO_NODE = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."


def stuck(ordinal: int) -> Worker:
    """A worker that no node takes."""
    waits = worker(ordinal, WorkerState.STARTING)
    status = pod_of(waits).status.model_copy(
        update={"conditions": (PlatformCondition(type="PodScheduled", status="False", message=NO_NODE),)}
    )
    return dataclasses.replace(waits, pod=pod_of(waits).model_copy(update={"status": status}))


def said_of(cluster: ModelView) -> Explain:
    """What the one job that waits is told."""
    (said,) = [a for a in plan(cluster) if isinstance(a, Explain)]
    return said


FULL = {pod_name(0): [bound_job(f"b-{n}", worker=pod_name(0)) for n in range(8)]}


def test_jobs_that_wait_for_room_are_told_that_the_other_worker_finds_no_node() -> None:
    workers = [worker(0, WorkerState.READY), stuck(1), worker(2, WorkerState.STARTING)]
    said = said_of(view([job(age=5)], workers, FULL, max_replicas=3))
    assert said.reason == "WorkersBusy"
    assert said.message.endswith(f"maxReplicas is 3; 1 starting; 1 without a node: {NO_NODE}")


def test_jobs_that_wait_for_room_are_told_why_there_are_no_more_workers() -> None:
    crashed = [worker(n, WorkerState.FAILED, failed=1) for n in (1, 2)]
    full = view([job(age=5)], [worker(0, WorkerState.READY), *crashed], FULL, max_replicas=2)
    said = said_of(dataclasses.replace(full, refusal="exceeded quota: gpus"))
    assert said.reason == "WorkersBusy"
    refused, crashes = "no more can be created: exceeded quota: gpus", "2 workers of model emoji crashed in a row"
    assert f"maxReplicas is 2; {refused}; {crashes}; the next one starts at 12:00:09 UTC" in said.message
    # Where there may be no more, that is why.
    most = dataclasses.replace(full, model=view(max_replicas=1).model, refusal="exceeded quota: gpus")
    assert said_of(most).message.endswith("maxReplicas is 1")


def test_a_worker_that_is_drained_is_replaced_while_it_goes_where_there_is_a_place() -> None:
    going = [worker(0, WorkerState.READY, drained=True)]
    bound = {pod_name(0): [bound_job("running", worker=pod_name(0), phase=Phase.RUNNING)]}
    (created,) = plan(view([job(age=0)], going, bound, max_replicas=2))
    assert isinstance(created, CreateWorker)
    (kept_warm,) = plan(view([], going, bound, min_replicas=1, max_replicas=2))
    assert isinstance(kept_warm, CreateWorker)
    (said,) = plan(view([job(age=5)], going, bound, max_replicas=1))
    assert isinstance(said, Explain)
    assert said.reason == "WorkerStarting"
    assert "is going, and the next one gets its place once it has ended; maxReplicas is 1" in said.message


def lost(ordinal: int) -> Worker:
    """A worker that was told to go, and whose node has not told of its end in time."""
    ready = worker(ordinal, WorkerState.READY)
    metadata = pod_of(ready).metadata.model_copy(update={"deletion_timestamp": NOW - dt.timedelta(seconds=30)})
    return dataclasses.replace(
        ready, pod=pod_of(ready).model_copy(update={"metadata": metadata}), lost_at=NOW, lost=True
    )


def test_a_worker_on_a_lost_node_loses_its_jobs_and_its_place() -> None:
    running = bound_job("running", worker=pod_name(0), phase=Phase.RUNNING, retries=3)
    scheduled = bound_job("scheduled", worker=pod_name(0))
    cluster = view(workers=[lost(0)], bound={pod_name(0): [running, scheduled]}, max_replicas=1)
    actions = plan(cluster)
    again = {(a.job.name, a.counted) for a in actions if isinstance(a, Requeue)}
    assert again == {("running", False), ("scheduled", False)}
    assert [a.ordinal for a in actions if isinstance(a, CreateWorker)] == [1]
    (gone,) = plan(view(workers=[lost(0)]))
    assert isinstance(gone, DeleteWorker)


def test_a_running_job_waits_for_a_worker_that_may_still_finish_it() -> None:
    going = dataclasses.replace(worker(0, WorkerState.GOING), lost_at=NOW + dt.timedelta(seconds=5))
    running = bound_job("running", worker=pod_name(0), phase=Phase.RUNNING)
    waits = schedule_model(view(workers=[going], bound={pod_name(0): [running]}, max_replicas=1), NOW, OPTIONS)
    assert (waits.actions, waits.recheck_at) == ((), going.lost_at)


def test_a_released_job_goes_straight_to_another_worker() -> None:
    """Two writes that fall together are one."""
    lost = bound_job("lost", worker="vanished", phase=Phase.RUNNING)
    (action,) = plan(view(workers=[worker(0, WorkerState.READY)], bound={"vanished": [lost]}))
    assert action == Bind(lost, view().model, pod_name(0), counted=True)


def test_jobs_fail_when_their_model_cannot_be_loaded() -> None:
    broken = worker(0, WorkerState.FAILED, exit_code=78, message="no model_index.json in /models/emoji")
    actions = plan(view([job("waiting")], [broken]))
    (failed,) = actions
    assert isinstance(failed, Finish)
    assert failed.message == "Model not available: no model_index.json in /models/emoji"


@pytest.mark.parametrize(("tries", "pause"), [(1, 300), (2, 600), (3, 1200), (6, 3600)])
def test_a_model_that_cannot_be_loaded_is_tried_again_after_a_pause_that_grows(tries: int, pause: int) -> None:
    """A Secret may have been mended, which the operator does not see."""
    failed = [worker(n, WorkerState.FAILED, exit_code=78, message="401", failed=1) for n in range(tries)]
    waiting = view([job("waiting")], failed)
    until = NOW + dt.timedelta(seconds=pause - 1)
    early, late = (
        schedule_model(waiting, until - dt.timedelta(seconds=1), OPTIONS),
        schedule_model(waiting, until, OPTIONS),
    )
    assert [type(action) for action in early.actions] == [Finish]
    assert early.recheck_at == until
    assert [type(action) for action in late.actions] == [CreateWorker]
    # A worker that is kept warm needs no job for that.
    warm = view([], failed, min_replicas=1)
    assert schedule_model(warm, until - dt.timedelta(seconds=1), OPTIONS).actions == ()
    assert [type(action) for action in schedule_model(warm, until, OPTIONS).actions] == [CreateWorker]


def test_a_service_that_refuses_a_model_once_fails_nobody() -> None:
    """What the Hub says to one worker stops new starts, until another one has asked again."""
    waiting = [job(f"waiting-{number}") for number in range(8)]
    refused = worker(0, WorkerState.FAILED, exit_code=69, message="the Hub answers 403", failed=1)
    early = schedule_model(view(waiting, [refused], max_replicas=3), NOW, OPTIONS, explanations=len(waiting))
    assert not [a for a in early.actions if isinstance(a, Finish | CreateWorker)]
    assert {a.reason for a in early.actions if isinstance(a, Explain)} == {"WorkerBackOff"}
    assert early.recheck_at == NOW + dt.timedelta(seconds=9)
    later = schedule_model(view(waiting, [refused], max_replicas=3), NOW + dt.timedelta(seconds=9), OPTIONS)
    assert len([a for a in later.actions if isinstance(a, CreateWorker)]) == 1
    asks = view(waiting, [refused, worker(1, WorkerState.STARTING)], max_replicas=3)
    assert not [
        a
        for a in schedule_model(asks, NOW + dt.timedelta(seconds=60), OPTIONS).actions
        if isinstance(a, Finish | CreateWorker)
    ]
    ready = plan(view(waiting, [refused, worker(1, WorkerState.READY)], max_replicas=1))
    assert {a.job.name for a in ready if isinstance(a, Bind)} == {job.name for job in waiting}


def test_what_two_workers_were_refused_fails_the_jobs() -> None:
    refused = [worker(n, WorkerState.FAILED, exit_code=69, message="the Hub answers 403", failed=1) for n in range(2)]
    (failed,) = plan(view([job("waiting")], refused))
    assert isinstance(failed, Finish)
    assert failed.message == "Model not available: the Hub answers 403"
    # A model that no machine can load needs no second worker, nor does one of which the other says so.
    certain = [refused[0], worker(1, WorkerState.FAILED, exit_code=78, message="no model_index.json", failed=0)]
    (failed,) = plan(view([job("waiting")], certain))
    assert isinstance(failed, Finish)
    # A crash of another kind says nothing of it.
    crashed = [refused[0], worker(1, WorkerState.FAILED, exit_code=137, failed=0)]
    assert not [a for a in plan(view([job("waiting")], crashed)) if isinstance(a, Finish)]


def test_jobs_wait_while_a_failed_model_is_tried_again() -> None:
    failed = worker(0, WorkerState.FAILED, exit_code=78, message="401", failed=301)
    (said,) = plan(view([job("waiting")], [failed, worker(1, WorkerState.STARTING)], max_replicas=1))
    assert isinstance(said, Explain)
    assert said.reason == "WorkerStarting"


def test_the_first_crash_is_forgiven_and_later_ones_pause() -> None:
    one = plan(view([job()], [worker(0, WorkerState.FAILED, failed=0)]))
    two = plan(view([job()], [worker(n, WorkerState.FAILED, failed=1) for n in range(2)]))
    later = plan(view([job()], [worker(n, WorkerState.FAILED, failed=11) for n in range(2)]))
    assert [any(isinstance(a, CreateWorker) for a in actions) for actions in (one, two, later)] == [True, False, True]


def test_idle_workers_go_after_idle_seconds_the_longest_idle_first() -> None:
    idle = [worker(0, WorkerState.READY, idle=61), worker(1, WorkerState.READY, idle=99)]
    (action,) = plan(view([], idle, min_replicas=1, max_replicas=2, idle_seconds=60))
    assert isinstance(action, DeleteWorker)
    assert action.name == idle[1].name
    assert (
        schedule_model(view([], [worker(0, WorkerState.READY, idle=10)], idle_seconds=60), NOW, OPTIONS).actions == ()
    )


def test_outdated_workers_go_once_they_are_done() -> None:
    old = worker(0, WorkerState.READY, template=OLD_HASH)
    busy = {pod_name(0, OLD_HASH): [bound_job(worker=pod_name(0, OLD_HASH), phase=Phase.RUNNING)]}
    assert plan(view(workers=[old], bound=busy)) == ()
    (gone,) = plan(view(workers=[old]))
    assert isinstance(gone, DeleteWorker)


def test_a_worker_that_ended_well_is_cleared_away() -> None:
    """Somebody else told it to go, a drain for example; its finished Job would stay for ever."""
    going = worker(0, WorkerState.GOING)
    done = PlatformCondition(type="Complete", status="True")
    metadata = going.job.metadata.model_copy(update={"deletion_timestamp": None})
    ended = Worker(
        going.job.model_copy(update={"metadata": metadata, "status": BatchJobStatus(conditions=(done,))}), None
    )
    (action,) = plan(view(workers=[ended]))
    assert isinstance(action, DeleteWorker)


def test_a_refused_worker_is_what_jobs_wait_for_unless_another_is_loading() -> None:
    blocked = worker(0, WorkerState.STARTING)
    waiting = ContainerStatus(name="worker", state=ContainerState(waiting=Waiting(reason="ErrImagePull")))
    status = pod_of(blocked).status.model_copy(update={"container_statuses": (waiting,)})
    blocked = dataclasses.replace(blocked, pod=pod_of(blocked).model_copy(update={"status": status}))
    for workers in [], [blocked]:
        refused = dataclasses.replace(view([job(age=5)], workers, max_replicas=2), refusal="exceeded quota: gpus")
        assert said_of(refused).reason == "WorkerRefused"
        assert "exceeded quota: gpus" in said_of(refused).message
    loading = dataclasses.replace(refused, workers=(blocked, worker(1, WorkerState.STARTING)))
    assert said_of(loading).reason == "WorkerCannotStart"
    assert said_of(dataclasses.replace(loading, workers=loading.workers[1:])).reason == "WorkerStarting"


def ended_beside_others(exit_code: int, seconds: float) -> Worker:
    """A worker whose own container has ended so many seconds ago, while one that was injected runs on."""
    built = worker(0, WorkerState.READY)
    ended = Terminated(exit_code=exit_code, finished_at=NOW - dt.timedelta(seconds=seconds))
    statuses = (
        ContainerStatus(name="worker", state=ContainerState(terminated=ended)),
        ContainerStatus(name="mesh", state=ContainerState()),
    )
    status = pod_of(built).status.model_copy(update={"container_statuses": statuses})
    return dataclasses.replace(built, pod=pod_of(built).model_copy(update={"status": status}))


def test_a_worker_has_ended_when_its_own_container_has_whatever_runs_beside_it() -> None:
    running = bound_job("running", worker=pod_name(0), phase=Phase.RUNNING)
    crashed = ended_beside_others(137, seconds=60)
    assert crashed.state is WorkerState.FAILED
    actions = plan(view([], [crashed], {pod_name(0): [running]}))
    (again,) = [a for a in actions if isinstance(a, Requeue)]
    assert (again.job, again.counted) == (running, True)
    (gone,) = [a for a in actions if isinstance(a, DeletePod)]
    assert (gone.name, "exit code 137" in gone.reason) == (pod_name(0), True)
    done = ended_beside_others(0, seconds=60)
    assert done.state is WorkerState.GOING


def test_a_pod_whose_worker_has_just_ended_may_end_by_itself() -> None:
    decision = schedule_model(view([], [ended_beside_others(1, seconds=1)]), NOW, OPTIONS)
    assert not any(isinstance(action, DeletePod) for action in decision.actions)
    assert decision.recheck_at == NOW + dt.timedelta(seconds=4)


@pytest.mark.parametrize(("still", "deleted"), [(59, False), (60, True)])
def test_a_worker_whose_start_makes_no_progress_is_ended(still: int, deleted: bool) -> None:
    starting = dataclasses.replace(worker(0, WorkerState.STARTING), progress_at=NOW - dt.timedelta(seconds=still))
    decision = schedule_model(view([], [starting], min_replicas=1, start_deadline_seconds=60), NOW, OPTIONS)
    found = [action.reason for action in decision.actions if isinstance(action, DeletePod)]
    assert found == (["its start has made no progress for 60 s (spec.workers.startDeadlineSeconds)"] if deleted else [])
    assert (decision.recheck_at is None) is deleted

"""Single cases of scheduling, beside the laws: what is said, costs_retry, replaced and given up."""

from __future__ import annotations

import dataclasses
import datetime as dt

import pytest

from kubediffusion.operator.actions import Bind, CreateWorker, DeleteWorker, Explain, Finish, Requeue
from kubediffusion.operator.containers import ContainerState, ContainerStatus, ContainerWaiting
from kubediffusion.operator.scheduling import deadline, decide_termination, schedule_model
from kubediffusion.operator.workers import BatchJobStatus, ObservedWorker, PlatformCondition, WorkerState
from kubediffusion.resources.failures import ErrorCode
from kubediffusion.resources.generation_job import Phase
from kubediffusion.resources.testing import NOW, bound_job, job, present
from unit.operator.builders import OLD_HASH, OPTIONS, plan, pod_name, pod_of, said_of, snapshot, worker


def test_a_suspended_job_that_is_taken_from_its_worker_gets_no_other() -> None:
    suspended = [bound_job(f"b-{n}", worker=pod_name(0), suspend=True) for n in range(4)]
    cluster = snapshot(workers=[worker(0, WorkerState.READY)], bound={pod_name(0): suspended}, max_replicas=3)
    assert {type(action) for action in plan(cluster)} == {Requeue}


def replaced(ordinal: int) -> ObservedWorker:
    """A worker whose Pod the platform has ended; its batch/v1 Job has not failed, and makes another."""
    pod = pod_of(worker(ordinal, WorkerState.FAILED))
    condition = PlatformCondition(type="DisruptionTarget", status="True")
    status = pod.status.model_copy(update={"conditions": (condition,)})
    return ObservedWorker(worker(ordinal, WorkerState.STARTING).job, pod.model_copy(update={"status": status}))


def test_jobs_that_a_disrupted_worker_left_ask_for_no_worker_beside_it() -> None:
    """Its batch/v1 Job makes another Pod, which is on its way."""
    disrupted = replaced(0)
    left = [bound_job(f"b-{n}", worker=pod_name(0), phase=Phase.RUNNING) for n in range(4)]
    cluster = snapshot(workers=[disrupted], bound={pod_name(0): left}, max_replicas=3)
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
    actions = plan(snapshot(jobs, workers, max_batch_size=4, max_replicas=3))
    assert [a.name for a in actions if isinstance(a, DeleteWorker)] == ([workers[0].name] if deleted else [])
    assert not any(isinstance(a, CreateWorker) for a in actions)


@pytest.mark.parametrize(("images", "workers"), [(1, 1), (2, 2), (4, 4), (16, 4)])
def test_jobs_of_many_images_ask_for_more_workers(images: int, workers: int) -> None:
    """As many as find work: a job is one worker's, however many batches it takes."""
    waiting = [job(f"job-{n}", num_images=images) for n in range(4)]
    cluster = snapshot(waiting, max_batch_size=4, max_replicas=9)
    assert sum(isinstance(a, CreateWorker) for a in plan(cluster)) == workers


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
    actions = plan(snapshot(workers=crashed, bound={pod_name(0): [spent], pod_name(1): [left]}))
    (failed,) = [a for a in actions if isinstance(a, Finish)]
    (again,) = [a for a in actions if isinstance(a, Requeue)]
    assert (failed.job, failed.code) == (spent, ErrorCode.BACKOFF_LIMIT_EXCEEDED)
    assert "exit code 137" in failed.message
    assert "for the 4th time" in failed.message
    assert (again.job, again.costs_retry) == (left, True)


def test_a_job_that_was_running_when_its_worker_was_drained_spends_nothing() -> None:
    """The grace period was too short for it; that is not its worker's death."""
    drained = worker(0, WorkerState.FAILED)
    status = pod_of(drained).status.model_copy(
        update={"conditions": (PlatformCondition(type="DisruptionTarget", status="True"),)}
    )
    drained = dataclasses.replace(drained, pod=pod_of(drained).model_copy(update={"status": status}))
    running = bound_job("running", worker=pod_name(0), phase=Phase.RUNNING, retries=3)
    (again,) = [a for a in plan(snapshot(workers=[drained], bound={pod_name(0): [running]})) if isinstance(a, Requeue)]
    assert (again.job, again.costs_retry) == (running, False)


NO_NODE = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."


def stuck(ordinal: int) -> ObservedWorker:
    """A worker that no node takes."""
    waits = worker(ordinal, WorkerState.STARTING)
    status = pod_of(waits).status.model_copy(
        update={"conditions": (PlatformCondition(type="PodScheduled", status="False", message=NO_NODE),)}
    )
    return dataclasses.replace(waits, pod=pod_of(waits).model_copy(update={"status": status}))


FULL = {pod_name(0): [bound_job(f"b-{n}", worker=pod_name(0)) for n in range(8)]}


def test_jobs_that_wait_for_room_are_told_that_the_other_worker_finds_no_node() -> None:
    workers = [worker(0, WorkerState.READY), stuck(1), worker(2, WorkerState.STARTING)]
    said = said_of(snapshot([job(age=5)], workers, FULL, max_replicas=3))
    assert said.reason == "WorkersBusy"
    assert said.message.endswith(f"maxReplicas is 3; 1 starting; 1 without a node: {NO_NODE}")


def test_jobs_that_wait_for_room_are_told_why_there_are_no_more_workers() -> None:
    crashed = [worker(n, WorkerState.FAILED, failed=1) for n in (1, 2)]
    full = snapshot([job(age=5)], [worker(0, WorkerState.READY), *crashed], FULL, max_replicas=2)
    said = said_of(dataclasses.replace(full, refusal="exceeded quota: gpus"))
    assert said.reason == "WorkersBusy"
    refused, crashes = "no more can be created: exceeded quota: gpus", "2 workers of model emoji crashed in a row"
    assert f"maxReplicas is 2; {refused}; {crashes}; the next one starts at 12:00:09 UTC" in said.message
    # Where there may be no more, that is why.
    most = dataclasses.replace(full, model=snapshot(max_replicas=1).model, refusal="exceeded quota: gpus")
    assert said_of(most).message.endswith("maxReplicas is 1")


def test_a_worker_that_is_drained_is_replaced_while_it_goes_where_there_is_a_place() -> None:
    going = [worker(0, WorkerState.READY, drained=True)]
    bound = {pod_name(0): [bound_job("running", worker=pod_name(0), phase=Phase.RUNNING)]}
    (created,) = plan(snapshot([job(age=0)], going, bound, max_replicas=2))
    assert isinstance(created, CreateWorker)
    (kept_warm,) = plan(snapshot([], going, bound, min_replicas=1, max_replicas=2))
    assert isinstance(kept_warm, CreateWorker)
    (said,) = plan(snapshot([job(age=5)], going, bound, max_replicas=1))
    assert isinstance(said, Explain)
    assert said.reason == "WorkerStarting"
    assert "is going, and the next one gets its place once it has ended; maxReplicas is 1" in said.message


def lost(ordinal: int) -> ObservedWorker:
    """A worker that was told to go, and whose node has not told of its end in time."""
    ready = worker(ordinal, WorkerState.READY)
    metadata = pod_of(ready).metadata.model_copy(update={"deletion_timestamp": NOW - dt.timedelta(seconds=30)})
    return dataclasses.replace(
        ready, pod=pod_of(ready).model_copy(update={"metadata": metadata}), node_lost_at=NOW, node_lost=True
    )


def test_a_worker_on_a_lost_node_loses_its_jobs_and_its_place() -> None:
    running = bound_job("running", worker=pod_name(0), phase=Phase.RUNNING, retries=3)
    scheduled = bound_job("scheduled", worker=pod_name(0))
    cluster = snapshot(workers=[lost(0)], bound={pod_name(0): [running, scheduled]}, max_replicas=1)
    actions = plan(cluster)
    again = {(a.job.name, a.costs_retry) for a in actions if isinstance(a, Requeue)}
    assert again == {("running", False), ("scheduled", False)}
    assert [a.ordinal for a in actions if isinstance(a, CreateWorker)] == [1]
    (gone,) = plan(snapshot(workers=[lost(0)]))
    assert isinstance(gone, DeleteWorker)


def test_a_running_job_waits_for_a_worker_that_may_still_finish_it() -> None:
    going = dataclasses.replace(worker(0, WorkerState.GOING), node_lost_at=NOW + dt.timedelta(seconds=5))
    running = bound_job("running", worker=pod_name(0), phase=Phase.RUNNING)
    waits = schedule_model(snapshot(workers=[going], bound={pod_name(0): [running]}, max_replicas=1), NOW, OPTIONS)
    assert (waits.actions, waits.recheck_at) == ((), going.node_lost_at)


def test_a_released_job_goes_straight_to_another_worker() -> None:
    """Two writes that fall together are one."""
    lost = bound_job("lost", worker="vanished", phase=Phase.RUNNING)
    (action,) = plan(snapshot(workers=[worker(0, WorkerState.READY)], bound={"vanished": [lost]}))
    assert action == Bind(lost, snapshot().model, pod_name(0), costs_retry=True)


def test_jobs_fail_when_their_model_cannot_be_loaded() -> None:
    broken = worker(0, WorkerState.FAILED, exit_code=78, message="no model_index.json in /models/emoji")
    actions = plan(snapshot([job("waiting")], [broken]))
    (failed,) = actions
    assert isinstance(failed, Finish)
    assert failed.message == "Model not available: no model_index.json in /models/emoji"


@pytest.mark.parametrize(("tries", "pause"), [(1, 300), (2, 600), (3, 1200), (6, 3600)])
def test_a_model_that_cannot_be_loaded_is_tried_again_after_a_pause_that_grows(tries: int, pause: int) -> None:
    """A Secret may have been mended, which the operator does not see."""
    failed = [worker(n, WorkerState.FAILED, exit_code=78, message="401", failed=1) for n in range(tries)]
    waiting = snapshot([job("waiting")], failed)
    until = NOW + dt.timedelta(seconds=pause - 1)
    early, late = (
        schedule_model(waiting, until - dt.timedelta(seconds=1), OPTIONS),
        schedule_model(waiting, until, OPTIONS),
    )
    assert [type(action) for action in early.actions] == [Finish]
    assert early.recheck_at == until
    assert [type(action) for action in late.actions] == [CreateWorker]
    # A worker that is kept warm needs no job for that.
    warm = snapshot([], failed, min_replicas=1)
    assert schedule_model(warm, until - dt.timedelta(seconds=1), OPTIONS).actions == ()
    assert [type(action) for action in schedule_model(warm, until, OPTIONS).actions] == [CreateWorker]


def test_a_service_that_refuses_a_model_once_fails_nobody() -> None:
    """What the Hub says to one worker stops new starts, until another one has asked again."""
    waiting = [job(f"waiting-{number}") for number in range(8)]
    refused = worker(0, WorkerState.FAILED, exit_code=69, message="the Hub answers 403", failed=1)
    early = schedule_model(snapshot(waiting, [refused], max_replicas=3), NOW, OPTIONS, explanations=len(waiting))
    assert not [a for a in early.actions if isinstance(a, Finish | CreateWorker)]
    assert {a.reason for a in early.actions if isinstance(a, Explain)} == {"WorkerBackOff"}
    assert early.recheck_at == NOW + dt.timedelta(seconds=9)
    later = schedule_model(snapshot(waiting, [refused], max_replicas=3), NOW + dt.timedelta(seconds=9), OPTIONS)
    assert len([a for a in later.actions if isinstance(a, CreateWorker)]) == 1
    asks = snapshot(waiting, [refused, worker(1, WorkerState.STARTING)], max_replicas=3)
    assert not [
        a
        for a in schedule_model(asks, NOW + dt.timedelta(seconds=60), OPTIONS).actions
        if isinstance(a, Finish | CreateWorker)
    ]
    ready = plan(snapshot(waiting, [refused, worker(1, WorkerState.READY)], max_replicas=1))
    assert {a.job.name for a in ready if isinstance(a, Bind)} == {job.name for job in waiting}


def test_what_two_workers_were_refused_fails_the_jobs() -> None:
    refused = [worker(n, WorkerState.FAILED, exit_code=69, message="the Hub answers 403", failed=1) for n in range(2)]
    (failed,) = plan(snapshot([job("waiting")], refused))
    assert isinstance(failed, Finish)
    assert failed.message == "Model not available: the Hub answers 403"
    # A model that no machine can load needs no second worker, nor does one of which the other says so.
    certain = [refused[0], worker(1, WorkerState.FAILED, exit_code=78, message="no model_index.json", failed=0)]
    (failed,) = plan(snapshot([job("waiting")], certain))
    assert isinstance(failed, Finish)
    # A crash of another kind says nothing of it.
    crashed = [refused[0], worker(1, WorkerState.FAILED, exit_code=137, failed=0)]
    assert not [a for a in plan(snapshot([job("waiting")], crashed)) if isinstance(a, Finish)]


def test_jobs_wait_while_a_failed_model_is_tried_again() -> None:
    failed = worker(0, WorkerState.FAILED, exit_code=78, message="401", failed=301)
    (said,) = plan(snapshot([job("waiting")], [failed, worker(1, WorkerState.STARTING)], max_replicas=1))
    assert isinstance(said, Explain)
    assert said.reason == "WorkerStarting"


def test_the_first_crash_is_forgiven_and_later_ones_pause() -> None:
    one = plan(snapshot([job()], [worker(0, WorkerState.FAILED, failed=0)]))
    two = plan(snapshot([job()], [worker(n, WorkerState.FAILED, failed=1) for n in range(2)]))
    later = plan(snapshot([job()], [worker(n, WorkerState.FAILED, failed=11) for n in range(2)]))
    assert [any(isinstance(a, CreateWorker) for a in actions) for actions in (one, two, later)] == [True, False, True]


def test_idle_workers_go_after_idle_seconds_the_longest_idle_first() -> None:
    idle = [worker(0, WorkerState.READY, idle=61), worker(1, WorkerState.READY, idle=99)]
    (action,) = plan(snapshot([], idle, min_replicas=1, max_replicas=2, idle_seconds=60))
    assert isinstance(action, DeleteWorker)
    assert action.name == idle[1].name
    assert (
        schedule_model(snapshot([], [worker(0, WorkerState.READY, idle=10)], idle_seconds=60), NOW, OPTIONS).actions
        == ()
    )


def without_node(kind: str, ordinal: int = 0) -> ObservedWorker:
    """Build a worker, five minutes old, that no node has taken."""
    if kind == "queued":
        return worker(ordinal, WorkerState.QUEUED)
    starting = worker(ordinal, WorkerState.STARTING)
    if kind == "no Pod":
        return dataclasses.replace(starting, pod=None)
    refused = PlatformCondition(type="PodScheduled", status="False", message="0/3 nodes are available")
    status = pod_of(starting).status.model_copy(update={"phase": "Pending", "conditions": (refused,)})
    return dataclasses.replace(starting, pod=pod_of(starting).model_copy(update={"status": status}))


@pytest.mark.parametrize("kind", ["queued", "no Pod", "unschedulable"])
def test_a_worker_that_waits_for_a_node_goes_when_nobody_needs_it_any_more(kind: str) -> None:
    """Its jobs were cancelled; it would wait for ever, and take the place of another."""
    pending = without_node(kind)
    (gone,) = plan(snapshot([], [pending], idle_seconds=60))
    assert isinstance(gone, DeleteWorker)
    assert gone.name == pending.name
    assert not any(isinstance(action, DeleteWorker) for action in plan(snapshot([job()], [pending], idle_seconds=60)))
    assert plan(snapshot([], [pending], idle_seconds=60, min_replicas=1)) == ()
    # A job that comes soon after finds it: another would wait behind others again.
    early = schedule_model(snapshot([], [pending], idle_seconds=600), NOW, OPTIONS)
    assert (early.actions, early.recheck_at) == ((), NOW + dt.timedelta(minutes=5))


def test_one_that_waits_for_a_node_goes_before_one_that_holds_its_model() -> None:
    workers = [worker(0, WorkerState.READY, idle=99), without_node("unschedulable", 1)]
    (gone,) = plan(snapshot([], workers, min_replicas=1, max_replicas=2, idle_seconds=60))
    assert isinstance(gone, DeleteWorker)
    assert gone.name == workers[1].name


def test_outdated_workers_go_once_they_are_done() -> None:
    old = worker(0, WorkerState.READY, template=OLD_HASH)
    busy = {pod_name(0, OLD_HASH): [bound_job(worker=pod_name(0, OLD_HASH), phase=Phase.RUNNING)]}
    assert plan(snapshot(workers=[old], bound=busy)) == ()
    (gone,) = plan(snapshot(workers=[old]))
    assert isinstance(gone, DeleteWorker)


def test_a_worker_that_ended_well_is_cleared_away() -> None:
    """Somebody else told it to go, a drain for example; its finished Job would stay for ever."""
    going = worker(0, WorkerState.GOING)
    done = PlatformCondition(type="Complete", status="True")
    metadata = going.job.metadata.model_copy(update={"deletion_timestamp": None})
    ended = ObservedWorker(
        going.job.model_copy(update={"metadata": metadata, "status": BatchJobStatus(conditions=(done,))}), None
    )
    (action,) = plan(snapshot(workers=[ended]))
    assert isinstance(action, DeleteWorker)


def test_a_refused_worker_is_what_jobs_wait_for_unless_another_is_loading() -> None:
    blocked = worker(0, WorkerState.STARTING)
    waiting = ContainerStatus(name="worker", state=ContainerState(waiting=ContainerWaiting(reason="ErrImagePull")))
    status = pod_of(blocked).status.model_copy(update={"container_statuses": (waiting,)})
    blocked = dataclasses.replace(blocked, pod=pod_of(blocked).model_copy(update={"status": status}))
    for workers in [], [blocked]:
        refused = dataclasses.replace(snapshot([job(age=5)], workers, max_replicas=2), refusal="exceeded quota: gpus")
        assert said_of(refused).reason == "WorkerRefused"
        assert "exceeded quota: gpus" in said_of(refused).message
    loading = dataclasses.replace(refused, workers=(blocked, worker(1, WorkerState.STARTING)))
    assert said_of(loading).reason == "WorkerCannotStart"
    assert said_of(dataclasses.replace(loading, workers=loading.workers[1:])).reason == "WorkerStarting"


def test_a_worker_that_is_cut_off_keeps_what_it_has_begun_and_nothing_else() -> None:
    running = bound_job("running", worker=pod_name(0), phase=Phase.RUNNING)
    scheduled = bound_job("scheduled", worker=pod_name(0))
    waiting = job("waiting")
    silent = worker(0, WorkerState.CUT_OFF)
    cluster = snapshot([waiting], [silent], {pod_name(0): [running, scheduled]}, max_replicas=2)
    actions = plan(cluster)
    (again,) = (action for action in actions if isinstance(action, Requeue))
    assert (again.job.name, again.costs_retry, again.suspect_group_size) == ("scheduled", False, 0)
    assert again.message == f"worker {pod_name(0)} is not ready any more, as one that does not hear the API server"
    # Another one is started beside it, and nothing is bound to it.
    assert [action.ordinal for action in actions if isinstance(action, CreateWorker)] == [1]
    assert not [action for action in actions if isinstance(action, Bind)]
    begun = snapshot(workers=[silent], bound={pod_name(0): [running]})
    assert schedule_model(begun, NOW, OPTIONS).recheck_at == silent.given_up_at


def test_a_job_that_waits_for_a_worker_which_is_cut_off_says_so() -> None:
    said = said_of(snapshot([job("waiting", age=5)], [worker(0, WorkerState.CUT_OFF)], max_replicas=1))
    assert said.reason == "WorkerCutOff"
    assert "does not hear the API server; it is replaced at " in said.message


def test_a_worker_that_is_cut_off_for_too_long_loses_its_jobs_and_its_place() -> None:
    given_up = dataclasses.replace(worker(0, WorkerState.CUT_OFF), given_up=True)
    running = bound_job("running", worker=pod_name(0), phase=Phase.RUNNING, retries=3)
    actions = plan(snapshot(workers=[given_up], bound={pod_name(0): [running]}, max_replicas=1))
    assert [(a.job.name, a.costs_retry) for a in actions if isinstance(a, Requeue)] == [("running", False)]
    assert [action.ordinal for action in actions if isinstance(action, CreateWorker)] == [1]
    (gone,) = (action for action in plan(snapshot(workers=[given_up])) if isinstance(action, DeleteWorker))
    assert "it has not been ready for long" in gone.reason

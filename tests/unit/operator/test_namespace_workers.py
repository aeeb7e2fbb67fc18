"""Workers as a namespace's state has them: idle, lost, going, replaced, and what is known of their models."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from kubediffusion.operator.containers import ContainerStatus
from kubediffusion.operator.namespace_state import NamespaceState
from kubediffusion.operator.object_cache import ObjectList
from kubediffusion.operator.snapshots import JobWithoutModel, ModelSnapshot
from kubediffusion.operator.workers import ObservedWorker, PlatformCondition, Pod, WorkerState
from kubediffusion.resources.diffusion_model import DiffusionModel
from kubediffusion.resources.generation_job import GenerationJob, GenerationJobStatus, Phase
from kubediffusion.resources.testing import NAMESPACE, NOW, bound_job, job, model
from unit.operator.builders import HASH, NODE_GRACE, pod_name, pod_of, recipe, versioned, worker


def state_of(*workers: ObservedWorker, models: Iterable[DiffusionModel] = ()) -> NamespaceState:
    state = NamespaceState(NAMESPACE, lambda _: HASH, NODE_GRACE)
    for item in models or (model(),):
        state.update_model(item)
    for each in workers:
        state.update_batch_job(each.job)
        if each.pod is not None:
            state.update_pod(each.pod)
    return state


def only_view(state: NamespaceState, now: dt.datetime = NOW) -> ModelSnapshot:
    (snapshot,) = state.model_snapshots(now)
    return snapshot


def after(seconds: float) -> dt.datetime:
    return NOW + dt.timedelta(seconds=seconds)


def bound(name: str, pod: str) -> GenerationJob:
    status = GenerationJobStatus(phase=Phase.RUNNING, worker=pod, attempt=1, parameters=recipe("emoji"))
    return job(name, status=status)


def test_a_worker_is_its_job_and_its_pod() -> None:
    (seen,) = only_view(state_of(worker(0, WorkerState.READY))).workers
    assert (seen.name, pod_of(seen).metadata.name, seen.state) == (f"emoji-{HASH}-0", pod_name(0), WorkerState.READY)


def test_a_worker_is_idle_since_its_last_job_left_it() -> None:
    state = state_of(worker(0, WorkerState.READY))
    assert only_view(state, after(0)).workers[0].idle_since == after(0)
    assert only_view(state, after(5)).workers[0].idle_since == after(0)
    state.update_job(bound("a", pod_name(0)))
    assert only_view(state, after(6)).workers[0].idle_since is None
    state.delete_job("uid-a")
    assert only_view(state, after(9)).workers[0].idle_since == after(9)


def test_a_worker_that_is_not_ready_is_not_idle() -> None:
    assert only_view(state_of(worker(0, WorkerState.STARTING))).workers[0].idle_since is None


def told_to_go(grace: int) -> ObservedWorker:
    """A worker whose Pod was deleted with a time of grace; its Job is as it was."""
    ready = worker(0, WorkerState.READY)
    metadata = pod_of(ready).metadata.model_copy(
        # As a clock says that is far from ours.
        update={"deletion_timestamp": after(-9999), "deletion_grace_period_seconds": grace}
    )
    return replace(ready, pod=pod_of(ready).model_copy(update={"metadata": metadata}))


def test_a_worker_whose_end_nobody_tells_of_is_lost_some_time_after_its_grace() -> None:
    state = state_of(told_to_go(grace=5))
    seen = [only_view(state, after(seconds)).workers[0] for seconds in (0, 34, 35)]
    assert [(w.state, w.node_lost, w.node_lost_at) for w in seen] == [
        (WorkerState.GOING, False, after(35)),
        (WorkerState.GOING, False, after(35)),
        (WorkerState.GOING, True, after(35)),
    ]


def test_the_pod_of_a_deleted_job_is_not_its_namesakes() -> None:
    """A worker on a lost node is replaced under the same name, and stays for as long as its node is silent."""
    state = state_of(told_to_go(grace=5))
    only_view(state, after(0))
    state.delete_batch_job(worker(0, WorkerState.READY).job)
    fresh = worker(0, WorkerState.STARTING).job
    metadata = fresh.metadata.model_copy(update={"uid": "another", "resource_version": "2"})
    state.update_batch_job(fresh.model_copy(update={"metadata": metadata}))
    new, old = only_view(state, after(40)).workers
    assert (new.name, new.state, new.pod, new.node_lost) == (fresh.metadata.name, WorkerState.STARTING, None, False)
    assert (old.state, old.node_lost, pod_of(old).metadata.name) == (WorkerState.GOING, True, pod_name(0))


def test_a_worker_that_has_ended_is_not_lost() -> None:
    going = told_to_go(grace=5)
    state = state_of(going)
    assert only_view(state, after(0)).workers[0].node_lost_at == after(35)
    status = pod_of(going).status.model_copy(update={"phase": "Failed"})
    state.update_pod(pod_of(going).model_copy(update={"status": status}))
    (ended,) = only_view(state, after(99)).workers
    assert (ended.node_lost, ended.node_lost_at) == (False, None)


def test_a_job_of_a_missing_model_is_an_orphan_once_its_worker_is_lost() -> None:
    state = state_of(told_to_go(grace=5))
    state.update_job(bound("a", pod_name(0)))
    state.delete_model(versioned(model(), 9))
    assert [len(state.jobs_without_model(after(seconds), 9)) for seconds in (0, 34, 35)] == [0, 0, 1]


def test_a_pod_whose_job_is_gone_is_a_worker_that_is_going() -> None:
    """It holds its GPU until it has ended."""
    state = state_of(worker(0, WorkerState.READY))
    state.delete_batch_job(worker(0, WorkerState.READY).job)
    (seen,) = only_view(state).workers
    assert (seen.state, pod_of(seen).metadata.name) == (WorkerState.GOING, pod_name(0))
    state.delete_pod(pod_of(worker(0, WorkerState.READY)))
    assert only_view(state).workers == ()


def test_each_pod_that_no_job_owns_is_a_worker_that_is_going() -> None:
    """A Job may be deleted and its Pods left; each of them holds a GPU."""
    pods = [pod_of(worker(n, WorkerState.READY)) for n in range(2)]
    state = state_of()
    for pod in pods:
        state.update_pod(pod.model_copy(update={"metadata": pod.metadata.model_copy(update={"owner_references": ()})}))
    seen = only_view(state).workers
    assert {(w.state, pod_of(w).metadata.name) for w in seen} == {(WorkerState.GOING, pod_name(n)) for n in range(2)}


def test_of_two_pods_of_a_job_the_newer_one_counts() -> None:
    ready = worker(0, WorkerState.READY)
    state = state_of(ready)
    metadata = pod_of(ready).metadata.model_copy(update={"name": "replacement", "creation_timestamp": NOW})
    state.update_pod(pod_of(ready).model_copy(update={"metadata": metadata}))
    (seen,) = only_view(state).workers
    assert pod_of(seen).metadata.name == "replacement"


def test_an_older_pod_of_a_job_is_kept_for_as_long_as_jobs_are_bound_to_it() -> None:
    """How it ended decides whether they spend their backoffLimit."""
    ready = worker(0, WorkerState.READY)
    state = state_of(ready)
    state.update_job(bound_job("left", worker=pod_name(0), phase=Phase.RUNNING))
    metadata = pod_of(ready).metadata.model_copy(update={"name": "replacement", "creation_timestamp": NOW})
    state.update_pod(pod_of(ready).model_copy(update={"metadata": metadata}))
    seen = {pod_of(w).metadata.name: w.state for w in only_view(state).workers}
    assert seen == {"replacement": WorkerState.READY, pod_name(0): WorkerState.GOING}
    state.delete_job("uid-left")
    assert [pod_of(w).metadata.name for w in only_view(state).workers] == ["replacement"]


def test_workers_are_those_of_their_model() -> None:
    state = state_of(worker(0, WorkerState.READY), models=(model(), model("other", default=False)))
    assert {snapshot.model.name: len(snapshot.workers) for snapshot in state.model_snapshots(NOW)} == {
        "emoji": 1,
        "other": 0,
    }


def test_what_is_known_of_a_model_goes_with_it_however_that_was_learned() -> None:
    """A deletion that no watch told of shows in the next list, as a missing name or another uid."""
    old = versioned(model(), 1)
    new = old.model_copy(update={"metadata": old.metadata.model_copy(update={"uid": "new", "resource_version": "3"})})
    for listed in (), (new,):
        state = state_of(models=(old,))
        state.refusals["emoji"] = "exceeded quota: gpus"
        assert state.replace_models(ObjectList((old,), 1)) == []
        assert state.refusals == {"emoji": "exceeded quota: gpus"}
        assert state.replace_models(ObjectList(listed, 3)) == [old]
        assert (tuple(state.models.values()), state.refusals) == (listed, {})
    state.refusals["emoji"] = "exceeded quota: gpus"
    state.delete_model(versioned(new, 4))
    assert state.refusals == {}


def test_what_workers_loaded_is_forgotten_with_the_template_that_they_loaded_it_by() -> None:
    hashes = iter(["one", "one", "two"])
    state = NamespaceState(NAMESPACE, lambda _: next(hashes), NODE_GRACE)
    state.update_model(versioned(model(), 1))
    state.revisions["emoji"] = "rev-1"
    state.update_model(versioned(model(), 2))
    assert state.revisions == {"emoji": "rev-1"}
    state.update_model(versioned(model(), 3))
    assert state.revisions == {}


def test_a_model_is_missed_from_when_it_was_first_looked_for() -> None:
    state = NamespaceState(NAMESPACE, lambda _: HASH, NODE_GRACE)
    state.update_job(job("a", model="later", age=1000))
    assert state.jobs_without_model(after(0), 10) == [JobWithoutModel(state.jobs["uid-a"], after(0))]
    assert state.jobs_without_model(after(7), 10)[0].missing_since == after(0)
    state.update_model(model("later"))
    assert state.jobs_without_model(after(8), 10) == []
    state.delete_model(versioned(model("later"), 5))
    assert state.jobs_without_model(after(9), 10)[0].missing_since == after(9)


def test_a_long_queue_of_orphans_is_given_in_parts() -> None:
    state = NamespaceState(NAMESPACE, lambda _: HASH, NODE_GRACE)
    for n in range(10):
        state.update_job(job(f"j-{n}", model="later"))
    assert len(state.jobs_without_model(NOW, 4)) == 4


def telling(built: ObservedWorker, words: str) -> Pod:
    condition = PlatformCondition(type="kubediffusion.io/EngineReady", status="False", reason="Loading", message=words)
    status = pod_of(built).status.model_copy(update={"conditions": (condition,)})
    return pod_of(built).model_copy(update={"status": status})


def test_a_start_is_renewed_by_progress_and_by_that_alone() -> None:
    starting = worker(0, WorkerState.STARTING)
    state = state_of(starting)
    assert only_view(state, after(0)).workers[0].progress_at == after(0)
    state.update_pod(telling(starting, "1 of 2"))
    assert only_view(state, after(5)).workers[0].progress_at == after(5)
    state.update_pod(telling(starting, "1 of 2"))
    assert only_view(state, after(9)).workers[0].progress_at == after(5)
    # Once it has been ready, it starts anew when it no longer is.
    state.update_pod(pod_of(worker(0, WorkerState.READY)))
    assert only_view(state, after(20)).workers[0].progress_at is None
    state.update_pod(telling(starting, "1 of 2"))
    assert only_view(state, after(30)).workers[0].progress_at == after(30)


def withdrawn(container_ready: bool = False, **changes: Any) -> ObservedWorker:
    """A worker that has loaded its model, and whose container its node says is not ready."""
    built = worker(0, WorkerState.STARTING)
    status = pod_of(built).status.model_copy(
        update={
            "conditions": (PlatformCondition(type="kubediffusion.io/EngineReady", status="True"),),
            "container_statuses": (ContainerStatus(name="worker", ready=container_ready),),
        }
    )
    return replace(built, pod=pod_of(built).model_copy(update={"status": status, **changes}))


def seen_at(state: NamespaceState, *seconds: float) -> list[WorkerState]:
    return [only_view(state, after(second)).workers[0].state for second in seconds]


def test_a_worker_that_is_not_ready_any_more_is_cut_off_after_a_while_and_given_up_later() -> None:
    """As late as one that was told to go: 30 s of grace, and 30 s for its node."""
    state = state_of(worker(0, WorkerState.READY))
    assert seen_at(state, 0) == [WorkerState.READY]
    state.update_pod(versioned(pod_of(withdrawn()), 2))
    assert seen_at(state, 1, 10.9, 11, 70.9, 71) == [
        WorkerState.STARTING,
        WorkerState.STARTING,
        WorkerState.CUT_OFF,
        WorkerState.CUT_OFF,
        WorkerState.GOING,
    ]


def test_a_worker_that_is_ready_again_is_as_before_and_is_given_the_whole_time_anew() -> None:
    """After an outage of the API server all say for some seconds that they are not ready."""
    state = state_of(worker(0, WorkerState.READY))
    assert seen_at(state, 0) == [WorkerState.READY]
    state.update_pod(versioned(pod_of(withdrawn()), 2))
    assert seen_at(state, 1, 9) == [WorkerState.STARTING] * 2
    state.update_pod(versioned(pod_of(worker(0, WorkerState.READY)), 3))
    assert seen_at(state, 9, 60) == [WorkerState.READY] * 2
    state.update_pod(versioned(pod_of(withdrawn()), 4))
    assert seen_at(state, 60, 69, 70) == [WorkerState.STARTING, WorkerState.STARTING, WorkerState.CUT_OFF]


def test_a_restarted_operator_knows_by_its_jobs_that_a_worker_was_ready() -> None:
    state = state_of(withdrawn())
    assert seen_at(state, 0, 9) == [WorkerState.STARTING] * 2
    state.update_job(bound("a", pod_name(0)))
    assert seen_at(state, 9.9, 10) == [WorkerState.STARTING, WorkerState.CUT_OFF]


def test_a_restarted_operator_takes_an_idle_worker_for_cut_off_once_its_node_has_had_time_to_ask_it() -> None:
    """Otherwise its model would seem to be loading for as long as a start may take."""
    assert seen_at(state_of(withdrawn()), 0, 59.9, 60) == [
        WorkerState.STARTING,
        WorkerState.STARTING,
        WorkerState.CUT_OFF,
    ]


def test_a_worker_beside_an_unready_container_or_a_silent_node_is_not_cut_off() -> None:
    """Its own container is ready as far as its node has said: it hears of its jobs."""
    state = state_of(withdrawn(container_ready=True))
    state.update_job(bound("a", pod_name(0)))
    assert seen_at(state, 0, 600) == [WorkerState.STARTING] * 2

"""Single cases of workers that cannot start, whose start stalls, and that have ended beside other containers."""

from __future__ import annotations

import dataclasses
import datetime as dt

import pytest

from kubediffusion.operator.actions import DeletePod, Explain, Requeue
from kubediffusion.operator.containers import ContainerState, ContainerStatus, Terminated
from kubediffusion.operator.job_status import next_status
from kubediffusion.operator.model_status import pod_deletion_reason
from kubediffusion.operator.scheduling import schedule_model
from kubediffusion.operator.workers import ObservedWorker, WorkerState
from kubediffusion.resources.generation_job import Phase
from kubediffusion.resources.testing import NOW, bound_job, job
from unit.operator.builders import OPTIONS, plan, pod_name, pod_of, said_of, snapshot, worker

NOT_CREATED = (
    'FailedCreate: Error creating: pods "emoji-0-{}" is forbidden: exceeded quota: none, used: pods=0, limited: 0'
)
NO_ACCOUNT = 'FailedCreate: Error creating: pods "emoji-0-x" is forbidden: serviceaccount "nope" not found'
NO_SECRET = 'Failed: Error: secret "token" not found'
PULLS = ("ErrImagePull: 403 of registry", "ImagePullBackOff: Back-off pulling image")


@pytest.mark.parametrize(
    ("before", "now", "again"),
    [
        (NOT_CREATED.format("abcde"), NOT_CREATED.format("fghij"), False),
        (*PULLS, False),
        (NOT_CREATED.format("abcde"), NO_ACCOUNT, True),
        (NO_ACCOUNT, NO_SECRET, True),
        (NO_SECRET, PULLS[0], True),
    ],
    ids=["next attempt", "pause between pulls", "other refusal", "created since", "image since"],
)
def test_what_is_in_the_way_is_said_once_and_anew_when_it_is_another_thing(before: str, now: str, again: bool) -> None:
    def starting(warning: str) -> ObservedWorker:
        return dataclasses.replace(worker(0, WorkerState.STARTING), pod=None, warning=warning)

    first = said_of(snapshot([job(age=10)], [starting(before)]))
    assert first.reason == "WorkerCannotStart"
    told = job(age=10, status=next_status(first, NOW, 0))
    said = [a for a in plan(snapshot([told], [starting(now)])) if isinstance(a, Explain)]
    assert [now in a.message for a in said] == [True] * again


def ended_beside_others(exit_code: int, seconds: float) -> ObservedWorker:
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
    actions = plan(snapshot([], [crashed], {pod_name(0): [running]}))
    (again,) = [a for a in actions if isinstance(a, Requeue)]
    assert (again.job, again.costs_retry) == (running, True)
    (gone,) = [a for a in actions if isinstance(a, DeletePod)]
    assert (gone.name, "exit code 137" in pod_deletion_reason(gone)) == (pod_name(0), True)
    done = ended_beside_others(0, seconds=60)
    assert done.state is WorkerState.GOING


def test_a_pod_whose_worker_has_just_ended_may_end_by_itself() -> None:
    decision = schedule_model(snapshot([], [ended_beside_others(1, seconds=1)]), NOW, OPTIONS)
    assert not any(isinstance(action, DeletePod) for action in decision.actions)
    assert decision.recheck_at == NOW + dt.timedelta(seconds=4)


@pytest.mark.parametrize(("still", "deleted"), [(59, False), (60, True)])
def test_a_worker_whose_start_makes_no_progress_is_ended(still: int, deleted: bool) -> None:
    starting = dataclasses.replace(worker(0, WorkerState.STARTING), progress_at=NOW - dt.timedelta(seconds=still))
    decision = schedule_model(snapshot([], [starting], min_replicas=1, start_deadline_seconds=60), NOW, OPTIONS)
    found = [pod_deletion_reason(a) for a in decision.actions if isinstance(a, DeletePod)]
    assert found == (["its start has made no progress for 60 s (spec.workers.startDeadlineSeconds)"] if deleted else [])
    assert (decision.recheck_at is None) is deleted

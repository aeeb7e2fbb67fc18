"""How far workers' starts have come, and how often a model's status is written for it."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import Any

import pytest

from kubediffusion.operator.containers import CONTAINER, ContainerStatus
from kubediffusion.operator.model_status import LONGEST_MESSAGE, model_status, start_stage, worker_starts
from kubediffusion.operator.rate import ReportRate
from kubediffusion.operator.snapshots import ModelSnapshot
from kubediffusion.operator.workers import ObservedWorker, PlatformCondition, WorkerState
from kubediffusion.resources.conditions import EngineReason, PodConditionType, WaitingReason, find_condition
from kubediffusion.resources.diffusion_model import MAX_STARTS, DiffusionModelStatus
from kubediffusion.resources.testing import NOW, present
from unit.operator.builders import OLD_HASH, pod_name, pod_of, snapshot, worker

SIDECAR_UNREADY = "containers with unready status: [istio-proxy]"
STARTING, READY = WorkerState.STARTING, WorkerState.READY


def after(seconds: float) -> dt.datetime:
    return NOW + dt.timedelta(seconds=seconds)


def telling(built: ObservedWorker, reason: str, message: str = "so far", status: str = "False") -> ObservedWorker:
    """The same worker, whose Pod says how far its start has come."""
    condition = PlatformCondition(type=PodConditionType.ENGINE_READY, status=status, reason=reason, message=message)
    return showing(built, conditions=(*pod_of(built).status.conditions, condition))


def showing(built: ObservedWorker, **status: Any) -> ObservedWorker:
    pod = pod_of(built).model_copy(update={"status": pod_of(built).status.model_copy(update=status)})
    return replace(built, pod=pod)


def told(seen: ModelSnapshot, status: DiffusionModelStatus) -> ModelSnapshot:
    """The same snapshot, once its model carries a status."""
    return replace(seen, model=seen.model.model_copy(update={"status": status}))


def shown(seen: ModelSnapshot, now: dt.datetime = NOW) -> list[tuple[str, str, str]]:
    return [(start.worker, start.reason, start.message) for start in worker_starts(seen, now)]


def test_a_worker_tells_in_its_own_words_how_far_it_is() -> None:
    one = telling(worker(0, STARTING), "WarmingUp", "the weights are on the device; 3 of 5 batch sizes are prepared")
    assert shown(snapshot(workers=[one])) == [
        (pod_name(0), "WarmingUp", "the weights are on the device; 3 of 5 batch sizes are prepared")
    ]


@pytest.mark.parametrize(
    ("built", "reason", "message"),
    [
        (worker(0, WorkerState.QUEUED), WaitingReason.WORKER_QUEUED, "Kueue has not admitted it yet"),
        (replace(worker(0, STARTING), pod=None), WaitingReason.WORKER_STARTING, "its Pod is being created"),
        (
            showing(worker(0, STARTING), phase="Pending"),
            WaitingReason.WORKER_STARTING,
            "its container is being started",
        ),
        (worker(0, STARTING), WaitingReason.WORKER_STARTING, "it loads the model"),
        (
            telling(worker(0, STARTING), "Ready", "all is compiled", "True"),
            EngineReason.READY,
            "it takes jobs as soon as its node says that it is ready",
        ),
        (
            telling(
                showing(
                    worker(0, STARTING),
                    conditions=(PlatformCondition(type="Ready", status="False", message=SIDECAR_UNREADY),),
                    container_statuses=(ContainerStatus(name=CONTAINER, ready=True),),
                ),
                "Ready",
                "all is compiled",
                "True",
            ),
            EngineReason.READY,
            f"it takes jobs as soon as its node says that it is ready; {SIDECAR_UNREADY}",
        ),
        (
            showing(
                worker(0, STARTING),
                conditions=(PlatformCondition(type="PodScheduled", status="False", message="0/3 nodes"),),
            ),
            WaitingReason.WORKER_UNSCHEDULABLE,
            "0/3 nodes",
        ),
    ],
)
def test_where_a_worker_has_said_nothing_its_pod_does(built: ObservedWorker, reason: str, message: str) -> None:
    assert start_stage(built) == (reason, message)


def test_a_ready_worker_is_named_while_it_compiles_and_after_those_that_start() -> None:
    compiling = telling(worker(0, READY), "Compiling", "1 of 6 compiled", "True")
    done = telling(worker(1, READY), "Ready", "all that was prepared is compiled", "True")
    seen = snapshot(workers=[compiling, done, worker(2, READY), telling(worker(3, STARTING), "Importing")])
    assert shown(seen) == [(pod_name(3), "Importing", "so far"), (pod_name(0), "Compiling", "1 of 6 compiled")]
    status = model_status(seen, None, NOW)
    assert (status.workers.ready, status.workers.starting) == (3, 1)
    assert present(find_condition(status.conditions, "Available")).message == "3 workers ready, still compiling: 1"


def test_workers_of_another_template_and_such_as_have_ended_are_not_named() -> None:
    others = [worker(0, STARTING, template=OLD_HASH), worker(1, WorkerState.GOING), worker(2, WorkerState.FAILED)]
    assert shown(snapshot(workers=[telling(each, "Importing") for each in others])) == []


def test_a_status_stays_small_whatever_workers_say() -> None:
    wordy = [telling(worker(n, STARTING), "x" * 5000, "y" * 5000) for n in range(MAX_STARTS + 5)]
    found = worker_starts(snapshot(workers=wordy), NOW)
    assert len(found) == MAX_STARTS
    assert {len(start.message) for start in found} == {LONGEST_MESSAGE}
    assert {len(start.reason) for start in found} == {LONGEST_MESSAGE}


def test_a_stage_keeps_the_moment_in_which_it_was_reached() -> None:
    seen = snapshot(workers=[telling(worker(0, STARTING), "WarmingUp", "1 of 5")])
    first = model_status(seen, None, NOW)
    assert model_status(told(seen, first), None, after(1)) == first
    further = snapshot(workers=[telling(worker(0, STARTING), "WarmingUp", "2 of 5")])
    later = model_status(told(further, first), None, after(2))
    assert [(start.since, start.message) for start in later.workers.starts] == [(NOW, "2 of 5")]
    ready = snapshot(workers=[telling(worker(0, READY), "Compiling", "0 of 6", "True")])
    assert model_status(told(ready, later), None, after(3)).workers.starts[0].since == after(3)


@pytest.mark.parametrize("before", ["never loaded", "loaded before"])
def test_what_says_whether_a_model_is_available_says_how_far_the_first_start_is(before: str) -> None:
    seen = snapshot(workers=[telling(worker(0, STARTING), "LoadingWeights", "the weights go to the GPU")])
    if before == "loaded before":
        seen = told(seen, model_status(snapshot(workers=[worker(0, READY)]), None, NOW))
    message = present(find_condition(model_status(seen, None, NOW).conditions, "Available")).message
    assert message.endswith("; one is starting: the weights go to the GPU (LoadingWeights)")


def test_progress_is_written_once_a_second_and_availability_at_once() -> None:
    reports = ReportRate()
    written = snapshot()
    times = []
    for tenth in range(40):
        now = after(tenth / 10)
        built = worker(0, STARTING) if tenth < 35 else worker(0, READY)
        seen = told(snapshot(workers=[telling(built, "WarmingUp", f"{tenth} of 35")]), written.model.status)
        report = reports.next_report(seen.model, model_status(seen, None, now), now)
        if report is not None and not isinstance(report, dt.datetime):
            written = told(written, report.status)
            times.append(tenth)
    assert times == [0, 10, 20, 30, 35]

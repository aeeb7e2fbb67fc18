"""What a batch/v1 Job and its Pod add up to."""

from __future__ import annotations

from typing import Any

import pytest

from kubediffusion.operator.containers import ContainerState, ContainerStatus, Terminated
from kubediffusion.operator.workers import (
    LONGEST_REASON,
    BatchJob,
    ObservedWorker,
    PlatformCondition,
    Pod,
    PodStatus,
    WorkerState,
)
from kubediffusion.resources.conditions import PodConditionType
from kubediffusion.resources.objects import ObjectMeta
from kubediffusion.resources.testing import NOW
from unit.operator.builders import worker


def condition(kind: str, status: str = "True", **more: Any) -> PlatformCondition:
    return PlatformCondition(type=kind, status=status, **more)


def a_pod(
    phase: str = "Running",
    *conditions: PlatformCondition,
    going: bool = False,
    exit_code: int | None = None,
    message: str = "",
    reason: str = "",
) -> Pod:
    ended = Terminated(exit_code=exit_code, message=message, reason=reason) if exit_code is not None else None
    return Pod(
        metadata=ObjectMeta(name="pod", deletion_timestamp=NOW if going else None),
        status=PodStatus(
            phase=phase,
            conditions=conditions,
            container_statuses=(ContainerStatus(name="worker", state=ContainerState(terminated=ended)),),
        ),
    )


def a_job(*conditions: PlatformCondition, going: bool = False, suspend: bool = False) -> BatchJob:
    return BatchJob.from_wire(
        {
            "metadata": {"name": "job"} | ({"deletionTimestamp": "2030-01-01T12:00:00Z"} if going else {}),
            "spec": {"suspend": suspend},
            "status": {"conditions": [c.to_wire() for c in conditions]},
        }
    )


READY = condition("Ready")
FAILED = condition("Failed", reason="BackoffLimitExceeded", message="Job has reached the specified backoff limit")


@pytest.mark.parametrize(
    ("job", "pod", "state"),
    [
        (a_job(), None, WorkerState.STARTING),
        (a_job(suspend=True), None, WorkerState.QUEUED),
        (a_job(), a_pod("Pending"), WorkerState.STARTING),
        (a_job(), a_pod("Running"), WorkerState.STARTING),
        (a_job(), a_pod("Running", READY), WorkerState.READY),
        (a_job(), a_pod("Running", condition("Ready", "False")), WorkerState.STARTING),
        # Drained, or deleted by somebody: its Job says nothing of that, and nothing yet of its end.
        (a_job(), a_pod("Running", READY, going=True), WorkerState.GOING),
        (a_job(), a_pod("Pending", going=True), WorkerState.GOING),
        (a_job(), a_pod("Succeeded", going=True, exit_code=0), WorkerState.GOING),
        (a_job(), a_pod("Succeeded", exit_code=0), WorkerState.GOING),
        # Preempted: Kueue admits it again.
        (a_job(suspend=True), a_pod("Running", READY, going=True), WorkerState.QUEUED),
        (a_job(going=True), a_pod("Running", READY), WorkerState.GOING),
        (a_job(condition("Complete")), a_pod("Succeeded"), WorkerState.GOING),
        (a_job(FAILED), a_pod("Failed", exit_code=1), WorkerState.FAILED),
        (a_job(FAILED), None, WorkerState.FAILED),
        # The Pod tells first, its Job a moment later.
        (a_job(), a_pod("Failed", exit_code=137), WorkerState.FAILED),
        # What the platform ended is replaced by the Job, and no crash.
        (a_job(), a_pod("Failed", condition("DisruptionTarget"), exit_code=143), WorkerState.STARTING),
        (a_job(FAILED), a_pod("Failed", condition("DisruptionTarget"), exit_code=143), WorkerState.FAILED),
        (a_job(FAILED, going=True), a_pod("Failed", exit_code=1), WorkerState.GOING),
    ],
)
def test_the_state_of_a_worker(job: BatchJob, pod: Pod | None, state: WorkerState) -> None:
    assert ObservedWorker(job, pod).state is state


@pytest.mark.parametrize(
    ("job", "pod", "told_to_terminate"),
    [
        # Drained by the eviction API, deleted by somebody, preempted: its grace period was over, or it ended in time.
        (a_job(), a_pod("Failed", condition("DisruptionTarget"), going=True, exit_code=137), True),
        (a_job(FAILED), a_pod("Failed", going=True, exit_code=137), True),
        (a_job(), a_pod("Failed", condition("DisruptionTarget"), exit_code=143), True),
        (a_job(), a_pod("Succeeded", exit_code=0), True),
        (a_job(condition("Complete")), None, True),
        # It died.
        (a_job(), a_pod("Failed", exit_code=137, reason="OOMKilled"), False),
        (a_job(FAILED), a_pod("Failed", exit_code=1), False),
        (a_job(FAILED), None, False),
        (a_job(), None, False),
    ],
)
def test_a_worker_that_was_told_to_go_did_not_die(job: BatchJob, pod: Pod | None, told_to_terminate: bool) -> None:
    assert ObservedWorker(job, pod).told_to_terminate is told_to_terminate


def test_a_worker_that_its_node_evicted_may_have_taken_the_memory_that_was_short() -> None:
    pod = a_pod("Failed", condition("DisruptionTarget", reason="TerminationByKubelet"), exit_code=137)
    evicted = pod.model_copy(update={"status": pod.status.model_copy(update={"reason": "Evicted"})})
    assert not ObservedWorker(a_job(), evicted).told_to_terminate


@pytest.mark.parametrize("state", WorkerState)
def test_builders_build_every_state(state: WorkerState) -> None:
    assert worker(0, state).state is state


def test_a_bad_model_is_known_by_its_exit_code_and_says_why() -> None:
    bad = ObservedWorker(a_job(FAILED), a_pod("Failed", exit_code=78, message="no model_index.json\n"))
    assert bad.bad_model == "no model_index.json"
    assert (
        ObservedWorker(a_job(FAILED), a_pod("Failed", exit_code=78)).bad_model
        == "the worker gave no reason; see its log"
    )


@pytest.mark.parametrize("code", [0, 1, 137, 143])
def test_any_other_end_is_no_bad_model(code: int) -> None:
    assert ObservedWorker(a_job(FAILED), a_pod("Failed", exit_code=code, message="boom")).bad_model is None


def test_what_a_service_refuses_is_a_bad_model_of_which_another_worker_has_to_say_the_same() -> None:
    refused = ObservedWorker(a_job(FAILED), a_pod("Failed", exit_code=69, message="the Hub answers 404"))
    assert (refused.bad_model, refused.doubtful) == ("the Hub answers 404", True)
    assert not ObservedWorker(a_job(FAILED), a_pod("Failed", exit_code=78)).doubtful


def test_a_bad_model_is_still_known_when_its_pod_is_gone() -> None:
    failed = condition("Failed", reason="PodFailurePolicy", message="Container worker failed with exit code 78")
    assert ObservedWorker(a_job(failed), None).bad_model == "Container worker failed with exit code 78"
    assert ObservedWorker(a_job(FAILED), None).bad_model is None


@pytest.mark.parametrize(
    ("pod", "words"),
    [
        (a_pod("Failed", exit_code=137, reason="OOMKilled"), "exit code 137: OOMKilled"),
        (a_pod("Failed", exit_code=1, message="CUDA error\n", reason="Error"), "exit code 1: CUDA error"),
        (a_pod("Failed", exit_code=3), "exit code 3"),
        (None, "Job has reached the specified backoff limit"),
    ],
)
def test_a_crash_is_told_in_words(pod: Pod | None, words: str) -> None:
    assert ObservedWorker(a_job(FAILED), pod).crash == words


def test_a_worker_whose_pod_vanished_says_so() -> None:
    assert ObservedWorker(a_job(), None).crash == "its Pod is gone"


def test_why_no_node_takes_a_pod() -> None:
    message = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    waiting = a_pod("Pending", condition("PodScheduled", "False", reason="Unschedulable", message=message))
    assert waiting.unschedulable == message
    assert a_pod("Pending", condition("PodScheduled")).unschedulable == ""
    assert a_pod("Pending").unschedulable == ""


@pytest.mark.parametrize(
    ("waiting", "blocked"),
    [
        ({"reason": "ContainerCreating"}, ""),
        ({"reason": "PodInitializing"}, ""),
        ({"reason": "ErrImagePull", "message": "not found"}, "ErrImagePull: not found"),
        ({"reason": "InvalidImageName"}, "InvalidImageName"),
    ],
)
def test_what_keeps_a_container_from_starting(waiting: dict[str, str], blocked: str) -> None:
    status = {"phase": "Pending", "containerStatuses": [{"name": "worker", "state": {"waiting": waiting}}]}
    assert Pod.from_wire({"metadata": {"name": "pod"}, "status": status}).blocked == blocked


def with_container_before(phase: str, own: dict[str, Any], before: dict[str, Any]) -> Pod:
    """A Pod whose worker waits, or not, for a container of its template, after one that has ended well."""
    done = {"name": "first", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}
    status = {
        "phase": phase,
        "containerStatuses": [{"name": "worker", "state": own}],
        "initContainerStatuses": [done, {"name": "proxy", "state": before}],
    }
    return Pod.from_wire({"metadata": {"name": "pod"}, "status": status})


def test_a_container_before_the_worker_is_what_keeps_it_from_starting() -> None:
    waits = {"waiting": {"reason": "PodInitializing"}}
    missing = {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}
    assert with_container_before("Pending", waits, missing).blocked == "container proxy: ImagePullBackOff: not found"
    assert with_container_before("Pending", waits, {"running": {}}).blocked == ""
    # A sidecar that crashes beside a worker that runs keeps nothing from starting.
    crashes = {"waiting": {"reason": "CrashLoopBackOff"}}
    assert with_container_before("Running", {"running": {}}, crashes).blocked == ""


def test_a_container_that_failed_before_the_worker_is_what_it_died_of() -> None:
    waits = {"waiting": {"reason": "PodInitializing"}}
    failed = {"terminated": {"exitCode": 3, "reason": "Error", "message": "no route"}}
    pod = with_container_before("Failed", waits, failed)
    assert ObservedWorker(a_job(), pod).crash == "container proxy: exit code 3: no route"
    own = {"terminated": {"exitCode": 1, "reason": "Error"}}
    assert ObservedWorker(a_job(), with_container_before("Failed", own, failed)).crash == "exit code 1: Error"


def test_nothing_keeps_a_container_that_runs_or_of_which_nothing_is_said() -> None:
    running = {"phase": "Running", "containerStatuses": [{"name": "worker", "state": {"running": {}}}]}
    assert Pod.from_wire({"metadata": {"name": "pod"}, "status": running}).blocked == ""
    assert a_pod("Pending").blocked == ""


@pytest.mark.parametrize(
    ("status", "reason", "words"),
    [
        ("False", "LoadingWeights", "exit code 137: OOMKilled (its start had come to LoadingWeights)"),
        ("False", "x" * 5000, f"exit code 137: OOMKilled (its start had come to {'x' * LONGEST_REASON})"),
        ("True", "Ready", "exit code 137: OOMKilled"),
    ],
)
def test_a_crash_tells_how_far_the_start_had_come(status: str, reason: str, words: str) -> None:
    ended = {"name": "worker", "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}
    condition = {"type": PodConditionType.ENGINE_READY, "status": status, "reason": reason}
    shown = {"phase": "Failed", "containerStatuses": [ended], "conditions": [condition]}
    assert ObservedWorker(a_job(FAILED), Pod.from_wire({"metadata": {"name": "pod"}, "status": shown})).crash == words


def test_a_sidecars_end_is_not_the_workers() -> None:
    pod = Pod.from_wire(
        {
            "metadata": {"name": "pod"},
            "status": {
                "phase": "Running",
                "containerStatuses": [{"name": "sidecar", "state": {"terminated": {"exitCode": 78}}}],
            },
        }
    )
    assert pod.terminated is None


def test_a_pod_names_the_job_that_made_it() -> None:
    owners = [
        {"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "1"},
        {"apiVersion": "batch/v1", "kind": "Job", "name": "emoji-0", "uid": "2"},
    ]
    assert Pod.from_wire({"metadata": {"name": "p", "ownerReferences": owners}}).batch_job == "2"
    assert Pod.from_wire({"metadata": {"name": "p"}}).batch_job == ""


def test_what_kubernetes_adds_to_its_objects_is_read_over() -> None:
    pod = Pod.from_wire({"kind": "Pod", "metadata": {"name": "p", "managedFields": []}, "spec": {}, "status": {}})
    assert (pod.status.phase, pod.ready) == ("Pending", False)

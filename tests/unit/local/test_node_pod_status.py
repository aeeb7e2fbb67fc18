"""What a pod's status says is a function of what its containers do."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from kubediffusion.local.node.status import (
    ContainerReport,
    ContainerWaiting,
    PodReport,
    Running,
    State,
    Terminated,
    container_status,
    phase,
    pod_status,
)

START = dt.datetime(2026, 1, 1, 12, 0, 0, tzinfo=dt.UTC)
LATER = START + dt.timedelta(seconds=90)
RUNNING = Running(START)
WAITING = ContainerWaiting()


def ended(code: int) -> Terminated:
    return Terminated(code, "Error" if code else "Completed", "", START, LATER, "process://1")


def report(*states: State, policy: str = "Never", **rest: Any) -> PodReport:
    containers = [ContainerReport(f"c{index}", "image", state) for index, state in enumerate(states)]
    return PodReport(containers, policy, START, "127.0.0.1", "127.9.0.2", **rest)


@pytest.mark.parametrize(
    ("states", "policy", "expected"),
    [
        ((WAITING,), "Never", "Pending"),
        ((RUNNING, WAITING), "Never", "Pending"),
        ((RUNNING,), "Never", "Running"),
        ((RUNNING, ended(0)), "Never", "Running"),
        ((ended(0),), "Never", "Succeeded"),
        ((ended(0), ended(1)), "Never", "Failed"),
        ((ended(0),), "OnFailure", "Succeeded"),
        ((ended(1),), "OnFailure", "Running"),
        ((ended(0),), "Always", "Running"),
    ],
)
def test_the_phase_follows_from_states_and_policy(states: tuple[State, ...], policy: str, expected: Any) -> None:
    assert phase(report(*states, policy=policy)) == expected


def test_a_container_that_waits_for_its_restart_leaves_its_pod_running() -> None:
    crashed = ContainerReport("c", "image", ContainerWaiting("CrashLoopBackOff"), last=ended(1), restarts=3)
    assert phase(PodReport([crashed], "Always", START, "127.0.0.1")) == "Running"


def test_a_failure_of_the_node_s_own_waits_for_the_processes_to_end() -> None:
    failure = ("DeadlineExceeded", "too long")
    assert phase(report(RUNNING, failure=failure)) == "Running"
    status = pod_status(report(ended(0), failure=failure), [], LATER)
    assert (status["phase"], status["reason"], status["message"]) == ("Failed", *failure)


def conditions(status: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {condition["type"]: condition for condition in status["conditions"]}


def test_a_pod_is_ready_when_all_its_containers_are() -> None:
    both = [ContainerReport("a", "", RUNNING, ready=True), ContainerReport("b", "", RUNNING, ready=False)]
    unready = conditions(pod_status(PodReport(both, "Never", START, "h", "p"), [], START))["Ready"]
    assert (unready["status"], unready["reason"]) == ("False", "ContainersNotReady")
    assert unready["message"] == "containers with unready status: [b]"
    ready = conditions(pod_status(PodReport(both[:1], "Never", START, "h", "p"), [], START))["Ready"]
    assert (ready["status"], ready["reason"], ready["message"]) == ("True", "", "")


def test_a_condition_keeps_its_time_until_it_changes() -> None:
    before = pod_status(report(RUNNING), [], START)
    same = pod_status(report(RUNNING), before["conditions"], LATER)
    assert same == before
    ready = PodReport([ContainerReport("c0", "image", RUNNING, ready=True)], "Never", START, "127.0.0.1", "127.9.0.2")
    after = conditions(pod_status(ready, before["conditions"], LATER))
    assert after["Ready"]["lastTransitionTime"] == "2026-01-01T12:01:30Z"
    assert after["Initialized"]["lastTransitionTime"] == "2026-01-01T12:00:00Z"


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (WAITING, {"waiting": {"reason": "ContainerCreating"}}),
        (RUNNING, {"running": {"startedAt": "2026-01-01T12:00:00Z"}}),
        (
            ended(137),
            {
                "terminated": {
                    "exitCode": 137,
                    "reason": "Error",
                    "containerID": "process://1",
                    "startedAt": "2026-01-01T12:00:00Z",
                    "finishedAt": "2026-01-01T12:01:30Z",
                }
            },
        ),
    ],
)
def test_a_container_s_state_is_written_as_the_api_server_has_it(state: State, expected: Any) -> None:
    assert container_status(ContainerReport("c", "image", state))["state"] == expected

"""What a pod's status says, computed from what its containers do. Nothing here reads a clock or talks to anybody."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kubediffusion.local.node.restarts import should_restart

PENDING = "Pending"
RUNNING = "Running"
SUCCEEDED = "Succeeded"
FAILED = "Failed"

CREATING = "ContainerCreating"
CRASH_LOOP = "CrashLoopBackOff"
CONFIGURATION_ERROR = "CreateContainerConfigError"


@dataclass(frozen=True)
class ContainerWaiting:
    """A container that does not run yet, or not again yet."""

    reason: str = CREATING
    message: str = ""


@dataclass(frozen=True)
class Running:
    """A container that runs."""

    started_at: dt.datetime


@dataclass(frozen=True)
class Terminated:
    """A container that ended."""

    exit_code: int
    reason: str
    message: str
    started_at: dt.datetime | None
    finished_at: dt.datetime
    container_id: str


State = ContainerWaiting | Running | Terminated


@dataclass(frozen=True)
class ContainerReport:
    """Everything there is to say about a container.

    Attributes:
        name: Its name.
        image: The image that it names; nothing is taken from it.
        state: What it does now.
        last: How it ended before that.
        restarts: How often it was started again.
        started: Whether its startup probe has passed.
        ready: Whether it may be sent work.
        container_id: Names its process.
    """

    name: str
    image: str
    state: State = ContainerWaiting()
    last: Terminated | None = None
    restarts: int = 0
    started: bool = False
    ready: bool = False
    container_id: str = ""


@dataclass(frozen=True)
class PodReport:
    """Everything there is to say about a pod.

    Attributes:
        containers: What its containers do.
        restart_policy: `Never` also when the pod is being ended, as nothing starts again then.
        start_time: When the node took it up.
        host_ip: The node's address.
        pod_ip: The pod's own address, once it has one.
        failure: Reason and message where the node itself ended it, whatever its containers say.
    """

    containers: Sequence[ContainerReport]
    restart_policy: str
    start_time: dt.datetime
    host_ip: str
    pod_ip: str = ""
    failure: tuple[str, str] | None = None


def phase(report: PodReport) -> str:
    """Return a pod's phase, by kubelet's rules."""
    states = [container.state for container in report.containers]
    if report.failure and not any(isinstance(state, Running) for state in states):
        return FAILED
    if any(isinstance(container.state, ContainerWaiting) and not container.last for container in report.containers):
        return PENDING
    ended = [state for state in states if isinstance(state, Terminated)]
    if len(ended) < len(states) or any(should_restart(report.restart_policy, end.exit_code) for end in ended):
        return RUNNING
    return SUCCEEDED if all(end.exit_code == 0 for end in ended) else FAILED


def pod_status(report: PodReport, known: Sequence[Mapping[str, Any]], now: dt.datetime) -> dict[str, Any]:
    """Return the fields of a pod's status that its node owns.

    Args:
        report: What there is to say.
        known: The conditions written before; one that has not changed keeps its time.
        now: The time of those that have.
    """
    current = phase(report)
    status: dict[str, Any] = {
        "phase": current,
        "startTime": timestamp(report.start_time),
        "hostIP": report.host_ip,
        "hostIPs": [{"ip": report.host_ip}],
        "conditions": _conditions(report, current, known, now),
        "containerStatuses": [container_status(container) for container in report.containers],
    }
    if report.pod_ip:
        status |= {"podIP": report.pod_ip, "podIPs": [{"ip": report.pod_ip}]}
    if report.failure and current == FAILED:
        status |= {"reason": report.failure[0], "message": report.failure[1]}
    return status


def container_status(container: ContainerReport) -> dict[str, Any]:
    """Return the entry of a container in its pod's status."""
    status: dict[str, Any] = {
        "name": container.name,
        "image": container.image,
        "imageID": "",
        "state": _state(container.state),
        "lastState": _state(container.last) if container.last else {},
        "restartCount": container.restarts,
        "started": container.started,
        "ready": container.ready,
    }
    if container.container_id:
        status["containerID"] = container.container_id
    return status


def timestamp(moment: dt.datetime) -> str:
    """Return a moment as Kubernetes' Time writes it: in whole seconds."""
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _conditions(
    report: PodReport, current: str, known: Sequence[Mapping[str, Any]], now: dt.datetime
) -> list[dict[str, Any]]:
    unready = [container.name for container in report.containers if not container.ready]
    if current in {SUCCEEDED, FAILED}:
        why = {"reason": "PodCompleted" if current == SUCCEEDED else "PodFailed"}
    elif unready:
        why = {"reason": "ContainersNotReady", "message": f"containers with unready status: [{' '.join(unready)}]"}
    else:
        why = {}
    truth = {
        "PodReadyToStartContainers": (bool(report.pod_ip), {}),
        "Initialized": (True, {}),
        "ContainersReady": (not why, why),
        "Ready": (not why, why),
    }
    before = {condition["type"]: condition for condition in known}
    conditions = []
    for kind, (holds, explanation) in truth.items():
        # Empty, not absent: the patch is merged, and what it does not name would stay.
        condition = {"type": kind, "status": str(holds), "reason": "", "message": "", **explanation}
        old = before.get(kind, {})
        unchanged = old.get("status") == condition["status"]
        condition["lastTransitionTime"] = old["lastTransitionTime"] if unchanged else timestamp(now)
        conditions.append(condition)
    return conditions


def _state(state: State) -> dict[str, Any]:
    match state:
        case ContainerWaiting():
            return {"waiting": _present({"reason": state.reason, "message": state.message})}
        case Running():
            return {"running": {"startedAt": timestamp(state.started_at)}}
        case Terminated():
            fields = {
                "reason": state.reason,
                "message": state.message,
                "containerID": state.container_id,
                "startedAt": timestamp(state.started_at) if state.started_at else "",
                "finishedAt": timestamp(state.finished_at),
            }
            return {"terminated": {"exitCode": state.exit_code, **_present(fields)}}


def _present(fields: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in fields.items() if value}

"""Builders of workers and snapshots."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Mapping
from typing import Any, TypeVar

from kubediffusion.operator.actions import Action, Explain
from kubediffusion.operator.containers import ContainerState, ContainerStatus, Terminated
from kubediffusion.operator.scheduling import schedule_model
from kubediffusion.operator.snapshots import ModelSnapshot, SchedulerOptions, order_key
from kubediffusion.operator.workers import (
    BatchJob,
    BatchJobSpec,
    BatchJobStatus,
    ObservedWorker,
    PlatformCondition,
    Pod,
    PodStatus,
    WorkerState,
)
from kubediffusion.resources import meta
from kubediffusion.resources.adapters import AdapterReport, reports_to_json
from kubediffusion.resources.conditions import PodConditionType
from kubediffusion.resources.generation_job import GenerationJob, Parameters
from kubediffusion.resources.objects import KubernetesObject, ObjectMeta, OwnerReference
from kubediffusion.resources.testing import NAMESPACE, NOW, model, present
from kubediffusion.resources.worker_names import worker_job_name

OPTIONS = SchedulerOptions()
NODE_GRACE = dt.timedelta(seconds=30)

T = TypeVar("T", bound=KubernetesObject)

HASH = "0a1b2c3d"
OLD_HASH = "ffffffff"


_CONDITIONS = {
    WorkerState.READY: (PlatformCondition(type="Ready", status="True"),),
    WorkerState.CUT_OFF: (PlatformCondition(type="kubediffusion.io/EngineReady", status="True"),),
}


def worker(
    ordinal: int,
    state: WorkerState,
    *,
    template: str = HASH,
    exit_code: int = 137,
    message: str = "",
    idle: float | None = None,
    failed: float = 0,
    drained: bool = False,
) -> ObservedWorker:
    """Build a worker in a state; ``idle`` and ``failed`` are seconds ago.

    One that is drained is Going: its Pod has been told to go, and its Job does not say so.
    """
    name = worker_job_name("emoji", template, ordinal)
    labels = {meta.MODEL_LABEL: "emoji", meta.TEMPLATE_HASH_LABEL: template}
    ended = state is WorkerState.FAILED
    failure = PlatformCondition(
        type="Failed",
        status="True",
        reason="BackoffLimitExceeded",
        last_transition_time=NOW - dt.timedelta(seconds=failed),
    )
    job = BatchJob(
        metadata=ObjectMeta(
            name=name,
            namespace=NAMESPACE,
            uid=f"uid-{name}",
            labels=labels,
            creation_timestamp=NOW - dt.timedelta(minutes=5),
            deletion_timestamp=NOW if state is WorkerState.GOING else None,
        ),
        spec=BatchJobSpec(suspend=state is WorkerState.QUEUED),
        status=BatchJobStatus(conditions=(failure,) if ended else ()),
    )
    if state is WorkerState.QUEUED:
        return ObservedWorker(job, None)
    terminated = ContainerState(terminated=Terminated(exit_code=exit_code, message=message)) if ended else None
    pod = Pod(
        metadata=ObjectMeta(
            name=f"{name}-pod",
            namespace=NAMESPACE,
            uid=f"uid-{name}-pod",
            labels=labels,
            deletion_timestamp=NOW if drained or state is WorkerState.GOING else None,
            owner_references=(OwnerReference(api_version="batch/v1", kind="Job", name=name, uid=f"uid-{name}"),),
        ),
        status=PodStatus(
            phase="Failed" if ended else "Running",
            conditions=_CONDITIONS.get(state, ()),
            container_statuses=(ContainerStatus(name="worker", state=terminated or ContainerState()),),
        ),
    )
    built = ObservedWorker(job, pod, NOW - dt.timedelta(seconds=idle) if idle is not None else None)
    if state is WorkerState.CUT_OFF:
        built = dataclasses.replace(
            built, cut_off_at=NOW, cut_off=True, given_up_at=NOW + dt.timedelta(seconds=60), given_up=False
        )
    assert built.state is (WorkerState.GOING if drained else state)
    return built


def holding(built: ObservedWorker, reports: Mapping[str, AdapterReport]) -> ObservedWorker:
    """Return the same worker, whose Pod tells of its adapters."""
    return telling(built, reports_to_json(reports))


def telling(built: ObservedWorker, message: str) -> ObservedWorker:
    """Return the same worker, whose Pod has a text for what it tells of its adapters."""
    told = PlatformCondition(type=PodConditionType.ADAPTERS_KNOWN, status="True", message=message)
    pod = pod_of(built)
    others = tuple(c for c in pod.status.conditions if c.type != told.type)
    status = pod.status.model_copy(update={"conditions": (*others, told)})
    return dataclasses.replace(built, pod=pod.model_copy(update={"status": status}))


def pod_name(ordinal: int, template: str = HASH) -> str:
    """Return the name of the Pod of a built worker."""
    return f"{worker_job_name('emoji', template, ordinal)}-pod"


def pod_of(built: ObservedWorker) -> Pod:
    """Return the Pod of a worker that has one."""
    return present(built.pod)


def snapshot(
    waiting: list[GenerationJob] | None = None,
    workers: list[ObservedWorker] | None = None,
    bound: dict[str, list[GenerationJob]] | None = None,
    **settings: Any,
) -> ModelSnapshot:
    """Build the snapshot of a model whose ``spec.workers`` are the settings."""
    queue = sorted(waiting or [], key=order_key)
    built = ModelSnapshot(
        model=model(**settings),
        template_hash=HASH,
        waiting=queue,
        waiting_count=len(queue),
        workers=tuple(workers or ()),
        bound={pod: tuple(jobs) for pod, jobs in (bound or {}).items()},
    )
    return dataclasses.replace(built, waiting_slots=sum(map(built.slots, queue)))


def plan(cluster: ModelSnapshot) -> tuple[Action, ...]:
    """Return what the scheduler decides for a model, by its defaults."""
    return schedule_model(cluster, NOW, OPTIONS, explanations=5).actions


def recipe(name: str) -> Parameters:
    """Return what a bound job of a model is made with."""
    return Parameters(model=name, num_inference_steps=1, guidance_scale=1, seed=1, num_images=1)


def versioned(item: T, version: int, name: str | None = None) -> T:
    """Return an object as of a resource version."""
    update = {"resource_version": str(version)} | ({"name": name} if name else {})
    return item.model_copy(update={"metadata": item.metadata.model_copy(update=update)})


def said_of(cluster: ModelSnapshot) -> Explain:
    """What the one job that waits is told."""
    (said,) = [a for a in plan(cluster) if isinstance(a, Explain)]
    return said

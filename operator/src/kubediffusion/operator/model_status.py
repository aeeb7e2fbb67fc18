"""What a DiffusionModel's status says: can it be used, and if not, why; how far its workers have come. Pure."""

from __future__ import annotations

import datetime as dt

from kubediffusion.operator.actions import DeletePod
from kubediffusion.operator.cut_off import workers_cut_off
from kubediffusion.operator.job_status import second_opinion, waiting_reason
from kubediffusion.operator.scaling import LoadFailure, back_off_until, doubtful_failure, load_failure
from kubediffusion.operator.snapshots import NEVER, ModelSnapshot
from kubediffusion.operator.workers import ObservedWorker, WorkerState
from kubediffusion.resources import meta
from kubediffusion.resources.conditions import (
    ConditionStatus,
    EngineReason,
    ModelConditionType,
    ModelReason,
    WaitingReason,
    find_condition,
    with_condition,
)
from kubediffusion.resources.diffusion_model import (
    MAX_STARTS,
    DiffusionModel,
    DiffusionModelStatus,
    WorkerCounts,
    WorkerStart,
)

LONGEST_MESSAGE = 500
"""Characters of a worker's message that go into the model's status: workers may run anybody's code."""


def model_status(snapshot: ModelSnapshot, revision: str | None, now: dt.datetime) -> DiffusionModelStatus:
    """Return the status that a model should have.

    Args:
        snapshot: What is observed of the model.
        revision: The revision that workers of today's template reported last, if any did.
        now: The time, for a condition that changes.
    """
    old = snapshot.model.status
    status, reason, message = _availability(snapshot, now)
    ready = snapshot.current(WorkerState.READY)
    return DiffusionModelStatus(
        conditions=with_condition(
            old.conditions,
            ModelConditionType.AVAILABLE,
            status,
            reason,
            message,
            now,
            snapshot.model.metadata.generation,
        ),
        workers=WorkerCounts(
            ready=len(ready),
            busy=sum(bool(snapshot.jobs_of(w)) for w in ready),
            starting=len(starting_workers(snapshot)),
            starts=worker_starts(snapshot, now),
        ),
        queued=snapshot.waiting_count,
        revision=revision or (old.revision if old.template_hash == snapshot.template_hash else None),
        pipeline=snapshot.pipeline,
        selector=f"{meta.WORKER_SELECTOR},{meta.MODEL_LABEL}={snapshot.model.name}",
        template_hash=snapshot.template_hash,
        observed_generation=snapshot.model.metadata.generation,
    )


def error_status(model: DiffusionModel, error: Exception, now: dt.datetime) -> DiffusionModelStatus:
    """Return the status of a model at which the operator failed: whether it can be used is not known.

    Args:
        model: The model.
        error: What was raised. Its class alone is told, as its message may quote anything.
        now: The time, for a condition that changes.
    """
    message = f"the operator failed at this model ({type(error).__name__}) and tries again; see its log"
    conditions = with_condition(
        model.status.conditions,
        ModelConditionType.AVAILABLE,
        ConditionStatus.UNKNOWN,
        ModelReason.INTERNAL_ERROR,
        message,
        now,
        model.metadata.generation,
    )
    return model.status.model_copy(update={"conditions": conditions})


def pod_deletion_reason(action: DeletePod) -> str:
    """Return why the Pod of a worker is deleted, for the Event on the model."""
    if action.crash is not None:
        return f"its worker has ended ({action.crash}), and other containers of it run on"
    return f"its start has made no progress for {action.stalled_seconds} s (spec.workers.startDeadlineSeconds)"


def name_taken(name: str) -> str:
    """Return why a worker cannot be created whose name is that of another batch/v1 Job."""
    message = f"the name {name} is taken by a batch/v1 Job that is no worker"
    return f"{message}; delete it, or make it anew under another name"


def _availability(snapshot: ModelSnapshot, now: dt.datetime) -> tuple[ConditionStatus, ModelReason, str]:
    old = find_condition(snapshot.model.status.conditions, ModelConditionType.AVAILABLE)
    crashes = snapshot.crashes
    refused = bool(snapshot.untried_hash and snapshot.refusal)
    if ready := snapshot.current(WorkerState.READY):
        message = f"{len(ready)} worker{'s' if len(ready) > 1 else ''} ready"
        message += f", still compiling: {busy}" if (busy := len(compiling_workers(snapshot))) else ""
        message += f"; {workers_cut_off(cut_off)}" if (cut_off := snapshot.current(WorkerState.CUT_OFF)) else ""
        message += f"; they stay as they are, as what changed is refused: {snapshot.refusal}" if refused else ""
        return ConditionStatus.TRUE, ModelReason.READY, message
    if (failure := load_failure(snapshot, now)) is not None:
        return ConditionStatus.FALSE, ModelReason.LOAD_FAILED, f"{failure.reason} ({_remedy(failure)})"
    if back_off_until(crashes) is not None:
        message = f"{len(crashes)} workers crashed in a row, the last with {crashes[-1].crash}"
        return ConditionStatus.FALSE, ModelReason.WORKER_FAILED, message
    # Status speaks of one template: what was loaded under another says nothing of today's, and what was loaded under
    # this one had its image and its Secrets: what keeps the next worker from starting may pass.
    same = snapshot.model.status.template_hash == snapshot.template_hash
    loaded = old is not None and same and old.reason in {ModelReason.READY, ModelReason.SCALED_TO_ZERO}
    if loaded and not refused:
        cut_off = snapshot.current(WorkerState.CUT_OFF)
        message = _first_start(snapshot) or (workers_cut_off(cut_off) if cut_off else "the next job gets one")
        return ConditionStatus.TRUE, ModelReason.SCALED_TO_ZERO, f"no worker is ready; {message}"
    why, message = waiting_reason(snapshot, now)
    if why is WaitingReason.WORKER_CANNOT_START and not snapshot.loading:
        return ConditionStatus.FALSE, ModelReason.WORKER_CANNOT_START, message
    if snapshot.refusal and not snapshot.loading:
        return ConditionStatus.UNKNOWN, ModelReason.NOT_YET_LOADED, f"no worker can be created: {snapshot.refusal}"
    message = "no worker has loaded the model with this spec so far"
    if (doubt := doubtful_failure(snapshot)) is not None:
        return ConditionStatus.UNKNOWN, ModelReason.NOT_YET_LOADED, second_opinion(snapshot.model.name, doubt)
    if failed := [worker.bad_model for worker in snapshot.failures if worker.bad_model is not None]:
        message = f"the next job tries again what failed before: {failed[-1]}"
    if start := _first_start(snapshot):
        message = f"no worker has loaded the model with this spec so far; {start}"
    return ConditionStatus.UNKNOWN, ModelReason.NOT_YET_LOADED, message


def _first_start(snapshot: ModelSnapshot) -> str:
    """Return the sentence that says how far the oldest start has come; empty where there is none."""
    under_way = starting_workers(snapshot)
    if not under_way:
        return ""
    reason, message = start_stage(_oldest_first(under_way)[0])
    return f"one is starting: {message} ({reason})"


def _remedy(failure: LoadFailure) -> str:
    remedy = (
        f"correct the spec; or mend the Secret, volume or bucket and set the annotation {meta.RESTARTED_AT_ANNOTATION}"
    )
    return remedy + (
        f", else it is tried again after {failure.until:%H:%M:%S} UTC" if failure.until is not None else ""
    )


def worker_starts(snapshot: ModelSnapshot, now: dt.datetime) -> tuple[WorkerStart, ...]:
    """Return the starts that are under way, those of workers that take jobs and still compile last.

    Args:
        snapshot: What is observed of the model.
        now: The time, for what has changed.
    """
    before = {(start.worker, start.reason): start.since for start in snapshot.model.status.workers.starts}
    found = []
    for worker in [*_oldest_first(starting_workers(snapshot)), *_oldest_first(compiling_workers(snapshot))][
        :MAX_STARTS
    ]:
        name = worker.pod.metadata.name if worker.pod is not None else worker.name
        reason, message = start_stage(worker)
        since = before.get((name, reason), now)
        found.append(WorkerStart(worker=name, reason=reason, message=message, since=since))
    return tuple(found)


def starting_workers(snapshot: ModelSnapshot) -> list[ObservedWorker]:
    """Return the workers of today's template that take no jobs yet."""
    return snapshot.current(WorkerState.STARTING, WorkerState.QUEUED)


def compiling_workers(snapshot: ModelSnapshot) -> list[ObservedWorker]:
    """Return the workers of today's template that take jobs and still compile."""
    return [w for w in snapshot.current(WorkerState.READY) if start_stage(w)[0] == EngineReason.COMPILING]


def start_stage(worker: ObservedWorker) -> tuple[str, str]:
    """Return the stage of a worker's start: a reason for programs and a message for people.

    They are the worker's own, once it has told any, else what its Pod shows.
    """
    if worker.state is WorkerState.QUEUED:
        return WaitingReason.WORKER_QUEUED, "Kueue has not admitted it yet"
    if worker.unscheduled:
        return WaitingReason.WORKER_UNSCHEDULABLE, _short(worker.unscheduled)
    if worker.blocked:
        return WaitingReason.WORKER_CANNOT_START, _short(worker.blocked)
    pod = worker.pod
    if pod is None:
        return WaitingReason.WORKER_STARTING, "its Pod is being created"
    told = pod.engine_ready
    if told is None:
        running = pod.status.phase == "Running"
        return WaitingReason.WORKER_STARTING, "it loads the model" if running else "its container is being started"
    if worker.state is WorkerState.STARTING and told.status == ConditionStatus.TRUE:
        # Its node has not asked since, or not told yet; or an injected container is not ready.
        others = f"; {pod.others_unready}" if pod.others_unready else ""
        return _short(told.reason), _short(f"it takes jobs as soon as its node says that it is ready{others}")
    return _short(told.reason), _short(told.message)


def _oldest_first(workers: list[ObservedWorker]) -> list[ObservedWorker]:
    """Return workers in the order in which they were created."""
    return sorted(workers, key=lambda w: (w.job.metadata.creation_timestamp or NEVER, w.name))


def _short(message: str) -> str:
    return message if len(message) <= LONGEST_MESSAGE else f"{message[: LONGEST_MESSAGE - 1]}…"

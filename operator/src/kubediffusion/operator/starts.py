"""How far the starts of a model's workers have come, as their Pods say. Pure."""

from __future__ import annotations

import datetime as dt

from kubediffusion.operator.views import NEVER, ModelView
from kubediffusion.operator.workers import Worker, WorkerState
from kubediffusion.resources.conditions import ConditionStatus, EngineReason, WaitingReason
from kubediffusion.resources.diffusion_model import MAX_STARTS, WorkerStart

LONGEST_MESSAGE = 500
"""Characters of a worker's message that go into the model's status: workers may run anybody's code."""


def starts(view: ModelView, now: dt.datetime) -> tuple[WorkerStart, ...]:
    """Return the starts that are under way, those of workers that take jobs and still compile last.

    Args:
        view: What is observed of the model.
        now: The time, for what has changed.
    """
    before = {(start.worker, start.reason): start.since for start in view.model.status.workers.starts}
    found = []
    for worker in [*oldest_first(starting(view)), *oldest_first(compiling(view))][:MAX_STARTS]:
        name = worker.pod.metadata.name if worker.pod is not None else worker.name
        reason, message = stage(worker)
        since = before.get((name, reason), now)
        found.append(WorkerStart(worker=name, reason=reason, message=message, since=since))
    return tuple(found)


def starting(view: ModelView) -> list[Worker]:
    """Return the workers of today's template that take no jobs yet."""
    return view.current(WorkerState.STARTING, WorkerState.QUEUED)


def compiling(view: ModelView) -> list[Worker]:
    """Return the workers of today's template that take jobs and still compile."""
    return [w for w in view.current(WorkerState.READY) if stage(w)[0] == EngineReason.COMPILING]


def stage(worker: Worker) -> tuple[str, str]:
    """Say where a worker's start stands, for programs and for people: in its own words, once it has any."""
    if worker.state is WorkerState.QUEUED:
        return WaitingReason.WORKER_QUEUED, "Kueue has not admitted it yet"
    pod = worker.pod
    if pod is None:
        return WaitingReason.WORKER_STARTING, "its Pod is being created"
    if pod.unschedulable:
        return WaitingReason.WORKER_UNSCHEDULABLE, _short(pod.unschedulable)
    if pod.blocked:
        return WaitingReason.WORKER_CANNOT_START, _short(pod.blocked)
    told = pod.engine_ready
    if told is None:
        running = pod.status.phase == "Running"
        return WaitingReason.WORKER_STARTING, "it loads the model" if running else "its container is being started"
    if worker.state is WorkerState.STARTING and told.status == ConditionStatus.TRUE:
        # Its node has not asked since, or not told yet.
        return _short(told.reason), "it takes jobs as soon as its node says that it is ready"
    return _short(told.reason), _short(told.message)


def oldest_first(workers: list[Worker]) -> list[Worker]:
    """Return workers in the order in which they were created."""
    return sorted(workers, key=lambda w: (w.job.metadata.creation_timestamp or NEVER, w.name))


def _short(message: str) -> str:
    return message if len(message) <= LONGEST_MESSAGE else f"{message[: LONGEST_MESSAGE - 1]}…"

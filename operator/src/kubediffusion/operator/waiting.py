"""Why jobs wait: which of them say so now, and in which words. Pure."""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Iterator

from kubediffusion.operator.actions import Explain
from kubediffusion.operator.scaling import back_off_until
from kubediffusion.operator.views import Decision, ModelView, SchedulerOptions
from kubediffusion.operator.workers import WorkerState
from kubediffusion.resources.conditions import ConditionStatus, JobCondition, WaitingReason, find
from kubediffusion.resources.generation_job import GenerationJob


def explain(
    view: ModelView, rest: Iterator[GenerationJob], now: dt.datetime, options: SchedulerOptions, explanations: int
) -> Decision:
    """Say why jobs wait: each that has waited long enough and does not say so yet, from the head, so many a pass."""
    if explanations <= 0:
        return Decision((), now + dt.timedelta(seconds=1) if view.waiting_count else None)
    reason, message = waiting_reason(view, now)
    actions: list[Explain] = []
    # The head of the queue is what people ask about; looking further costs every pass.
    for job in itertools.islice(rest, 100):
        due = (job.metadata.creation_timestamp or now) + options.explain_after
        if now < due:
            return Decision(tuple(actions), due)
        said = find(job.status.conditions, JobCondition.SCHEDULED)
        if said is not None and said.status == ConditionStatus.FALSE and said.reason == reason:
            continue
        if len(actions) >= explanations:
            return Decision(tuple(actions), now + dt.timedelta(seconds=1))
        actions.append(Explain(job, reason, message))
    return Decision(tuple(actions))


def waiting_reason(view: ModelView, now: dt.datetime) -> tuple[WaitingReason, str]:
    """Return why a job of this model waits, for programs and for people."""
    settings = view.model.spec.workers
    ready = view.current(WorkerState.READY)
    starting = view.current(WorkerState.STARTING)
    back_off = _back_off(view, now)
    stuck = [w.pod.unschedulable for w in starting if w.pod is not None and w.pod.unschedulable]
    if ready:
        message = f"ready workers of model {view.model.name}: {len(ready)}, all at capacity"
        message += f"; maxReplicas is {settings.max_replicas}"
        message += f"; {placed} starting" if (placed := len(starting) - len(stuck)) else ""
        message += f"; {len(stuck)} without a node: {stuck[0]}" if stuck else ""
        if len(view.held) < settings.max_replicas:
            message += f"; no more can be created: {view.refusal}" if view.refusal else ""
            message += f"; {back_off}" if back_off else ""
        return WaitingReason.WORKERS_BUSY, message
    if stuck:
        return WaitingReason.WORKER_UNSCHEDULABLE, f"no node takes a worker of model {view.model.name}: {stuck[0]}"
    if view.refusal and not view.loading:
        return WaitingReason.WORKER_REFUSED, f"no worker of model {view.model.name} can be created: {view.refusal}"
    if blocked := [w.pod.blocked for w in starting if w.pod is not None and w.pod.blocked]:
        return WaitingReason.WORKER_CANNOT_START, f"a worker of model {view.model.name} cannot start: {blocked[0]}"
    if starting:
        # Not how far it is: this is written once, and would soon be wrong.
        message = f"a worker is loading model {view.model.name}; the model's status.workers.starts says how far it is"
        return WaitingReason.WORKER_STARTING, message
    if view.current(WorkerState.QUEUED):
        return WaitingReason.WORKER_QUEUED, f"Kueue has not admitted a worker to queue {settings.queue_name} yet"
    if len(view.held) >= settings.max_replicas:
        message = f"a worker of model {view.model.name} is going, and the next one gets its place once it has ended"
        return WaitingReason.WORKER_STARTING, f"{message}; maxReplicas is {settings.max_replicas}"
    if back_off:
        return WaitingReason.WORKER_BACK_OFF, back_off
    return WaitingReason.WORKER_STARTING, f"a worker of model {view.model.name} is being created"


def _back_off(view: ModelView, now: dt.datetime) -> str:
    """Say until when the next worker waits after crashes; empty where it need not."""
    crashes = view.crashes
    allowed = back_off_until(crashes)
    if allowed is None or now >= allowed:
        return ""
    message = f"{len(crashes)} workers of model {view.model.name} crashed in a row; the next one starts at "
    return f"{message}{allowed:%H:%M:%S} UTC. Last: {crashes[-1].crash}"

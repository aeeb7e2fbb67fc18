"""What a DiffusionModel's status says: can it be used, and if not, why. Pure."""

from __future__ import annotations

import datetime as dt

from kubediffusion.operator.scheduling import ModelView, back_off_until, bad_model
from kubediffusion.operator.workers import WorkerState
from kubediffusion.resources.conditions import ConditionStatus, ModelCondition, ModelReason, find, with_condition
from kubediffusion.resources.diffusion_model import DiffusionModelStatus, WorkerCounts


def model_status(view: ModelView, revision: str | None, now: dt.datetime) -> DiffusionModelStatus:
    """Give the status that a model should have.

    Args:
        view: What is observed of the model.
        revision: The revision that workers of today's template reported last, if any did.
        now: The time, for a condition that changes.
    """
    old = view.model.status
    status, reason, message = _availability(view)
    ready = view.current(WorkerState.READY)
    return DiffusionModelStatus(
        conditions=with_condition(
            old.conditions, ModelCondition.AVAILABLE, status, reason, message, now, view.model.metadata.generation
        ),
        workers=WorkerCounts(
            ready=len(ready),
            busy=sum(bool(view.jobs_of(w)) for w in ready),
            starting=len(view.current(WorkerState.STARTING, WorkerState.QUEUED)),
        ),
        queued=view.waiting_count,
        revision=revision or (old.revision if old.template_hash == view.template_hash else None),
        template_hash=view.template_hash,
        observed_generation=view.model.metadata.generation,
    )


def _availability(view: ModelView) -> tuple[ConditionStatus, ModelReason, str]:
    old = find(view.model.status.conditions, ModelCondition.AVAILABLE)
    failures = view.failures
    if ready := view.current(WorkerState.READY):
        count = f"{len(ready)} worker{'s' if len(ready) > 1 else ''}"
        return ConditionStatus.TRUE, ModelReason.READY, f"{count} ready"
    if (reason := bad_model(view)) is not None:
        return ConditionStatus.FALSE, ModelReason.LOAD_FAILED, reason
    if back_off_until(failures) is not None:
        message = f"{len(failures)} workers crashed in a row, the last with {failures[-1].crash}"
        return ConditionStatus.FALSE, ModelReason.WORKER_FAILED, message
    # Status speaks of one template: what was loaded under another says nothing of today's.
    same = view.model.status.template_hash == view.template_hash
    loaded = old is not None and same and old.reason in {ModelReason.READY, ModelReason.SCALED_TO_ZERO}
    if loaded:
        return ConditionStatus.TRUE, ModelReason.SCALED_TO_ZERO, "no worker is ready; the next job gets one"
    if view.refusal:
        return ConditionStatus.UNKNOWN, ModelReason.NOT_YET_LOADED, f"no worker can be created: {view.refusal}"
    return ConditionStatus.UNKNOWN, ModelReason.NOT_YET_LOADED, "no worker has loaded the model with this spec so far"

"""The statuses that the operator writes: from what a job says now to what it should say. Pure."""

from __future__ import annotations

import datetime as dt

from kubediffusion.operator.actions import Bind, Explain, Finish, Requeue
from kubediffusion.resources import recipe
from kubediffusion.resources.conditions import Condition, ConditionStatus, JobCondition, JobReason, with_condition
from kubediffusion.resources.generation_job import (
    GenerationJobStatus,
    JobError,
    Parameters,
    Phase,
)
from kubediffusion.resources.transitions import Writer, allowed


def next_status(
    action: Bind | Requeue | Finish | Explain, now: dt.datetime, seed: int, arrived: dt.datetime | None = None
) -> GenerationJobStatus:
    """Return the status that an action leads to.

    Args:
        action: What was decided.
        now: The time to write.
        seed: Seed for a job that has none yet.
        arrived: When the job was first seen, where that is known more exactly than from its creation timestamp.

    Raises:
        ValueError: The table of transitions forbids it; a defect of the scheduler, found before the API server does.
    """
    old = action.job.status
    queued_at = old.queued_at or arrived or action.job.metadata.creation_timestamp or now
    new = _next(action, now, seed).model_copy(update={"queued_at": queued_at})
    if not isinstance(action, Explain) and not allowed(Writer.OPERATOR, old.phase, new.phase):
        raise ValueError(f"{action.job.name}: the operator may not take a job from {old.phase} to {new.phase}")
    return new


def _next(action: Bind | Requeue | Finish | Explain, now: dt.datetime, seed: int) -> GenerationJobStatus:
    match action:
        case Bind():
            return _bound(action, now, seed)
        case Requeue():
            return _requeued(action, now)
        case Finish():
            return _finished(action, now)
        case Explain():
            return _explained(action, now)


def _bound(action: Bind, now: dt.datetime, seed: int) -> GenerationJobStatus:
    job, old = action.job, action.job.status
    conditions = _lasting(old.conditions)
    if conditions:
        # A job that was bound at once never had a Scheduled condition, and needs none.
        conditions = with_condition(
            conditions, JobCondition.SCHEDULED, ConditionStatus.TRUE, JobReason.BOUND, f"bound to {action.pod}", now
        )
    return old.model_copy(
        update={
            "phase": Phase.SCHEDULED,
            "conditions": conditions,
            "worker": action.pod,
            "attempt": old.attempt + 1,
            "retries": old.retries + int(action.counted),
            "progress": None,
            "start_time": None,
            "parameters": _parameters(action, seed),
            "observed_generation": job.metadata.generation,
        }
    )


def _lasting(conditions: tuple[Condition, ...]) -> tuple[Condition, ...]:
    """Leave out what an attempt said of its images: the next one has none yet."""
    return tuple(condition for condition in conditions if condition.type != JobCondition.UPLOADED)


def _parameters(action: Bind, seed: int) -> Parameters:
    """Resolve the recipe once, before the first attempt; a retry runs the same one."""
    earlier = action.job.status.parameters
    if earlier is not None and earlier.model == action.model.name:
        return earlier
    return recipe.resolve(action.job.spec, action.model, earlier.seed if earlier is not None else seed)


def _requeued(action: Requeue, now: dt.datetime) -> GenerationJobStatus:
    old = action.job.status
    return old.model_copy(
        update={
            "phase": Phase.PENDING,
            "conditions": with_condition(
                _lasting(old.conditions),
                JobCondition.SCHEDULED,
                ConditionStatus.FALSE,
                action.reason,
                action.message,
                now,
            ),
            "worker": None,
            "retries": old.retries + int(action.counted),
            "progress": None,
            "start_time": None,
        }
    )


def _finished(action: Finish, now: dt.datetime) -> GenerationJobStatus:
    old = action.job.status
    reason = action.code or JobReason.CANCELLED
    return old.model_copy(
        update={
            "phase": action.phase,
            "conditions": with_condition(
                old.conditions, JobCondition.FAILED, ConditionStatus.TRUE, reason, action.message, now
            ),
            "retries": old.retries + int(action.counted),
            "error": JobError(code=reason, message=action.message),
            "completion_time": now,
            "observed_generation": action.job.metadata.generation,
        }
    )


def _explained(action: Explain, now: dt.datetime) -> GenerationJobStatus:
    old = action.job.status
    return old.model_copy(
        update={
            "conditions": with_condition(
                old.conditions, JobCondition.SCHEDULED, ConditionStatus.FALSE, action.reason, action.message, now
            ),
        }
    )

"""Jobs whose model does not exist: how long they wait for it, and how they end. Pure."""

from __future__ import annotations

import datetime as dt

from kubediffusion.operator.actions import Action, Explain, Finish
from kubediffusion.operator.job_status import model_missing, model_not_found
from kubediffusion.operator.views import Decision, NamespaceView, SchedulerOptions
from kubediffusion.resources.conditions import JobConditionType, WaitingReason, find_condition
from kubediffusion.resources.failures import ErrorCode
from kubediffusion.resources.generation_job import GenerationJob, Phase

ORPHANS_A_PASS = 200
"""Waiting jobs of one missing model that a pass decides on."""


def decide_orphaned_jobs(
    view: NamespaceView, now: dt.datetime, options: SchedulerOptions, explanations: int
) -> Decision:
    """Decide which jobs without a model fail, and which are told what they wait for.

    Args:
        view: What is observed of the namespace.
        now: The time.
        options: Settings.
        explanations: How many jobs may be told why they wait.
    """
    actions: list[Action] = []
    recheck_at: dt.datetime | None = None
    for orphan in view.orphaned_jobs:
        job = orphan.job
        due = orphan.missing_since + options.model_grace
        if now >= due:
            message = model_not_found(job, view.name, view.models)
            actions.append(Finish(job, Phase.FAILED, ErrorCode.MODEL_NOT_FOUND, message))
            continue
        recheck_at = min(recheck_at or due, due)
        if explanations > 0 and _is_unexplained(job):
            explanations -= 1
            actions.append(Explain(job, WaitingReason.MODEL_NOT_FOUND, model_missing(job, view.name)))
    return Decision(tuple(actions), recheck_at)


def _is_unexplained(job: GenerationJob) -> bool:
    return (
        job.status.phase is Phase.PENDING and find_condition(job.status.conditions, JobConditionType.SCHEDULED) is None
    )

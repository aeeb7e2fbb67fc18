"""Jobs that are in no model's queue: their model does not exist, or they are suspended. Pure."""

from __future__ import annotations

import datetime as dt

from kubediffusion.operator.actions import Action, Explain, Finish
from kubediffusion.operator.state import NamespaceState
from kubediffusion.operator.views import Decision, SchedulerOptions
from kubediffusion.resources.conditions import JobCondition, WaitingReason, find
from kubediffusion.resources.errors import ErrorCode
from kubediffusion.resources.generation_job import GenerationJob, Phase

ORPHANS_A_PASS = 200
"""Waiting jobs of one missing model that a pass looks at."""


def decide_orphaned_jobs(
    state: NamespaceState, now: dt.datetime, options: SchedulerOptions, explanations: int
) -> Decision:
    """Fail the jobs whose model has been missed for too long, and have the others say what they wait for.

    Args:
        state: What is known of the namespace.
        now: The time.
        options: Settings.
        explanations: How many jobs may be told why they wait.
    """
    actions: list[Action] = []
    recheck: dt.datetime | None = None
    for job, missing_since in state.orphans(now, ORPHANS_A_PASS):
        wanted = f"DiffusionModel {job.spec.model!r}" if job.spec.model else "default DiffusionModel"
        due = missing_since + options.model_grace
        if now >= due:
            there = ", ".join(sorted(state.models)) or "none"
            message = f"Model not available: no {wanted} in namespace {state.name} (there: {there})"
            actions.append(Finish(job, Phase.FAILED, ErrorCode.MODEL_NOT_FOUND, message))
            continue
        recheck = min(recheck or due, due)
        if explanations > 0 and _silent(job):
            explanations -= 1
            message = f"no {wanted} exists in {state.name} yet"
            actions.append(Explain(job, WaitingReason.MODEL_NOT_FOUND, message))
    return Decision(tuple(actions), recheck)


def _silent(job: GenerationJob) -> bool:
    return job.status.phase is Phase.PENDING and find(job.status.conditions, JobCondition.SCHEDULED) is None


def explain_suspended_jobs(state: NamespaceState, now: dt.datetime, explanations: int) -> Decision:
    """Have suspended jobs say so.

    Args:
        state: What is known of the namespace.
        now: The time.
        explanations: How many jobs may be told why they wait; the next pass goes on.
    """
    silent = state.unexplained_suspended_jobs
    told = silent[: max(explanations, 0)]
    actions = (Explain(job, WaitingReason.SUSPENDED, "spec.suspend is true") for job in told)
    return Decision(tuple(actions), now + dt.timedelta(seconds=1) if len(told) < len(silent) else None)

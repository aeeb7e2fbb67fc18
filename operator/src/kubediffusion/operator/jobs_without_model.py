"""Jobs whose model does not exist: how long they wait for it, and how they end. Pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable
from typing import TypeVar

from kubediffusion.operator.actions import Action, Explain, Finish
from kubediffusion.operator.job_status import model_missing, model_not_found
from kubediffusion.operator.snapshots import (
    Decision,
    JobWithoutAdapter,
    JobWithoutModel,
    NamespaceSnapshot,
    SchedulerOptions,
)
from kubediffusion.resources.conditions import JobConditionType, WaitingReason, find_condition
from kubediffusion.resources.failures import ErrorCode
from kubediffusion.resources.generation_job import GenerationJob, Phase

T = TypeVar("T", JobWithoutModel, JobWithoutAdapter)

JOBS_A_PASS = 200
"""Waiting jobs of one missing model that a pass decides on."""


def decide_jobs_without_model(
    snapshot: NamespaceSnapshot, now: dt.datetime, options: SchedulerOptions, explanations: int
) -> Decision:
    """Decide which jobs without a model fail, and which are told what they wait for.

    Args:
        snapshot: What is observed of the namespace.
        now: The time.
        options: Settings.
        explanations: How many jobs may be told why they wait.
    """
    return decide_on_missing(
        snapshot.jobs_without_model,
        now,
        options.model_grace,
        explanations,
        lambda item: Finish(
            item.job,
            Phase.FAILED,
            ErrorCode.MODEL_NOT_FOUND,
            model_not_found(item.job, snapshot.name, snapshot.models),
        ),
        lambda item: (
            Explain(item.job, WaitingReason.MODEL_NOT_FOUND, model_missing(item.job, snapshot.name))
            if _is_unexplained(item.job)
            else None
        ),
    )


def decide_on_missing(
    waiting: Iterable[T],
    now: dt.datetime,
    grace: dt.timedelta,
    explanations: int,
    fail: Callable[[T], Finish],
    explain: Callable[[T], Explain | None],
) -> Decision:
    """Decide which jobs that name something which does not exist fail, and which are told what they wait for.

    Args:
        waiting: The jobs, and since when what each names has been missing.
        now: The time.
        grace: How long a job waits before it fails.
        explanations: How many jobs may be told why they wait.
        fail: Returns how a job ends.
        explain: Returns what a job is told; None where it says so already.
    """
    actions: list[Action] = []
    recheck_at: dt.datetime | None = None
    for item in waiting:
        due = item.missing_since + grace
        if now >= due:
            actions.append(fail(item))
            continue
        recheck_at = min(recheck_at or due, due)
        if explanations > 0 and (said := explain(item)) is not None:
            explanations -= 1
            actions.append(said)
    return Decision(tuple(actions), recheck_at)


def _is_unexplained(job: GenerationJob) -> bool:
    return (
        job.status.phase is Phase.PENDING and find_condition(job.status.conditions, JobConditionType.SCHEDULED) is None
    )

"""Jobs that name an adapter which does not exist: how long they wait for it, and how they end. Pure."""

from __future__ import annotations

import datetime as dt

from kubediffusion.operator.actions import Action, Explain, Finish
from kubediffusion.operator.views import Decision, NamespaceView, SchedulerOptions
from kubediffusion.resources.conditions import JobConditionType, WaitingReason, find_condition
from kubediffusion.resources.failures import ErrorCode
from kubediffusion.resources.generation_job import GenerationJob, Phase


def decide_adapterless_jobs(
    view: NamespaceView, now: dt.datetime, options: SchedulerOptions, explanations: int
) -> Decision:
    """Decide which jobs without an adapter fail, and which are told what they wait for: as without a model.

    Args:
        view: What is observed of the namespace.
        now: The time.
        options: Settings.
        explanations: How many jobs may be told why they wait.
    """
    actions: list[Action] = []
    recheck_at: dt.datetime | None = None
    for item in view.adapterless_jobs:
        due = item.missing_since + options.model_grace
        if now >= due:
            there = ", ".join(sorted(view.adapters)) or "none"
            message = f"spec.adapters: no LoRAAdapter {item.adapter!r} in namespace {view.name} (there: {there})"
            actions.append(Finish(item.job, Phase.FAILED, ErrorCode.INVALID_ADAPTER, message))
            continue
        recheck_at = min(recheck_at or due, due)
        if explanations > 0 and not _says_so(item.job):
            explanations -= 1
            message = f"no LoRAAdapter {item.adapter!r} exists in {view.name} yet"
            actions.append(Explain(item.job, WaitingReason.ADAPTER_NOT_FOUND, message))
    return Decision(tuple(actions), recheck_at)


def _says_so(job: GenerationJob) -> bool:
    said = find_condition(job.status.conditions, JobConditionType.SCHEDULED)
    return job.status.phase is not Phase.PENDING or (
        said is not None and said.reason == WaitingReason.ADAPTER_NOT_FOUND
    )

"""Jobs that name an adapter which does not exist: how long they wait for it, and how they end. Pure."""

from __future__ import annotations

import datetime as dt

from kubediffusion.operator.actions import Explain, Finish
from kubediffusion.operator.jobs_without_model import decide_on_missing
from kubediffusion.operator.snapshots import Decision, JobWithoutAdapter, NamespaceSnapshot, SchedulerOptions
from kubediffusion.resources.conditions import JobConditionType, WaitingReason, find_condition
from kubediffusion.resources.failures import ErrorCode
from kubediffusion.resources.generation_job import GenerationJob, Phase


def decide_jobs_without_adapter(
    snapshot: NamespaceSnapshot, now: dt.datetime, options: SchedulerOptions, explanations: int
) -> Decision:
    """Decide which jobs without an adapter fail, and which are told what they wait for: as without a model.

    Args:
        snapshot: What is observed of the namespace.
        now: The time.
        options: Settings.
        explanations: How many jobs may be told why they wait.
    """

    def fail(item: JobWithoutAdapter) -> Finish:
        there = ", ".join(sorted(snapshot.adapters)) or "none"
        message = f"spec.adapters: no LoRAAdapter {item.adapter!r} in namespace {snapshot.name} (there: {there})"
        return Finish(item.job, Phase.FAILED, ErrorCode.INVALID_ADAPTER, message)

    def explain(item: JobWithoutAdapter) -> Explain | None:
        if _says_so(item.job):
            return None
        message = f"no LoRAAdapter {item.adapter!r} exists in {snapshot.name} yet"
        return Explain(item.job, WaitingReason.ADAPTER_NOT_FOUND, message)

    return decide_on_missing(snapshot.jobs_without_adapter, now, options.model_grace, explanations, fail, explain)


def _says_so(job: GenerationJob) -> bool:
    said = find_condition(job.status.conditions, JobConditionType.SCHEDULED)
    return job.status.phase is not Phase.PENDING or (
        said is not None and said.reason == WaitingReason.ADAPTER_NOT_FOUND
    )

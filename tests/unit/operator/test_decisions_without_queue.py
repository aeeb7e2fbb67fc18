"""Decisions on jobs that are in no queue: without a model, suspended, to be ended; and what is said when one fails."""

from __future__ import annotations

import datetime as dt

import pytest

from kubediffusion.operator import job_status, model_status
from kubediffusion.operator.actions import Explain, Finish
from kubediffusion.operator.job_status import explain_suspended_jobs
from kubediffusion.operator.jobs_without_adapter import decide_jobs_without_adapter
from kubediffusion.operator.jobs_without_model import decide_jobs_without_model
from kubediffusion.operator.scheduling import decide_termination
from kubediffusion.operator.snapshots import JobWithoutAdapter, JobWithoutModel, NamespaceSnapshot, SchedulerOptions
from kubediffusion.resources.conditions import ConditionStatus, WaitingReason, find_condition, with_condition
from kubediffusion.resources.failures import ErrorCode
from kubediffusion.resources.generation_job import GenerationJob, GenerationJobStatus, Phase
from kubediffusion.resources.testing import NAMESPACE, NOW, bound_job, job, model, present

OPTIONS = SchedulerOptions(model_grace=dt.timedelta(seconds=60))


def orphan(item: GenerationJob, seconds: float) -> JobWithoutModel:
    return JobWithoutModel(item, NOW - dt.timedelta(seconds=seconds))


def waiting(*orphans: JobWithoutModel) -> NamespaceSnapshot:
    return NamespaceSnapshot(NAMESPACE, models=("other",), jobs_without_model=orphans)


def test_a_job_without_its_model_is_told_so_and_fails_after_the_grace() -> None:
    late, new = orphan(job("late", model="emoji"), 60), orphan(job("new", model="emoji"), 20)
    decision = decide_jobs_without_model(waiting(late, new), NOW, OPTIONS, 5)
    missing = f"DiffusionModel 'emoji' in namespace {NAMESPACE}"
    assert decision.actions == (
        Finish(late.job, Phase.FAILED, ErrorCode.MODEL_NOT_FOUND, f"Model not available: no {missing} (there: other)"),
        Explain(new.job, WaitingReason.MODEL_NOT_FOUND, f"no DiffusionModel 'emoji' exists in {NAMESPACE} yet"),
    )
    assert decision.recheck_at == NOW + dt.timedelta(seconds=40)


def test_as_many_jobs_without_a_model_are_told_as_may_be_and_each_once() -> None:
    conditions = with_condition((), "Scheduled", ConditionStatus.FALSE, WaitingReason.MODEL_NOT_FOUND, "", NOW)
    told = orphan(job("told", status=GenerationJobStatus(conditions=conditions)), 1)
    orphans = [told, *(orphan(job(name), 1) for name in "abc"), orphan(bound_job("bound", worker="pod"), 1)]
    explained = decide_jobs_without_model(waiting(*orphans), NOW, OPTIONS, 2).actions
    assert [action.job.name for action in explained if isinstance(action, Explain)] == ["a", "b"]
    assert decide_jobs_without_model(waiting(*orphans), NOW, OPTIONS, 0).actions == ()


def adapterless(*items: GenerationJob, seconds: float) -> NamespaceSnapshot:
    since = NOW - dt.timedelta(seconds=seconds)
    jobs = tuple(JobWithoutAdapter(item, "crayon", since) for item in items)
    return NamespaceSnapshot(NAMESPACE, adapters=("oil", "ink"), jobs_without_adapter=jobs)


def test_a_job_without_its_adapter_is_told_so_and_fails_after_the_grace() -> None:
    new = job(adapters=[{"name": "crayon"}])
    decision = decide_jobs_without_adapter(adapterless(new, seconds=20), NOW, OPTIONS, 5)
    message = f"no LoRAAdapter 'crayon' exists in {NAMESPACE} yet"
    assert decision.actions == (Explain(new, WaitingReason.ADAPTER_NOT_FOUND, message),)
    assert decision.recheck_at == NOW + dt.timedelta(seconds=40)
    (finish,) = decide_jobs_without_adapter(adapterless(new, seconds=60), NOW, OPTIONS, 5).actions
    assert isinstance(finish, Finish)
    assert finish.code is ErrorCode.INVALID_ADAPTER
    assert finish.message == f"spec.adapters: no LoRAAdapter 'crayon' in namespace {NAMESPACE} (there: ink, oil)"


def test_as_many_jobs_without_an_adapter_are_told_as_may_be_and_each_once() -> None:
    def saying(name: str, reason: str) -> GenerationJob:
        conditions = with_condition((), "Scheduled", ConditionStatus.FALSE, reason, "", NOW)
        return job(name, status=GenerationJobStatus(conditions=conditions))

    told, busy = saying("told", WaitingReason.ADAPTER_NOT_FOUND), saying("busy", WaitingReason.WORKERS_BUSY)
    snapshot = adapterless(told, busy, job("a"), job("b"), seconds=1)
    explained = decide_jobs_without_adapter(snapshot, NOW, OPTIONS, 2).actions
    assert [action.job.name for action in explained if isinstance(action, Explain)] == ["busy", "a"]
    assert decide_jobs_without_adapter(snapshot, NOW, OPTIONS, 0).actions == ()


def test_suspended_jobs_are_told_as_many_at_a_time_as_may_be() -> None:
    snapshot = NamespaceSnapshot(NAMESPACE, suspended_jobs=(job("a", suspend=True), job("b", suspend=True)))
    first = explain_suspended_jobs(snapshot, NOW, 1)
    assert [action.job.name for action in first.actions if isinstance(action, Explain)] == ["a"]
    assert first.recheck_at == NOW + dt.timedelta(seconds=1)
    both = explain_suspended_jobs(snapshot, NOW, 5)
    assert (len(both.actions), both.recheck_at) == (2, None)
    assert explain_suspended_jobs(snapshot, NOW, -1).actions == ()


def deleted(item: GenerationJob) -> GenerationJob:
    return item.model_copy(update={"metadata": item.metadata.model_copy(update={"deletion_timestamp": NOW})})


@pytest.mark.parametrize(
    ("item", "phase", "code"),
    [
        (job(cancel=True), Phase.CANCELLED, None),
        (deleted(job()), Phase.CANCELLED, None),
        (job(age=10, active_deadline_seconds=10), Phase.FAILED, ErrorCode.DEADLINE_EXCEEDED),
        # Whoever cancelled it is told that, whatever else ends it.
        (deleted(job(cancel=True, age=10, active_deadline_seconds=1)), Phase.CANCELLED, None),
    ],
    ids=["cancelled", "deleted", "late", "all"],
)
def test_a_job_that_is_to_end_does(item: GenerationJob, phase: Phase, code: ErrorCode | None) -> None:
    finish = present(decide_termination(item, NOW))
    assert (finish.job, finish.phase, finish.code) == (item, phase, code)


def test_a_job_within_its_deadline_goes_on() -> None:
    assert decide_termination(job(age=10, active_deadline_seconds=11), NOW) is None
    assert decide_termination(job(), NOW) is None


def test_a_job_at_which_the_operator_fails_says_so_unless_it_is_bound() -> None:
    said = find_condition(job_status.error_status(job(), "it failed", NOW).conditions, "Scheduled")
    assert (present(said).reason, present(said).message) == (WaitingReason.INTERNAL_ERROR, "it failed")
    bound = bound_job("bound", worker="pod")
    assert job_status.error_status(bound, "it failed", NOW) == bound.status


def test_a_model_at_which_the_operator_fails_says_that_nobody_knows() -> None:
    seen = model()
    status = model_status.error_status(seen, ValueError("a secret"), NOW)
    said = present(find_condition(status.conditions, "Available"))
    assert (said.status, said.reason) == (ConditionStatus.UNKNOWN, "InternalError")
    assert "ValueError" in said.message
    assert "secret" not in said.message

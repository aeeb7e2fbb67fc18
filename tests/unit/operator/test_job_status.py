"""The status that each decision leads to."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubediffusion.operator.actions import Bind, Explain, Finish, Requeue
from kubediffusion.operator.job_status import next_status
from kubediffusion.resources.conditions import ConditionStatus, WaitingReason, find_condition, with_condition
from kubediffusion.resources.diffusion_model import DiffusionModel, JobDefaults
from kubediffusion.resources.failures import ErrorCode
from kubediffusion.resources.generation_job import GenerationJob, GenerationJobStatus, JobProgress, Phase
from kubediffusion.resources.testing import NOW, bound_job, job, model, present
from kubediffusion.resources.transitions import TERMINAL, Writer, allowed

LATER = NOW + dt.timedelta(seconds=30)
SEED = 1234

StatusAction = Bind | Requeue | Finish | Explain


def after(action: StatusAction, now: dt.datetime = NOW, seed: int = SEED) -> GenerationJobStatus:
    return next_status(action, now, seed)


def resting(item: GenerationJob, status: GenerationJobStatus) -> GenerationJob:
    return item.model_copy(update={"status": status})


def bound_after(
    item: GenerationJob, on: DiffusionModel | None = None, costs_retry: bool = False, seed: int = SEED
) -> GenerationJob:
    return resting(item, after(Bind(item, on or model(), "pod-2", costs_retry=costs_retry), seed=seed))


def test_a_bound_job_names_its_worker_and_counts_the_attempt() -> None:
    status = after(Bind(job(), model(), "pod-1"))
    assert (status.phase, status.worker, status.attempt, status.retries) == (Phase.SCHEDULED, "pod-1", 1, 0)
    assert status.observed_generation == 1


def test_waiting_began_with_the_jobs_creation() -> None:
    status = after(Bind(job(age=10), model(), "pod-1"))
    assert status.queued_at == NOW - dt.timedelta(seconds=10)


def test_a_job_that_is_bound_at_once_carries_no_condition() -> None:
    assert after(Bind(job(), model(), "pod-1")).conditions == ()


def test_a_job_that_had_said_why_it_waits_says_that_it_does_no_more() -> None:
    waiting = resting(job(), after(Explain(job(), WaitingReason.WORKERS_BUSY, "all are busy")))
    condition = present(find_condition(after(Bind(waiting, model(), "pod-1"), LATER).conditions, "Scheduled"))
    assert (condition.status, condition.reason, condition.last_transition_time) == (
        ConditionStatus.TRUE,
        "Bound",
        LATER,
    )
    assert "pod-1" in condition.message


def test_the_recipe_is_resolved_with_the_first_binding() -> None:
    status = after(Bind(job(num_images=2), model(defaults=JobDefaults(guidance_scale=3.0)), "pod-1"))
    recipe = present(status.parameters)
    assert (recipe.model, recipe.seed, recipe.guidance_scale, recipe.num_images) == ("emoji", SEED, 3.0, 2)


def test_a_retry_runs_the_very_recipe_of_the_first_attempt() -> None:
    """Also when the model's defaults have changed meanwhile."""
    first = bound_after(job())
    other = model(defaults=JobDefaults(num_inference_steps=4, guidance_scale=1.0))
    second = bound_after(resting(first, after(Requeue(first, True, "Retrying", ""))), other, seed=99)
    assert second.status.parameters == first.status.parameters
    assert second.status.attempt == 2


def test_on_another_model_the_recipe_is_resolved_anew_and_the_seed_is_kept() -> None:
    first = bound_after(job())
    moved = bound_after(first, model("other", defaults=JobDefaults(num_inference_steps=4)), seed=99)
    recipe = present(moved.status.parameters)
    assert (recipe.model, recipe.num_inference_steps, recipe.seed) == ("other", 4, SEED)


@given(st.lists(st.sampled_from(["bind", "requeue", "explain"]), max_size=8), st.none() | st.integers(0, 9))
def test_the_seed_is_drawn_once_and_attempts_only_grow(steps: list[str], named: int | None) -> None:
    item, seeds, attempts = job(seed=named), set(), [0]
    for n, step in enumerate(steps):
        action: StatusAction
        if step == "bind":
            action = Bind(item, model(), f"pod-{n}")
        elif step == "requeue" and item.status.phase is Phase.SCHEDULED:
            action = Requeue(item, True, "Retrying", "it is gone")
        elif step == "explain" and item.status.phase is Phase.PENDING:
            action = Explain(item, "WorkersBusy", "all are busy")
        else:
            continue
        item = resting(item, after(action, seed=1000 + n))
        attempts.append(item.status.attempt)
        if item.status.parameters is not None:
            seeds.add(item.status.parameters.seed)
    assert len(seeds) <= 1
    assert named is None or seeds <= {named}
    assert attempts == sorted(attempts)


@pytest.mark.parametrize("costs_retry", [True, False])
@pytest.mark.parametrize("phase", [Phase.SCHEDULED, Phase.RUNNING])
def test_a_requeued_job_is_nobodys_and_starts_over(phase: Phase, costs_retry: bool) -> None:
    taken = bound_job(worker="pod-1", phase=phase)
    taken = resting(taken, taken.status.model_copy(update={"progress": JobProgress.of(3, 25), "start_time": NOW}))
    status = after(Requeue(taken, costs_retry, WaitingReason.RETRYING, "worker pod-1 is gone"))
    assert (status.phase, status.worker, status.progress, status.start_time) == (Phase.PENDING, None, None, None)
    assert (status.attempt, status.retries) == (1, int(costs_retry))
    condition = present(find_condition(status.conditions, "Scheduled"))
    assert (condition.status, condition.reason) == (ConditionStatus.FALSE, "Retrying")


def test_a_job_that_goes_straight_to_another_worker_starts_over_too() -> None:
    taken = bound_job(worker="pod-1", phase=Phase.RUNNING)
    taken = resting(taken, taken.status.model_copy(update={"progress": JobProgress.of(3, 25), "start_time": NOW}))
    status = bound_after(taken, costs_retry=True).status
    assert (status.phase, status.worker, status.attempt, status.retries) == (Phase.SCHEDULED, "pod-2", 2, 1)
    assert (status.progress, status.start_time) == (None, None)


def test_what_an_attempt_said_of_its_images_goes_with_it() -> None:
    conditions = with_condition((), "Uploaded", ConditionStatus.FALSE, "StorageUnavailable", "trying again", NOW)
    taken = bound_job(worker="pod-1", phase=Phase.RUNNING)
    taken = resting(taken, taken.status.model_copy(update={"conditions": conditions}))
    for status in (after(Requeue(taken, True, "Retrying", "it is gone")), bound_after(taken).status):
        assert find_condition(status.conditions, "Uploaded") is None


def test_a_failed_job_says_why_to_programs_people_and_kubectl_wait() -> None:
    failed = after(Finish(job(), Phase.FAILED, ErrorCode.DEADLINE_EXCEEDED, "not finished in 60 s"))
    assert (failed.phase, failed.completion_time) == (Phase.FAILED, NOW)
    assert (present(failed.error).code, present(failed.error).message) == ("DeadlineExceeded", "not finished in 60 s")
    condition = present(find_condition(failed.conditions, "Failed"))
    assert (condition.status, condition.reason, condition.message) == (
        "True",
        "DeadlineExceeded",
        "not finished in 60 s",
    )


def test_a_cancelled_job_says_that_it_was() -> None:
    cancelled = after(Finish(job(cancel=True), Phase.CANCELLED, None, "cancelled by spec.cancel"))
    assert (cancelled.phase, present(cancelled.error).code) == (Phase.CANCELLED, "Cancelled")


def test_a_job_that_ends_while_bound_still_names_its_worker() -> None:
    taken = bound_job(worker="pod-1", phase=Phase.RUNNING)
    assert after(Finish(taken, Phase.CANCELLED, None, "cancelled")).worker == "pod-1"


def test_an_explanation_changes_nothing_but_the_condition() -> None:
    before = job(age=10).status
    status = after(Explain(job(age=10), WaitingReason.WORKERS_BUSY, "all are busy"))
    said = present(find_condition(status.conditions, "Scheduled"))
    assert (said.reason, said.message) == ("WorkersBusy", "all are busy")
    changed = {"conditions": (), "queued_at": None}
    assert status.model_copy(update=changed) == before


@given(st.sampled_from(Phase), st.sampled_from(["bind", "requeue", "fail", "cancel"]), st.sampled_from([None, "pod-1"]))
def test_what_the_table_of_transitions_forbids_is_a_defect_and_not_a_write(
    phase: Phase, what: str, worker: str | None
) -> None:
    item = job(status=GenerationJobStatus(phase=phase, worker=worker))
    actions: dict[str, tuple[StatusAction, Phase]] = {
        "bind": (Bind(item, model(), "pod-2"), Phase.SCHEDULED),
        "requeue": (Requeue(item, False, "Retrying", ""), Phase.PENDING),
        "fail": (Finish(item, Phase.FAILED, ErrorCode.INTERNAL, ""), Phase.FAILED),
        "cancel": (Finish(item, Phase.CANCELLED, None, ""), Phase.CANCELLED),
    }
    action, new = actions[what]
    if allowed(Writer.OPERATOR, phase, new):
        assert after(action).phase is new
    else:
        with pytest.raises(ValueError, match="the operator may not take a job"):
            after(action)


@pytest.mark.parametrize("phase", sorted(TERMINAL))
def test_the_table_frees_no_finished_job(phase: Phase) -> None:
    with pytest.raises(ValueError, match=f"from {phase}"):
        after(Bind(job(status=GenerationJobStatus(phase=phase)), model(), "pod-1"))

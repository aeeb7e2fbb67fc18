"""Which jobs the worker has, as events of the watch come in."""

from __future__ import annotations

import dataclasses
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kubediffusion.resources.pipeline_facts import PipelineDefaults, PipelineFacts
from kubediffusion.resources.testing import model, present
from kubediffusion.worker import reports
from kubediffusion.worker.assignments import Assignment, Assignments
from kubediffusion.worker.engine import ImagePlan
from unit.worker.worker_builders import NOW, WORKER, bound_job, picture


def assigned(**changes: Any) -> tuple[Assignments, Assignment]:
    assignments = Assignments(WORKER)
    job = bound_job(**changes)
    assignments.observe(job, False)
    return assignments, present(assignments.get(job.uid))


def test_a_bound_job_is_ours() -> None:
    assignments, assignment = assigned(parameters={"numImages": 2})
    assert [a.name for a in assignments] == ["job"]
    assert (assignment.remaining, assignment.sampling.steps) == (2, 10)


def test_the_first_job_gets_the_pipelines_own_where_the_operator_knew_nothing_of_it() -> None:
    facts = PipelineFacts(name="FluxPipeline", defaults=PipelineDefaults(num_inference_steps=28, guidance_scale=3.5))
    assignments = Assignments(WORKER, model("m").with_pipeline(facts))
    guessed: dict[str, Any] = {"numInferenceSteps": 50, "guidanceScale": 7.5}
    assignments.observe(bound_job("none", parameters=guessed), False)
    assignments.observe(bound_job("own", parameters=guessed, **guessed), False)
    shapes = {assignment.name: assignment.sampling for assignment in assignments}
    assert (shapes["none"].steps, shapes["none"].guidance) == (28, 3.5)
    assert (shapes["own"].steps, shapes["own"].guidance) == (50, 7.5)
    cold = present(assignments.get("uid-none"))
    running = reports.running(cold.job, cold)
    assert present(running.parameters).num_inference_steps == 28


def test_a_job_of_another_worker_is_not_ours() -> None:
    assignments = Assignments(WORKER)
    assignments.observe(bound_job(status={"worker": "worker-b"}), False)
    assert len(assignments) == 0


def test_a_job_that_ends_cancels_or_is_deleted_is_dropped() -> None:
    each: tuple[dict[str, Any], ...] = (
        {"cancel": True},
        {"status": {"phase": "Cancelled"}},
        {"status": {"worker": "worker-b"}},
        {"metadata": {"deletionTimestamp": NOW}},
    )
    for changes in each:
        assignments, assignment = assigned()
        assert assignments.observe(bound_job(version=2, **changes), False) is assignment
        assert assignment.dropped
        assert len(assignments) == 0


def test_a_new_attempt_replaces_the_old_one() -> None:
    assignments, old = assigned()
    assert assignments.observe(bound_job(version=2, status={"attempt": 2}), False) is old
    new = present(assignments.get("uid-job"))
    assert (old.dropped, new.dropped, new.binding.attempt) == (True, False, 2)


def test_our_own_report_does_not_drop_the_job() -> None:
    assignments, assignment = assigned()
    assignment.finishing = True
    assert assignments.observe(bound_job(version=2, status={"phase": "Succeeded"}), True) is None
    assert not assignment.dropped
    assignments.remove(assignment)
    assert len(assignments) == 0


def test_a_late_event_does_not_start_a_finished_job_again() -> None:
    assignments, assignment = assigned()
    assignment.finishing = True
    assignments.remove(assignment)
    # The watch lags: it still says Running.
    assignments.observe(bound_job(version=2, status={"phase": "Running"}), False)
    assert len(assignments) == 0
    # Bound again later: a new attempt.
    assignments.observe(bound_job(version=4, status={"attempt": 2}), False)
    assert len(assignments) == 1


def test_nothing_is_remembered_of_jobs_that_left() -> None:
    assignments, assignment = assigned()
    assignment.finishing = True
    assignments.remove(assignment)
    assignments.observe(bound_job(version=2), True)
    # Even the same attempt would be taken as a new one: what ended is forgotten with its job.
    assignments.observe(bound_job(version=3), False)
    assert len(assignments) == 1


def test_an_older_state_does_not_replace_a_newer_one() -> None:
    assignments, assignment = assigned(version=5)
    assignments.observe(bound_job(version=4, priority=9), False)
    assert assignment.job.spec.priority is None
    assignments.observe(bound_job(version=6, priority=9), False)
    assert assignment.candidate(ImagePlan(0, 1)).priority == 9


def test_images_are_taken_in_order_with_a_seed_each() -> None:
    _, assignment = assigned(parameters={"numImages": 3, "negativePrompt": "dog"})
    tasks = (*assignment.take_requests(2, NOW, 0.0), *assignment.take_requests(1, NOW, 5.0))
    assert [(task.id.index, task.seed) for task in tasks] == [(0, 5), (1, 6), (2, 7)]
    assert {task.negative_prompt for task in tasks} == {"dog"}
    assert assignment.remaining == 0


def test_inference_counts_the_spans_in_the_engine() -> None:
    _, assignment = assigned(parameters={"numImages": 2})
    assignment.take_requests(1, NOW, 0.0)
    assignment.record_output(0, picture(), 2.0)
    assignment.take_requests(1, NOW, 10.0)
    assignment.record_output(1, picture(), 13.0)
    assert assignment.inference == 5.0
    assert not assignment.computing


def test_all_but_the_pixels_of_what_the_engine_made_is_kept() -> None:
    _, assignment = assigned()
    assignment.take_requests(1, NOW, 0.0)
    made = picture(scheduler="UniPCMultistepScheduler", flagged=True, warnings=("cut",), engine="diffusers")
    # A field of its own value each: one that is left out would show.
    defaults = {field.name: field.default for field in dataclasses.fields(made)}
    assert all(getattr(made, name) != default for name, default in defaults.items())
    assignment.record_output(0, made, 1.0)
    assert assignment.outputs[0] == dataclasses.replace(made, rgb=b"")


def test_progress_is_the_average_of_the_images() -> None:
    _, assignment = assigned(parameters={"numImages": 2})
    assignment.take_requests(1, NOW, 0.0)
    assignment.steps[0] = 9
    assert assignment.progress.summary == "4/10"
    assignment.record_output(0, picture(), 1.0)
    assert assignment.progress.summary == "5/10"
    assignment.take_requests(1, NOW, 1.0)
    assignment.record_output(1, picture(), 2.0)
    assert assignment.progress.summary == "10/10"


def test_a_prompt_does_not_show_in_what_is_logged() -> None:
    _, assignment = assigned(prompt="private wish", parameters={"negativePrompt": "private fear"})
    assert "private" not in repr(assignment.take_requests(1, NOW, 0.0))


EVENTS = st.tuples(st.sampled_from(["mine", "other", "cancel", "gone", "close"]), st.integers(1, 2), st.integers(1, 3))


@given(st.lists(EVENTS, max_size=40))
def test_any_sequence_keeps_one_live_attempt_a_job_and_never_restarts_an_ended_one(
    events: list[tuple[str, int, int]],
) -> None:
    assignments = Assignments(WORKER)
    attempts = {1: 1, 2: 1}
    ended: set[tuple[str, int]] = set()
    for version, (event, number, step) in enumerate(events, start=1):
        uid = f"uid-job-{number}"
        if event == "mine" and step == 3:
            attempts[number] += 1
        live = assignments.get(uid)
        if event == "close":
            if live is not None:
                live.finishing = True
                assignments.remove(live)
                ended.add((uid, live.binding.attempt))
            continue
        ways: dict[str, dict[str, Any]] = {"other": {"status": {"worker": "worker-b"}}, "cancel": {"cancel": True}}
        changes = ways.get(event, {})
        changes.setdefault("status", {})
        changes["status"] = {"attempt": attempts[number], **changes["status"]}
        dropped = assignments.observe(bound_job(f"job-{number}", version, **changes), event == "gone")
        if event == "gone":
            ended = {end for end in ended if end[0] != uid}
        assert dropped is None or dropped.dropped
        for assignment in assignments:
            assert not assignment.dropped
            assert (assignment.binding.uid, assignment.binding.attempt) not in ended
        if event != "mine":
            assert assignments.get(uid) is None

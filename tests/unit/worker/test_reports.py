"""What the worker writes into a status, and the fence around it."""

from __future__ import annotations

import copy
import datetime as dt
from base64 import b64encode
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import pytest

from kubediffusion.resources.conditions import ConditionStatus, find_condition
from kubediffusion.resources.failures import ErrorCode, JobFailure
from kubediffusion.resources.generation_job import GenerationJob, GenerationJobStatus, Image, Phase
from kubediffusion.resources.redaction import Redactor
from kubediffusion.resources.testing import present
from kubediffusion.resources.transitions import Writer, allowed
from kubediffusion.worker import reports
from kubediffusion.worker.assignments import Assignment, Assignments
from unit.worker.worker_builders import INFO, NOW, WORKER, bound_job, picture

LATER = NOW + dt.timedelta(seconds=3)


class RefusedError(Exception):
    """A test of the patch failed."""


def apply(job: GenerationJob, patch: reports.Patch) -> GenerationJob:
    """Apply a JSON Patch as the API server does: whole or not at all."""
    body: dict[str, Any] = copy.deepcopy(job.to_wire())
    for step in patch:
        *path, last = step["path"].strip("/").split("/")
        parent: Any = body
        for key in path:
            parent = parent[int(key)] if isinstance(parent, list) else parent[key]
        if step["op"] == "test":
            if parent[last] != step["value"]:
                raise RefusedError(step["path"])
        elif isinstance(parent, list) and step["op"] == "add":
            assert last == "-"
            parent.append(step["value"])
        elif isinstance(parent, list):
            parent[int(last)] = step["value"]
        else:
            parent[last] = step["value"]
    return GenerationJob.from_wire(body)


def finished(job: GenerationJob) -> Assignment:
    assignments = Assignments(WORKER)
    assignments.observe(job, False)
    assignment = present(assignments.get(job.uid))
    assignment.take_requests(1, NOW + dt.timedelta(seconds=1), 0.0)
    assignment.record_output(0, picture(warnings=("prompt is too long",)), 1.5)
    assignment.images[0] = Image(index=0, uri="s3://b/k", sha256="0" * 64, bytes=1, width=8, height=4, seed=5)
    return assignment


def success(job: GenerationJob) -> GenerationJobStatus:
    return reports.succeeded(job, finished(job), INFO, 0.25, LATER)


def failure(job: GenerationJob) -> GenerationJobStatus:
    return reports.failed(job, finished(job), JobFailure(ErrorCode.PIPELINE_FAILED, "no"), LATER)


def progress(job: GenerationJob) -> GenerationJobStatus:
    return reports.running(job, finished(job))


@pytest.mark.parametrize("report", [success, failure, progress])
def test_a_report_arrives_as_it_was_meant(report: Any) -> None:
    job = bound_job()
    assert apply(job, reports.fenced_patch(job, report(job))).status == report(job)


@pytest.mark.parametrize("report", [success, failure, progress])
@pytest.mark.parametrize(
    "change", [{"status": {"attempt": 2}}, {"status": {"worker": "worker-b"}}, {"metadata": {"uid": "another"}}]
)
def test_a_zombies_report_is_refused(report: Any, change: dict[str, Any]) -> None:
    job = bound_job()
    with pytest.raises(RefusedError):
        apply(bound_job(**change), reports.fenced_patch(job, report(job)))


@pytest.mark.parametrize("report", [success, failure, progress])
@pytest.mark.parametrize("phase", [Phase.SCHEDULED, Phase.RUNNING])
def test_the_table_of_transitions_allows_every_report(report: Any, phase: Phase) -> None:
    assert allowed(Writer.WORKER, phase, report(bound_job(status={"phase": phase})).phase)


@pytest.mark.parametrize("report", [success, failure, progress])
def test_a_report_never_touches_what_is_the_operators(report: Any) -> None:
    job = bound_job()
    written = {step["path"] for step in reports.fenced_patch(job, report(job)) if step["op"] != "test"}
    assert not written & {"/status/worker", "/status/attempt", "/status/retries", "/status/queuedAt"}


def test_conditions_of_others_stay() -> None:
    mine = {"type": "Scheduled", "status": "True", "reason": "Bound", "lastTransitionTime": NOW}
    job = bound_job(status={"conditions": [mine]})
    # Meanwhile somebody appended another.
    more = {"type": "Other", "status": "True", "reason": "Why", "lastTransitionTime": NOW}
    after = apply(bound_job(status={"conditions": [mine, more]}), reports.fenced_patch(job, success(job)))
    assert [condition.type for condition in after.status.conditions] == ["Scheduled", "Other", "Complete"]


def test_a_success_is_complete() -> None:
    status = success(bound_job())
    assert present(find_condition(status.conditions, "Complete")).status is ConditionStatus.TRUE
    timings = present(status.timings)
    assert (timings.queue, timings.inference, timings.upload) == (1.0, 1.5, 0.25)
    assert present(status.progress).summary == "10/10"
    assert status.warnings == ("prompt is too long",)
    parameters = present(status.parameters)
    assert (parameters.width, parameters.scheduler, parameters.model_revision) == (8, "DDIMScheduler", "sha256:0")
    assert "memory" not in parameters.to_wire()
    assert status.completion_time == LATER


def test_a_recipe_says_what_was_done_to_save_memory() -> None:
    job = bound_job()
    made = reports.completed_parameters(
        present(job.status.parameters), replace(INFO, memory=("vaeTiling", "groupOffload")), picture()
    )
    assert made.to_wire()["memory"] == ["vaeTiling", "groupOffload"]


def test_an_outage_that_is_over_is_said_to_be() -> None:
    job = bound_job()
    waiting = reports.waiting_for_storage(job, finished(job), "connection refused", NOW)
    assert present(find_condition(waiting.conditions, "Uploaded")).status is ConditionStatus.FALSE
    done = success(job.model_copy(update={"status": waiting}))
    assert present(find_condition(done.conditions, "Uploaded")).status is ConditionStatus.TRUE


def test_a_queue_time_is_never_negative() -> None:
    status = success(bound_job(status={"queuedAt": LATER}))
    assert present(status.timings).queue == 0


def test_no_text_of_a_status_holds_a_secret() -> None:
    secret = 'hf_"planted" + secret/'
    quoted = f"{secret} {secret!r} {quote(secret, safe='')} {b64encode(f'user:{secret}'.encode()).decode()}"
    job = bound_job()
    status = reports.failed(job, finished(job), JobFailure(ErrorCode.PIPELINE_FAILED, quoted), LATER)
    status = status.model_copy(update={"warnings": (quoted,)})
    shown = reports.redacted(status, Redactor([f"{secret}\n"]))
    texts = [present(shown.error).message, present(find_condition(shown.conditions, "Failed")).message, *shown.warnings]
    assert all(text.count("***") == 4 for text in texts)
    assert "planted" not in str(shown)
    assert reports.redacted(success(job), Redactor([secret])) == success(job)


def test_a_failure_says_code_and_message() -> None:
    job = bound_job()
    status = reports.failed(job, finished(job), JobFailure(ErrorCode.OUT_OF_MEMORY, "x" * 9999), LATER)
    error = present(status.error)
    assert (error.code, len(error.message)) == ("OutOfMemory", reports.MAX_FAILURE_MESSAGE)
    assert present(find_condition(status.conditions, "Failed")).reason == "OutOfMemory"

"""Builds what the worker writes into a job's status: typed values, and the fenced JSON Patch that carries them.

A patch tests the job's uid, the worker and the attempt before it changes anything, so that the report of a zombie (a
worker that was given up and lives on) is refused whole. That a terminal phase is never left needs no test: the CRD's
own rule refuses it.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

from kubediffusion.resources.conditions import (
    Condition,
    ConditionStatus,
    JobConditionType,
    JobReason,
    find_condition,
    with_condition,
)
from kubediffusion.resources.failures import JobFailure
from kubediffusion.resources.generation_job import (
    MAX_WARNINGS,
    GenerationJob,
    GenerationJobStatus,
    JobError,
    JobProgress,
    Parameters,
    Phase,
    Timings,
)
from kubediffusion.resources.redaction import Redactor
from kubediffusion.resources.texts import MAX_NOTE, shorten
from kubediffusion.worker.assignments import Assignment
from kubediffusion.worker.engine import EngineInfo, ImageOutput

MAX_FAILURE_MESSAGE = 4096
"""Characters of an error's message: a library's exception can be as long as it likes."""

Patch = list[dict[str, Any]]
"""A JSON Patch (RFC 6902)."""


def fenced_patch(before: GenerationJob, after: GenerationJobStatus) -> Patch:
    """Return the patch of the status subresource that turns the job's status into ``after``.

    Only fields that differ are written, and conditions one by one, so that what the operator writes at the same time
    stays. A report adds to what is known. Only the generation is removed, which a finished job no longer speaks of.

    Args:
        before: The job as last seen; its uid, worker and attempt are the fence.
        after: The status to report.
    """
    fence = {
        "/metadata/uid": before.uid,
        "/status/worker": before.status.worker,
        "/status/attempt": before.status.attempt,
    }
    patch: Patch = [{"op": "test", "path": path, "value": value} for path, value in fence.items()]
    old, new = before.status.to_wire(), after.to_wire()
    patch += [
        {"op": "add", "path": f"/status/{key}", "value": value}
        for key, value in new.items()
        if key != "conditions" and old.get(key) != value
    ]
    if "observedGeneration" in old.keys() - new.keys():
        patch.append({"op": "remove", "path": "/status/observedGeneration"})
    return patch + _condition_patch(before.status.conditions, after.conditions)


def _condition_patch(before: tuple[Condition, ...], after: tuple[Condition, ...]) -> Patch:
    if not before:
        # There may be no list yet to append to.
        return [{"op": "add", "path": "/status/conditions", "value": [c.to_wire() for c in after]}] if after else []
    patch: Patch = []
    places = {condition.type: place for place, condition in enumerate(before)}
    for condition in after:
        place = places.get(condition.type)
        if place is None:
            patch.append({"op": "add", "path": "/status/conditions/-", "value": condition.to_wire()})
        elif before[place] != condition:
            path = f"/status/conditions/{place}"
            patch.append({"op": "test", "path": f"{path}/type", "value": condition.type})
            patch.append({"op": "replace", "path": path, "value": condition.to_wire()})
    return patch


def redacted(status: GenerationJobStatus, redactor: Redactor) -> GenerationJobStatus:
    """Return a status with ``***`` in place of each secret that a library may have quoted in its texts."""
    update: dict[str, Any] = {
        "conditions": tuple(
            condition.model_copy(update={"message": redactor.redact(condition.message)})
            for condition in status.conditions
        ),
        "warnings": tuple(map(redactor.redact, status.warnings)),
    }
    if status.error is not None:
        update["error"] = status.error.model_copy(update={"message": redactor.redact(status.error.message)})
    return status.model_copy(update=update)


def running(before: GenerationJob, assignment: Assignment) -> GenerationJobStatus:
    """Return the status of a job that the engine works on, with its progress."""
    return before.status.model_copy(
        update={
            "phase": Phase.RUNNING,
            "parameters": before.status.parameters and assignment.parameters,
            "start_time": assignment.start_time,
            "progress": assignment.progress,
            "observed_generation": before.metadata.generation,
        }
    )


def waiting_for_storage(
    before: GenerationJob, assignment: Assignment, message: str, now: dt.datetime
) -> GenerationJobStatus:
    """Return the status of a job whose images are ready, while storage does not take them.

    Args:
        before: The job as last seen.
        assignment: What was done.
        message: What storage answers, for people.
        now: Time of the condition.
    """
    conditions = _condition(
        before, JobConditionType.UPLOADED, ConditionStatus.FALSE, JobReason.STORAGE_UNAVAILABLE, message, now
    )
    return running(before, assignment).model_copy(update={"conditions": conditions})


def succeeded(
    before: GenerationJob, assignment: Assignment, engine: EngineInfo, upload_seconds: float, now: dt.datetime
) -> GenerationJobStatus:
    """Return the status of a job whose images are all in storage.

    Args:
        before: The job as last seen.
        assignment: What was done.
        engine: What made the images.
        upload_seconds: Seconds from the pixels to the last confirmation.
        now: When the last image was confirmed.
    """
    images = tuple(assignment.images[index] for index in sorted(assignment.images))
    message = f"{len(images)} image{'s' if len(images) != 1 else ''} uploaded"
    conditions = _condition(
        before, JobConditionType.COMPLETE, ConditionStatus.TRUE, JobReason.IMAGES_UPLOADED, message, now
    )
    if find_condition(conditions, JobConditionType.UPLOADED) is not None:
        conditions = with_condition(
            conditions,
            JobConditionType.UPLOADED,
            ConditionStatus.TRUE,
            JobReason.IMAGES_UPLOADED,
            message,
            now,
        )
    start = assignment.start_time or now
    queued = before.status.queued_at or before.metadata.creation_timestamp or start
    steps = assignment.parameters.num_inference_steps
    status = before.status.model_copy(
        update={
            "phase": Phase.SUCCEEDED,
            "conditions": conditions,
            "progress": JobProgress.of(steps, steps),
            "images": images,
            "parameters": completed_parameters(assignment.parameters, engine, assignment.outputs[0]),
            "warnings": _merged(before.status.warnings, assignment.warnings),
            "start_time": start,
            "completion_time": now,
            "timings": Timings(
                # Two clocks of two machines: a queue time is never negative.
                queue=round(max((start - queued).total_seconds(), 0.0), 6),
                inference=round(assignment.inference, 6),
                upload=round(upload_seconds, 6),
            ),
        }
    )
    return status.without_generation()


def failed(before: GenerationJob, assignment: Assignment, failure: JobFailure, now: dt.datetime) -> GenerationJobStatus:
    """Return the status of a job that cannot be completed.

    Args:
        before: The job as last seen.
        assignment: What was done.
        failure: Why it fails.
        now: When it failed.
    """
    message = failure.message[:MAX_FAILURE_MESSAGE]
    update: dict[str, Any] = {
        "phase": Phase.FAILED,
        "conditions": _condition(before, JobConditionType.FAILED, ConditionStatus.TRUE, failure.code, message, now),
        "error": JobError(code=failure.code, message=message),
        "warnings": _merged(before.status.warnings, assignment.warnings),
        "completion_time": now,
    }
    if assignment.start_time is not None:
        update["start_time"] = assignment.start_time
    return before.status.model_copy(update=update).without_generation()


def completed_parameters(parameters: Parameters, engine: EngineInfo, output: ImageOutput) -> Parameters:
    """Return a recipe completed with what really ran: sizes and scheduler, model revision, engine and versions.

    Args:
        parameters: The recipe as the operator resolved it.
        engine: What made the image.
        output: The image.
    """
    return parameters.model_copy(
        update={
            "width": output.width,
            "height": output.height,
            "scheduler": output.scheduler,
            "model_revision": engine.revision,
            "pipeline": engine.pipeline,
            "engine": output.engine or engine.name,
            "device": engine.device,
            "torch_dtype": engine.torch_dtype,
            "quantization": engine.quantization or None,
            "memory": engine.memory or None,
            "versions": engine.versions,
        }
    )


def _condition(
    before: GenerationJob, kind: JobConditionType, status: ConditionStatus, reason: str, message: str, now: dt.datetime
) -> tuple[Condition, ...]:
    return with_condition(before.status.conditions, kind, status, reason, message, now, before.metadata.generation)


def _merged(known: tuple[str, ...], more: list[str]) -> tuple[str, ...]:
    cut = [shorten(warning, MAX_NOTE) for warning in more]
    return (*known, *(warning for warning in cut if warning not in known))[:MAX_WARNINGS]

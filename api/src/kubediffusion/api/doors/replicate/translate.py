"""Replicate's predictions over the same jobs: what its clients send, and the views that they get. Pure.

The form is that of https://replicate.com/docs/reference/http. What its text-to-image models take as ``input`` has the
names that it has there; whatever else a GenerationJob takes may stand beside it in snake_case, and other fields are
ignored, as every model there has some of its own.
"""

from __future__ import annotations

import datetime as dt
import functools
import hashlib
import json
import re
from collections.abc import Iterable
from enum import StrEnum
from http.client import responses
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from kubediffusion.api.derived import StrictNumbers, request_of
from kubediffusion.api.doors.common import FieldNames
from kubediffusion.api.doors.replicate.schemas import Prediction, PredictionUrls, ReplicateModel, ReplicateVersion
from kubediffusion.api.encoding import Encoding, OutputFormat
from kubediffusion.api.errors import ApiError, InvalidRequestError, problem
from kubediffusion.api.job_cache.records import CachedJob
from kubediffusion.api.job_cache.results import error_message
from kubediffusion.api.schemas import EXAMPLE_MODEL, EXAMPLE_PROMPT, NOT_AT_DOORS, SPEC_PARTS, JobRequest
from kubediffusion.resources import generation_job, meta
from kubediffusion.resources.diffusion_model import DiffusionModel
from kubediffusion.resources.generation_job import GenerationJob, GenerationJobSpec, Phase, Scheduler
from kubediffusion.resources.webhook import WebhookEvent, WebhookUrl

FIELD_NAMES = FieldNames({"num_images": "num_outputs"}, within="input", outside=frozenset({"webhook"}))

SCHEDULERS = {
    "DDIM": Scheduler.DDIM,
    "DPMSolverMultistep": Scheduler.DPM_SOLVER_MULTISTEP,
    "HeunDiscrete": Scheduler.HEUN,
    "K-LMS": Scheduler.LMS,
    "KLMS": Scheduler.LMS,
    "K_EULER": Scheduler.EULER,
    "K_EULER_ANCESTRAL": Scheduler.EULER_ANCESTRAL,
    "PNDM": Scheduler.PNDM,
    **{scheduler.value: scheduler for scheduler in Scheduler},
}
"""Schedulers by the names that models there have for them, and by their own."""

NOT_ECHOED = {"model", "ttl_seconds_after_finished", *NOT_AT_DOORS}
"""The fields of a job that are no part of the input that its prediction shows."""

STATUS: dict[Phase, Literal["starting", "processing", "succeeded", "failed", "canceled"]] = {
    Phase.PENDING: "starting",
    Phase.SCHEDULED: "starting",
    Phase.RUNNING: "processing",
    Phase.SUCCEEDED: "succeeded",
    Phase.FAILED: "failed",
    Phase.CANCELLED: "canceled",
}

NO_VERSION = "hidden"
"""What Replicate itself says where there is no version to name."""

COG_VERSION = "0.3.9"
"""The first version of Cog whose schemas mark outputs that come one by one: clients take every list of an older one for
such an output."""


class FileFormat(StrEnum):
    """How an image is encoded; also the end of its file's name."""

    PNG = "png"
    JPG = "jpg"
    WEBP = "webp"


FORMATS = {FileFormat.PNG: OutputFormat.PNG, FileFormat.JPG: OutputFormat.JPEG, FileFormat.WEBP: OutputFormat.WEBP}

DEFAULT_QUALITY = 80
"""Of ``jpg`` and ``webp``, as with most models there."""

_ENCODING = re.compile(r"(jpg|webp);quality=(\d{1,2}|100)")


@request_of(
    generation_job.GenerationJobSpec,
    parts=SPEC_PARTS,
    without=NOT_AT_DOORS | {"model", "prompt", "num_images", "scheduler"},
)
class PredictionInput(StrictNumbers):
    """What to draw, as models at Replicate are told. ``prompt`` alone is enough; unknown fields are ignored."""

    model_config = ConfigDict(extra="ignore", use_attribute_docstrings=True, from_attributes=True)

    prompt: Annotated[str, Field(examples=[EXAMPLE_PROMPT])]
    """What the image shows."""
    num_outputs: Annotated[int, Field(ge=1)] | None = None
    """Images to generate, up to the model's limit; 1 when absent."""
    scheduler: Annotated[str, Field(max_length=100, examples=["K_EULER"])] | None = None
    """Noise scheduler, by a name of Replicate's models or a diffusers class; the model's own when absent."""
    output_format: FileFormat | None = None
    """How the images are encoded; ``png``, as they were stored, when absent."""
    output_quality: Annotated[int, Field(ge=0, le=100)] | None = None
    """Of ``jpg`` and ``webp``, in percent; 80 when absent, and 100 is lossless for ``webp``."""

    @property
    def annotations(self) -> dict[str, str]:
        """The annotations of the job: they keep how its images are handed out."""
        if self.output_format in {None, FileFormat.PNG}:
            return {}
        quality = DEFAULT_QUALITY if self.output_quality is None else self.output_quality
        return {meta.OUTPUT_ENCODING_ANNOTATION: f"{self.output_format};quality={quality}"}


class PredictionEvent(StrEnum):
    """What a receiver of webhooks can ask for at Replicate."""

    START = "start"
    OUTPUT = "output"
    LOGS = "logs"
    COMPLETED = "completed"


EVENTS = {
    PredictionEvent.START: WebhookEvent.STARTED,
    PredictionEvent.OUTPUT: WebhookEvent.COMPLETED,
    PredictionEvent.COMPLETED: WebhookEvent.COMPLETED,
}
"""The events of jobs that are meant; there is none of logs."""


class ModelPredictionRequest(BaseModel):
    """A prediction of the model that the path names."""

    model_config = ConfigDict(extra="ignore", use_attribute_docstrings=True)

    input: PredictionInput
    webhook: WebhookUrl | None = None
    """Where the prediction is sent when it starts and ends, by POST, where the installation delivers webhooks."""
    webhook_events_filter: list[PredictionEvent] | None = None
    """What to send there; all of it when absent. Output comes with the end, and logs never."""
    webhook_completed: WebhookUrl | None = None
    """The same for the end alone, as older clients ask for it."""
    stream: bool | None = None
    """``true`` is refused: images do not come in parts."""


class PredictionRequest(ModelPredictionRequest):
    """A prediction of a version of a model."""

    version: Annotated[str, Field(max_length=400, examples=[f"default/{EXAMPLE_MODEL}"])]
    """A version's id, ``owner/name:id``, or ``owner/name`` for a model as it is now."""


def job_request(request: ModelPredictionRequest, model: str) -> JobRequest:
    """Build the request of a job of a model.

    Raises:
        InvalidRequestError: A field has a value that cannot be had.
    """
    if request.stream:
        raise InvalidRequestError([problem("stream", "Images do not come as a stream; leave it out")])
    wanted = request.input
    fields = {name: getattr(wanted, name) for name in JobRequest.model_fields.keys() & PredictionInput.model_fields}
    if wanted.scheduler is not None and (scheduler := SCHEDULERS.get(wanted.scheduler)) is None:
        message = f"It must be one of {', '.join(SCHEDULERS)}"
        raise FIELD_NAMES.renamed(InvalidRequestError([problem("scheduler", message)]))
    own = {"model": model, "num_images": wanted.num_outputs, "scheduler": scheduler if wanted.scheduler else None}
    return FIELD_NAMES.job_request({**fields, **own, "webhook": webhook_fields(request)})


def webhook_fields(request: ModelPredictionRequest) -> dict[str, Any] | None:
    """Return the fields of the webhook that a prediction asks for; None where it asks to be told of nothing."""
    if request.webhook is None:
        if request.webhook_completed is None:
            return None
        return {"url": request.webhook_completed, "events": [WebhookEvent.COMPLETED]}
    wanted = PredictionEvent if request.webhook_events_filter is None else request.webhook_events_filter
    events = {EVENTS[event] for event in wanted if event in EVENTS}
    # In the order in which they happen.
    return {"url": request.webhook, "events": [event for event in WebhookEvent if event in events]} if events else None


def replicate_error(error: ApiError) -> tuple[int, dict[str, Any]]:
    """Return status and body of an error as Replicate has them: 401 also for a key that is not valid."""
    status = 401 if error.status == 403 else error.status
    title = responses.get(status, "Error")
    if not isinstance(error.detail, list):
        return status, {"title": title, "detail": error.detail, "status": status}
    fields = [
        {"type": entry["type"], "field": ".".join(map(str, entry["loc"][1:])), "description": entry["msg"]}
        for entry in error.detail
    ]
    lines = (f"- {field['field']}: {field['description']}\n".replace("- : ", "- ") for field in fields)
    detail = "".join(lines)
    return status, {"title": "Input validation failed", "detail": detail, "status": status, "invalid_fields": fields}


def version_id(model: DiffusionModel) -> str:
    """Name what a model loads: 64 hexadecimal digits, of its name and source alone.

    So a client that pinned them is refused once the model is told to load something else, and not when it scales.
    """
    text = json.dumps([model.name, model.spec.source.to_wire()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def model_of_version(models: Iterable[DiffusionModel], reference: str) -> DiffusionModel:
    """Find the model that a prediction's ``version`` names: an id, ``owner/name:id`` or ``owner/name``.

    The owner does not matter: models of one namespace have one.

    Raises:
        InvalidRequestError: There is no such version.
    """
    name, _, version = reference.rpartition("/")[2].partition(":")
    if "/" not in reference:
        name, version = "", reference
    for model in models:
        if (name or version) and name in {"", model.name} and version in {"", version_id(model)}:
            return model
    message = "There is no such version; GET /replicate/v1/models has each model's under latest_version.id"
    raise InvalidRequestError([problem("version", message)])


@functools.cache
def openapi_schema() -> dict[str, Any]:
    """Build the part of an OpenAPI document by which clients know what a version takes and gives."""
    taken = PredictionInput.model_json_schema(ref_template="#/components/schemas/{model}")
    given = {"type": "array", "items": {"type": "string", "format": "uri"}, "title": "Output"}
    parts = taken.pop("$defs", {})
    return {"openapi": "3.1.0", "components": {"schemas": {"Input": taken, "Output": given, **parts}}}


def version_view(model: DiffusionModel) -> ReplicateVersion:
    """Build the view of what a model loads."""
    created = model.metadata.creation_timestamp or dt.datetime.fromtimestamp(0, dt.UTC)
    return ReplicateVersion(
        id=version_id(model), created_at=created, cog_version=COG_VERSION, openapi_schema=openapi_schema()
    )


def model_view(model: DiffusionModel, owner: str, base: str) -> ReplicateModel:
    """Build the view of a model; ``base`` is the address of the API's paths."""
    unavailable = model.unavailable
    return ReplicateModel(
        url=f"{base}/models/{owner}/{model.name}",
        owner=owner,
        name=model.name,
        description=None if unavailable is None else unavailable.message or unavailable.reason,
        latest_version=version_view(model),
    )


def encoding_of(job: GenerationJob) -> tuple[FileFormat, int]:
    """Return the kind of file that a job's images are handed out as, and its quality in percent."""
    found = _ENCODING.fullmatch(job.metadata.annotations.get(meta.OUTPUT_ENCODING_ANNOTATION, ""))
    return (FileFormat(found[1]), int(found[2])) if found else (FileFormat.PNG, 100)


def encoding(kind: FileFormat, quality: int) -> Encoding:
    """Build the encoding of a file of this kind."""
    return Encoding(FORMATS[kind], quality)


def prediction_view(job: CachedJob, whole: GenerationJob, model: str, version: str | None, base: str) -> Prediction:
    """Build the view of a job as a prediction, with the addresses of its images.

    Args:
        job: The job.
        whole: The same, parsed.
        model: Owner and name of its model.
        version: The version of the model; None where there is no such model.
        base: The address of the API's paths.
    """
    status = whole.status
    address = f"{base}/predictions/{job.name}"
    kind, quality = encoding_of(whole)
    query = "" if kind is FileFormat.PNG else f"?quality={quality}"
    succeeded = job.phase is Phase.SUCCEEDED
    return Prediction(
        id=job.name,
        model=model,
        version=version or NO_VERSION,
        status=STATUS[job.phase],
        input=_input(whole.spec, kind, quality),
        error=error_message(job) if job.phase is Phase.FAILED else None,
        metrics=_metrics(whole),
        created_at=dt.datetime.fromtimestamp(job.created, dt.UTC),
        started_at=status.start_time,
        completed_at=status.completion_time,
        urls=PredictionUrls(get=address, cancel=f"{address}/cancel"),
        output=[f"{address}/output/{image.index}.{kind}{query}" for image in job.images] if succeeded else None,
    )


def _input(spec: GenerationJobSpec, kind: FileFormat, quality: int) -> dict[str, Any]:
    fields = spec.model_dump(mode="json", exclude_none=True, exclude=NOT_ECHOED)
    named = {FIELD_NAMES.names.get(name, name): value for name, value in fields.items()}
    return named if kind is FileFormat.PNG else {**named, "output_format": kind, "output_quality": quality}


def _metrics(job: GenerationJob) -> dict[str, float]:
    status, created = job.status, job.metadata.creation_timestamp
    ended, metrics = status.completion_time, {}
    if status.timings is not None and status.timings.inference is not None:
        metrics["predict_time"] = status.timings.inference
    elif ended and status.start_time:
        metrics["predict_time"] = (ended - status.start_time).total_seconds()
    if ended and created:
        metrics["total_time"] = (ended - created).total_seconds()
    return metrics

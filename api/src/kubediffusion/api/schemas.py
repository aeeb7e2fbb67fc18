"""What clients send and get: the HTTP API's own models, apart from the resources that are stored."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from kubediffusion.resources.generation_job import (
    DEFAULT_BACKOFF_LIMIT,
    DEFAULT_GUIDANCE,
    DEFAULT_STEPS,
    MAX_IMAGES,
    CachingInterval,
    DeletionPolicy,
    Fraction,
    Guidance,
    ModelName,
    NegativePrompt,
    Phase,
    Prompt,
    Scheduler,
    Seed,
    Size,
    Steps,
)

EXAMPLE_ID = "01975f0a-6c1e-7d3b-9f56-2f0c8a4be1d7"
EXAMPLE_PROMPT = "A photo of an astronaut riding a horse on the moon"


def _shown_default(value: Any) -> dict[str, Any]:
    # Left unset on purpose, so that the model's own default applies; this is what applies where it has none.
    return {"default": value}


class RequestModel(BaseModel):
    """A request: an unknown field is an error, since a mistyped one would be silently without effect."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class ResponseModel(BaseModel):
    """A response."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class GuidanceInterval(RequestModel):
    """Guidance at some of the steps only (https://arxiv.org/abs/2404.07724); the others take half the time."""

    start: Fraction = 0.0
    """Fraction of the steps before the first with guidance."""
    stop: Annotated[Fraction, Field(examples=[0.8])] = 1.0
    """Fraction of the steps before the first without guidance again; above ``start``."""

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if self.start >= self.stop:
            raise ValueError(f"start, {self.start:g}, must be below stop, {self.stop:g}")
        return self


class FeatureCaching(RequestModel):
    """The UNet's deep layers at some of the steps only (DeepCache, https://arxiv.org/abs/2312.00858)."""

    interval: Annotated[CachingInterval, Field(examples=[3])]
    """At every step of so many the whole UNet is computed, in between its outermost layers; 1 is none."""


class Acceleration(RequestModel):
    """Speed for quality. What is absent is not done."""

    guidance_interval: GuidanceInterval | None = None
    """Guidance at some of the steps only."""
    feature_caching: FeatureCaching | None = None
    """The UNet's deep layers at some of the steps only."""


class JobRequest(RequestModel):
    """What to generate. ``prompt`` alone is enough."""

    prompt: Annotated[Prompt, Field(examples=[EXAMPLE_PROMPT])]
    """What the image shows. What exceeds the text encoder's length is cut, and the answer carries a warning."""
    negative_prompt: Annotated[NegativePrompt | None, Field(examples=["blurry, low quality"])] = None
    """What the image should not show."""
    num_inference_steps: Annotated[Steps | None, Field(json_schema_extra=_shown_default(DEFAULT_STEPS))] = None
    """Denoising steps, up to the model's limit (150 unless it says otherwise). When absent, the model's default
    applies, else 50."""
    guidance_scale: Annotated[Guidance | None, Field(json_schema_extra=_shown_default(DEFAULT_GUIDANCE))] = None
    """How closely to follow the prompt (classifier-free guidance). When absent, the model's default applies, else
    7.5."""
    seed: Annotated[Seed | None, Field(examples=[42])] = None
    """Noise seed of the first image; image n uses seed + n. Drawn at random when absent."""
    model: Annotated[ModelName | None, Field(examples=["stable-diffusion-v1-5"])] = None
    """The DiffusionModel to use, one of ``GET /v1/models``; the default model when absent."""
    width: Annotated[Size | None, Field(examples=[512])] = None
    """Pixels, a multiple of 8 within the model's limit; the model's own size when absent."""
    height: Annotated[Size | None, Field(examples=[512])] = None
    """Pixels, a multiple of 8 within the model's limit; the model's own size when absent."""
    num_images: Annotated[int | None, Field(ge=1, le=MAX_IMAGES, json_schema_extra=_shown_default(1))] = None
    """Images to generate, up to the model's limit. ``GET /results`` hands out the first, ``/v1`` all of them."""
    scheduler: Annotated[Scheduler | None, Field(examples=[Scheduler.DPM_SOLVER_MULTISTEP])] = None
    """Noise scheduler, a diffusers class; the model's own when absent."""
    acceleration: Acceleration | None = None
    """Speed for quality, for the pipelines that can. When absent, the model's default applies, else none; an empty
    object is none."""
    priority: Annotated[int | None, Field(ge=-1_000_000, le=1_000_000, json_schema_extra=_shown_default(0))] = None
    """Higher runs first; equal priorities run in order of age."""
    deterministic: Annotated[bool | None, Field(json_schema_extra=_shown_default(value=False))] = None
    """Run in a fixed shape, so that the same seed gives the same pixels on the same kind of device."""
    active_deadline_seconds: Annotated[int | None, Field(ge=1, le=31_536_000)] = None
    """The job fails when it has not finished this long after its creation; never when absent."""
    backoff_limit: Annotated[
        int | None, Field(ge=0, le=100, json_schema_extra=_shown_default(DEFAULT_BACKOFF_LIMIT))
    ] = None
    """How often the job is run again after its worker died while running it."""
    ttl_seconds_after_finished: Annotated[int | None, Field(ge=0, le=31_536_000)] = None
    """The job is deleted this long after it finished; never when absent."""
    deletion_policy: Annotated[
        DeletionPolicy | None, Field(json_schema_extra=_shown_default(DeletionPolicy.RETAIN))
    ] = None
    """Whether deleting the job deletes its images."""


class TaskAccepted(ResponseModel):
    """The task has been accepted."""

    task_id: Annotated[str, Field(examples=[EXAMPLE_ID])]
    """Ask ``GET /results/{task_id}`` for the outcome. It is also the GenerationJob's name."""
    status: Literal["pending"] = "pending"
    message: str = "Task received and queued for processing."


class TaskResult(ResponseModel):
    """Where a task stands, and its image once it is completed."""

    task_id: Annotated[str, Field(examples=[EXAMPLE_ID])]
    status: Literal["pending", "processing", "completed", "failed"]
    """A cancelled job is ``failed``."""
    prompt: Annotated[str, Field(examples=[EXAMPLE_PROMPT])]
    image_base64: Annotated[str | None, Field(examples=["iVBORw0KGgoAAAANSUhEUgAA…"])] = None
    """The PNG in base64; null until the task is completed, and with ``?image=url``."""
    error_message: Annotated[str | None, Field(examples=[None])] = None
    """Why it failed; null unless it did."""


class TaskResultWithUrl(TaskResult):
    """The same with ``?image=url``: the address of the image instead of its bytes."""

    image_url: str | None = None
    """Presigned address of the PNG in storage, valid for a limited time; null until the task is completed."""


class Health(ResponseModel):
    """Whether the server answers, and whether the default model can be used."""

    status: Literal["ok"] = "ok"
    model_status: Literal["available", "unavailable"]


class ErrorBody(ResponseModel):
    """An error."""

    detail: str
    """What is wrong and, where one can help, what to do."""


class FieldProblem(ResponseModel):
    """One thing that is wrong with a request."""

    loc: Annotated[list[str | int], Field(examples=[["body", "num_inference_steps"]])]
    """Where: ``body``, ``query``, ``path`` or ``header``, then the field."""
    msg: str
    """The reason."""
    type: str
    """A word for programs."""


class ValidationBody(ResponseModel):
    """The request is not valid."""

    detail: list[FieldProblem]


class ImageView(ResponseModel):
    """One image of a job."""

    index: int
    path: str
    """Where this API serves it."""
    uri: str
    """Where it lies in storage."""
    sha256: str
    bytes: int
    width: int
    height: int
    flagged: bool
    """The safety checker flagged it, and it has been blanked."""


class JobError(ResponseModel):
    """Why a job failed."""

    code: str
    """One of the documented codes, for programs."""
    message: str
    """For people."""


class JobSummary(ResponseModel):
    """A job in a list."""

    name: str
    phase: Phase
    model: str | None
    """The model that was asked for; null for the default one."""
    prompt: str
    priority: int
    created_at: dt.datetime
    progress: str | None
    """Denoising steps done of all, for example ``12/25``."""
    worker: str | None
    """The Pod that the job is bound to."""
    queue_position: int | None
    """How many jobs of the model run before it, plus one; null once it waits no more."""
    images: list[ImageView]
    error: JobError | None
    warnings: list[str]


class Waiting(ResponseModel):
    """Why a job has no worker yet."""

    reason: str
    """A word for programs, for example ``WorkersBusy``."""
    message: str


class GuidanceIntervalView(ResponseModel):
    """Guidance at some of the steps only."""

    model_config = ConfigDict(from_attributes=True)

    start: float
    stop: float


class FeatureCachingView(ResponseModel):
    """The UNet's deep layers at some of the steps only."""

    model_config = ConfigDict(from_attributes=True)

    interval: int


class AccelerationView(ResponseModel):
    """Speed for quality."""

    model_config = ConfigDict(from_attributes=True)

    guidance_interval: GuidanceIntervalView | None
    feature_caching: FeatureCachingView | None


class ParametersView(ResponseModel):
    """The recipe as it was really run."""

    model_config = ConfigDict(from_attributes=True, protected_namespaces=())

    model: str
    num_inference_steps: int
    guidance_scale: float
    seed: int
    num_images: int
    negative_prompt: str | None
    width: int | None
    height: int | None
    scheduler: str | None
    deterministic: bool
    acceleration: AccelerationView | None
    model_revision: str | None
    pipeline: str | None
    engine: str | None
    device: str | None
    torch_dtype: str | None
    versions: dict[str, str] | None


class TimingsView(ResponseModel):
    """Seconds spent."""

    model_config = ConfigDict(from_attributes=True)

    queue: float | None
    inference: float | None
    upload: float | None


class JobView(JobSummary):
    """A job: what was asked for, where it stands, and how it was run."""

    request: JobRequest
    """What was asked for."""
    cancel_requested: bool
    suspended: bool
    attempt: int
    """How often it has been given to a worker."""
    retries: int
    """How many workers died while running it."""
    waiting: Waiting | None
    """Why it waits; null once it does not."""
    parameters: ParametersView | None
    queued_at: dt.datetime | None
    started_at: dt.datetime | None
    completed_at: dt.datetime | None
    timings: TimingsView | None


class JobList(ResponseModel):
    """Jobs, newest first."""

    jobs: list[JobSummary]
    continue_token: str | None
    """Hand it back as ``continue`` for the next page; null on the last."""


class ModelLimits(ResponseModel):
    """The most that one job may ask for."""

    model_config = ConfigDict(from_attributes=True)

    num_inference_steps: int
    width: int
    height: int
    num_images: int


class ModelDefaults(ResponseModel):
    """What a job gets that does not say otherwise; null where the pipeline's own value applies."""

    model_config = ConfigDict(from_attributes=True)

    num_inference_steps: int
    guidance_scale: float
    negative_prompt: str | None
    width: int | None
    height: int | None
    scheduler: str | None
    acceleration: AccelerationView | None


class ModelStart(ResponseModel):
    """How far the start of one worker has come."""

    model_config = ConfigDict(from_attributes=True)

    worker: str
    reason: str
    """A word for programs, for example ``LoadingWeights``."""
    message: str
    since: dt.datetime


class ModelWorkers(ResponseModel):
    """Workers by what they do."""

    model_config = ConfigDict(from_attributes=True)

    ready: int
    busy: int
    starting: int
    starts: list[ModelStart]
    """How far they have come; then those that are ready and still compile."""


class ModelView(ResponseModel):
    """A model that jobs can use."""

    name: str
    default: bool
    """Whether jobs that name no model use it."""
    available: bool
    reason: str | None
    """Why it is available or not, for programs; null while the operator has not said."""
    message: str | None
    limits: ModelLimits
    defaults: ModelDefaults
    workers: ModelWorkers
    queued: int
    """Jobs that wait for a worker, as the operator counted last."""
    revision: str | None


class ModelList(ResponseModel):
    """The models of this namespace."""

    models: list[ModelView]

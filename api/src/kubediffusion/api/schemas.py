"""What clients send and get: the HTTP API's own models. Whatever a resource has too is derived from it."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Literal

from pydantic import Field, PlainValidator
from pydantic.fields import FieldInfo

from kubediffusion.api.acceleration_schemas import Acceleration, AccelerationView
from kubediffusion.api.adapter_schemas import AdapterChoice, AppliedAdapterView
from kubediffusion.api.derived import Parts, RequestModel, ResponseModel, described, request_of, view_of
from kubediffusion.api.input_schemas import InputImage, InputImageView
from kubediffusion.api.webhook_schemas import Webhook, WebhookStatusView
from kubediffusion.resources import generation_job, webhook
from kubediffusion.resources.adapters import AppliedAdapter, JobAdapter
from kubediffusion.resources.generation_job import (
    DEFAULT_BACKOFF_LIMIT,
    DEFAULT_GUIDANCE,
    DEFAULT_STEPS,
    DEFAULT_STRENGTH,
    DeletionPolicy,
    Phase,
    Scheduler,
)

EXAMPLE_ID = "01975f0a-6c1e-7d3b-9f56-2f0c8a4be1d7"
EXAMPLE_RUNNING_ID = "01975f0a-6c1e-7d3b-9f56-2f0c8a4be1d8"
"""The examples of the document are of a job that is done, and of one that runs."""

EXAMPLE_MODEL = "stable-diffusion-v1-5"
EXAMPLE_PROMPT = "A photo of an astronaut riding a horse on the moon"


SPEC_PARTS: Parts = {
    generation_job.Acceleration: Acceleration,
    generation_job.JobInput: InputImage,
    JobAdapter: AdapterChoice,
}
"""What stands in a request for the parts of a job's spec."""

NOT_REQUESTED = {
    "cancel": "a job is cancelled by POST /v1/jobs/{name}/cancel, not born cancelled",
    "suspend": "what a client submits is to run; suspending is for whoever has kubectl",
}
"""The fields of a GenerationJob's spec that a request has not, and why."""

NOT_AT_DOORS = {*NOT_REQUESTED, "webhook"}
"""The fields that doors for other clients do not take beside their own: whom to tell they name in their own words, or
they are answered when the images are there."""


@request_of(
    generation_job.GenerationJobSpec,
    documented={
        "prompt": described(
            "What the image shows. What exceeds the text encoder's length is cut, and the answer carries a warning.",
            example=EXAMPLE_PROMPT,
        ),
        "negative_prompt": described("What the image should not show.", example="blurry, low quality"),
        "num_inference_steps": described(
            "Denoising steps, up to the model's limit (150 unless it says otherwise). When absent, the model's "
            "default\napplies: 50 for Stable Diffusion.",
            default=DEFAULT_STEPS,
        ),
        "guidance_scale": described(
            "How closely to follow the prompt (guidance scale). When absent, the model's default applies: "
            "7.5 for Stable\nDiffusion.",
            default=DEFAULT_GUIDANCE,
        ),
        "seed": described(
            "Noise seed of the first image; image n uses seed + n. Drawn at random when absent.", example=42
        ),
        "model": described(
            "The DiffusionModel to use, one of ``GET /v1/models``; the default model when absent.",
            example=EXAMPLE_MODEL,
        ),
        "width": described("Pixels, a multiple of 8 within the model's limit; the model's own size when absent.", 512),
        "height": described("Pixels, a multiple of 8 within the model's limit; the model's own size when absent.", 512),
        "num_images": described(
            "Images to generate, up to the model's limit. ``GET /results`` hands out the first, ``/v1`` all of them.",
            default=1,
        ),
        "scheduler": described(
            "Noise scheduler, a diffusers class; the model's own when absent.",
            example=Scheduler.DPM_SOLVER_MULTISTEP,
        ),
        "prompt_weighting": described(
            "Heed weights in the prompts, such as ``(word:1.3)``, and encode prompts longer than the text encoder in "
            "parts.\nWhen absent, the model's default applies, else prompts are taken as they are.",
            default=False,
        ),
        "acceleration": described(
            "Speed for quality, for the pipelines that can. When absent, the model's default applies, else none; an "
            "empty\nobject is none.",
        ),
        "inputs": described("Images that the job is made of, of each role one: an image, and a mask of it."),
        "strength": described("How much of the input image is made anew: 0 to 1.", default=DEFAULT_STRENGTH),
        "priority": described("Higher runs first; equal priorities run in order of age.", default=0),
        "deterministic": described(
            "Run in a fixed shape, so that the same seed gives the same pixels on the same kind of device.",
            default=False,
        ),
        "active_deadline_seconds": described(
            "The job fails when it has not finished this long after its creation; never when absent.",
        ),
        "backoff_limit": described(
            "How often the job is run again after its worker died while it had this job alone.",
            default=DEFAULT_BACKOFF_LIMIT,
        ),
        "ttl_seconds_after_finished": described(
            "The job is deleted this long after it finished; when absent, after the model's own time, or else the"
            " installation's (24 hours). The view of a job shows which holds.",
        ),
        "deletion_policy": described("Whether deleting the job deletes its images.", default=DeletionPolicy.RETAIN),
        "webhook": described("Whom to tell when the job starts and ends, where the installation delivers webhooks."),
    },
    parts={**SPEC_PARTS, webhook.Webhook: Webhook},
    without=NOT_REQUESTED,
)
class JobRequest(RequestModel):
    """What to generate. ``prompt`` alone is enough."""


MAX_JOBS = 100
"""How many jobs one request may create."""


class JobRequestList(RequestModel):
    """Several jobs at once. None is created if one of them is refused."""

    jobs: Annotated[list[JobRequest], Field(min_length=1, max_length=MAX_JOBS)]
    """What to generate, each as a request of its own would have it."""


def _one_or_several(body: object) -> JobRequest | JobRequestList:
    """Validate a body by what it has, so that errors name its fields and nothing of the other form."""
    several = isinstance(body, dict) and "jobs" in body
    return JobRequestList.model_validate(body) if several else JobRequest.model_validate(body)


OneOrSeveralJobs = Annotated[
    JobRequest | JobRequestList,
    PlainValidator(_one_or_several, json_schema_input_type=JobRequest | JobRequestList),
]


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


@view_of(
    generation_job.Image,
    documented={
        "uri": FieldInfo(description="Where it lies in storage."),
        "sha256": FieldInfo(),
        "bytes": FieldInfo(),
        "width": FieldInfo(),
        "height": FieldInfo(),
        "flagged": FieldInfo(description="The safety checker flagged it, and it has been blanked."),
    },
    without=("seed",),
)
class ImageView(ResponseModel):
    """One image of a job."""

    index: int
    path: str
    """Where this API serves it."""


@view_of(
    generation_job.JobError,
    documented={
        "code": FieldInfo(description="One of the documented codes, for programs."),
        "message": FieldInfo(description="For people."),
    },
)
class JobError(ResponseModel):
    """Why a job failed."""


class JobUrls(ResponseModel):
    """Where this API serves what belongs to a job: paths, with the prefix that clients see."""

    self: str
    cancel: str
    events: str
    recipe: str
    images: list[str]
    """One path for each image that there is."""


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
    urls: JobUrls


class Waiting(ResponseModel):
    """Why a job has no worker yet."""

    reason: str
    """A word for programs, for example ``WorkersBusy``."""
    message: str


@view_of(
    generation_job.Parameters,
    parts={
        generation_job.Acceleration: AccelerationView,
        generation_job.JobInput: InputImageView,
        AppliedAdapter: AppliedAdapterView,
    },
)
class ParametersView(ResponseModel):
    """The recipe as it was really run."""


@view_of(generation_job.Timings)
class TimingsView(ResponseModel):
    """Seconds spent."""


NOT_SHOWN = {
    "conditions": "for kubectl; what a client needs of them is in `waiting`, `phase` and `error`",
    "suspects": "how the operator searches for the job that its worker died of; `retries` is what counts for a client",
    "observed_generation": "for controllers: which spec the status speaks of",
}
"""The fields of a GenerationJob's status that no view shows, and why."""


@view_of(
    generation_job.GenerationJobStatus,
    parts={
        generation_job.Parameters: ParametersView,
        generation_job.Timings: TimingsView,
        webhook.WebhookStatus: WebhookStatusView,
    },
    renamed={"start_time": "started_at", "completion_time": "completed_at"},
    without=NOT_SHOWN,
)
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


class JobOutcome(ResponseModel):
    """What became of one job of several."""

    status: int
    """The HTTP status that a request of its own would have had: 201 where the job is there."""
    job: JobView | None
    """The job; null where there is none."""
    detail: str | list[FieldProblem] | None
    """Why there is none, as in the body of an error; null where there is one."""


class JobOutcomeList(ResponseModel):
    """What became of each of several jobs, in the order of the request."""

    jobs: list[JobOutcome]


class JobList(ResponseModel):
    """Jobs, newest first."""

    jobs: list[JobSummary]
    continue_token: str | None
    """Hand it back as ``continue`` for the next page; null on the last."""

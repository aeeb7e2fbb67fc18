"""What is known of jobs and models, whatever the way it came: by HTTP or from the Kubernetes API.

Whatever a resource has too is the resource's own type, so that a new field of a job is here without an edit.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Collection
from copy import copy
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, create_model

from kubediffusion.resources.diffusion_model import DiffusionModelStatus, JobLimits, WorkerCounts
from kubediffusion.resources.generation_job import (
    GenerationJobSpec,
    GenerationJobStatus,
    Image,
    JobError,
    Parameters,
    Phase,
    Timings,
)
from kubediffusion.resources.schema import Schema
from kubediffusion.resources.transitions import TERMINAL

_View = TypeVar("_View", bound=Schema)


def _with_rest_of(source: type[Schema], without: Collection[str]) -> Callable[[type[_View]], type[_View]]:
    """Add to a view the fields of a resource's part that it does not declare itself.

    Those that it declares are the ones that type checkers know, and keep their words.

    Args:
        source: The part of the resource.
        without: Fields that are no part of the view, or are in it under another name.
    """

    def complete(view: type[_View]) -> type[_View]:
        fields: dict[str, Any] = {
            name: (field.rebuild_annotation(), copy(field))
            for name, field in source.model_fields.items()
            if name not in view.model_fields and name not in without
        }
        completed: type[_View] = create_model(
            view.__name__, __base__=view, __module__=view.__module__, __doc__=view.__doc__, **fields
        )
        return completed

    return complete


@_with_rest_of(Image, without=("seed",))
class ImageView(Schema):
    """One image of a job that has finished."""

    index: int
    """Its place among the job's images, from 0."""
    uri: str
    """Where it lies in storage."""
    sha256: str
    """Hash of the PNG's bytes, in hexadecimal."""
    bytes: int
    """Size of the PNG."""
    width: int
    """Pixels."""
    height: int
    """Pixels."""
    flagged: bool = False
    """The safety checker flagged it, and it has been blanked."""


class Waiting(Schema):
    """Why a job has no worker yet."""

    reason: str
    """A word for programs, for example ``WorkersBusy``."""
    message: str
    """For people."""


class JobSummary(Schema):
    """A job in a list."""

    name: str
    """The job's name, which is the task id of the HTTP API."""
    phase: Phase
    """Where it stands."""
    model: str | None = None
    """The model that was asked for; None for the default one."""
    prompt: str
    """What the image shows."""
    priority: int = 0
    """Higher runs first."""
    created_at: dt.datetime
    """When it was created."""
    progress: str | None = None
    """Denoising steps done of all, for example ``12/25``."""
    worker: str | None = None
    """The Pod that it is bound to."""
    queue_position: int | None = None
    """How many jobs of the model run before it, plus one; None once it waits no more, and where nobody counted."""
    images: tuple[ImageView, ...] = ()
    """The images, once they are stored."""
    error: JobError | None = None
    """Why it failed."""
    warnings: tuple[str, ...] = ()
    """What the reader of the image should know, for example a prompt that was cut."""

    @property
    def finished(self) -> bool:
        """Whether it has ended, however."""
        return self.phase in TERMINAL

    @property
    def steps(self) -> tuple[int, int] | None:
        """Denoising steps done, and steps in all; None while nobody said."""
        done, _, total = (self.progress or "").partition("/")
        return (int(done), int(total)) if done.isdigit() and total.isdigit() else None


@_with_rest_of(
    GenerationJobStatus,
    without=("conditions", "suspects", "start_time", "completion_time", "observed_generation"),
)
class JobView(JobSummary):
    """A job: what was asked for, where it stands, and how it was run."""

    request: GenerationJobSpec
    """What was asked for."""
    cancel_requested: bool = False
    """Somebody has asked for it to be cancelled."""
    suspended: bool = False
    """It is not to run for now."""
    attempt: int = 0
    """How often it has been given to a worker."""
    retries: int = 0
    """How many workers died while running it."""
    waiting: Waiting | None = None
    """Why it waits; None once it does not."""
    parameters: Parameters | None = None
    """The recipe as it was really run."""
    queued_at: dt.datetime | None = None
    """When it began to wait for a worker."""
    started_at: dt.datetime | None = None
    """When the attempt that runs began."""
    completed_at: dt.datetime | None = None
    """When it finished."""
    timings: Timings | None = None
    """Seconds spent."""


class JobPage(Schema):
    """Some jobs of a list."""

    jobs: tuple[JobSummary, ...]
    """The jobs, newest first."""
    continue_token: str | None = None
    """What to ask for the next page with; None on the last."""


@_with_rest_of(
    DiffusionModelStatus, without=("conditions", "pipeline", "selector", "template_hash", "observed_generation")
)
class ModelView(Schema):
    """A model that jobs can use."""

    name: str
    """Its name."""
    default: bool = False
    """Whether jobs that name no model use it."""
    available: bool = True
    """Whether it can be used."""
    reason: Annotated[str, BeforeValidator(lambda value: value or "")] = ""
    """Why it is available or not, for programs; empty while the operator has not said."""
    message: Annotated[str, BeforeValidator(lambda value: value or "")] = ""
    """The same for people."""
    limits: JobLimits = JobLimits()
    """The most that one job may ask for."""
    defaults: dict[str, Any] = {}
    """What a job gets that does not say otherwise, by the fields' names in snake_case."""
    workers: WorkerCounts = WorkerCounts()
    """Workers by what they do."""
    queued: int = 0
    """Jobs that wait for a worker, as the operator counted last."""
    revision: str | None = None
    """The revision of the weights."""


class AdapterView(Schema):
    """A LoRA adapter that jobs can name."""

    name: str
    """Its name."""
    model: str
    """The model that it is for."""
    scale: float = 1.0
    """How strongly it counts where a job does not say."""
    trigger_words: tuple[str, ...] = ()
    """Words that it was trained with, to put into the prompt."""
    ready: bool = False
    """Whether a worker holds it now. Of one that none holds, the next job that names it has one load it."""
    reason: Annotated[str, BeforeValidator(lambda value: value or "")] = ""
    """Why, for programs; empty while the operator has not said."""
    message: Annotated[str, BeforeValidator(lambda value: value or "")] = ""
    """The same for people."""
    rank: int | None = None
    """The largest rank of its layers; None until a worker has loaded it."""
    digest: str | None = None
    """SHA-256 of its weights' file; None until a worker has loaded it."""

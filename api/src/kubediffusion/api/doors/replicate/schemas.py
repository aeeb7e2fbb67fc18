"""What Replicate's clients get: predictions, models and errors in the form of https://replicate.com/docs/reference/http."""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any, Literal

from pydantic import Field

from kubediffusion.api.derived import ResponseModel


class ReplicateInvalidField(ResponseModel):
    """One field that is refused."""

    type: str
    """A word for programs."""
    field: Annotated[str, Field(examples=["input.width"])]
    """Its path in the body; empty for the whole body."""
    description: str
    """The reason and the remedy."""


class ReplicateErrorBody(ResponseModel):
    """An error in the form of Replicate's, which is that of RFC 9457."""

    title: str
    detail: str
    """For people: the field, the reason and the remedy."""
    status: int
    """The HTTP status."""
    invalid_fields: list[ReplicateInvalidField] | None = None
    """What is refused, one by one; absent unless fields are."""


class PredictionUrls(ResponseModel):
    """Addresses of a prediction."""

    get: str
    """Where it can be read."""
    cancel: str
    """Where it can be cancelled, by POST."""


class Prediction(ResponseModel):
    """A job as Replicate's clients read it."""

    id: str
    """The job's name."""
    model: Annotated[str, Field(examples=["default/stable-diffusion-v1-5"])]
    """Namespace and name of its DiffusionModel."""
    version: str
    """The version of the model as it is now; ``hidden`` where there is no such model any more."""
    status: Literal["starting", "processing", "succeeded", "failed", "canceled"]
    input: dict[str, Any]
    """What was asked for."""
    logs: str = ""
    """Empty: workers' logs are for whoever runs them."""
    error: str | None
    """Why it failed."""
    metrics: dict[str, float]
    """``predict_time`` in the pipeline and ``total_time`` from creation to end, in seconds, once it has finished."""
    created_at: dt.datetime
    started_at: dt.datetime | None
    completed_at: dt.datetime | None
    urls: PredictionUrls
    data_removed: bool = False
    """Whether its images have been deleted from storage."""
    output: list[str] | None = None
    """Once it has succeeded an address of each image over https; over http, and without an address in lists, the images
    themselves as ``data:`` addresses, as Replicate's clients take both for files and no others."""


class PredictionPage(ResponseModel):
    """Predictions, newest first."""

    previous: None = None
    next: str | None
    """Address of the next page; null on the last."""
    results: list[Prediction]


class ReplicateVersion(ResponseModel):
    """What a model loads."""

    id: str
    """64 hexadecimal digits. Another, once the model is told to load something else."""
    created_at: dt.datetime
    cog_version: str
    openapi_schema: dict[str, Any]
    """What its input and output are."""


class VersionPage(ResponseModel):
    """The versions of a model: one."""

    previous: None = None
    next: None = None
    results: list[ReplicateVersion]


class ReplicateModel(ResponseModel):
    """A DiffusionModel as Replicate's clients read it."""

    url: str
    owner: str
    """The namespace."""
    name: str
    description: str | None
    """Why it cannot be used now; null when it can."""
    visibility: Literal["private"] = "private"
    github_url: None = None
    paper_url: None = None
    license_url: None = None
    run_count: int = 0
    """Not counted."""
    cover_image_url: None = None
    default_example: None = None
    latest_version: ReplicateVersion


class ModelPage(ResponseModel):
    """The models of this namespace."""

    previous: None = None
    next: None = None
    results: list[ReplicateModel]

"""What clients get of models. Whatever a DiffusionModel has too is derived from it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.fields import FieldInfo

from kubediffusion.api.acceleration_schemas import AccelerationView
from kubediffusion.api.adapter_schemas import ModelAdapter
from kubediffusion.api.derived import ResponseModel, view_of
from kubediffusion.resources import diffusion_model, generation_job
from kubediffusion.resources.pipeline_facts import Task


@view_of(diffusion_model.JobLimits)
class ModelLimits(ResponseModel):
    """The most that one job may ask for."""


@view_of(
    generation_job.Parameters,
    parts={generation_job.Acceleration: AccelerationView},
    without=generation_job.Parameters.model_fields.keys() - diffusion_model.JobDefaults.model_fields.keys(),
)
class ModelDefaults(ResponseModel):
    """What a job gets that does not say otherwise; null where the pipeline's own value applies."""


@view_of(
    diffusion_model.WorkerStart,
    documented={
        "worker": FieldInfo(),
        "reason": FieldInfo(description="A word for programs, for example ``LoadingWeights``."),
    },
)
class ModelStart(ResponseModel):
    """How far the start of one worker has come."""


@view_of(
    diffusion_model.WorkerCounts,
    documented={
        "ready": FieldInfo(),
        "busy": FieldInfo(),
        "starting": FieldInfo(),
        "starts": FieldInfo(description="How far they have come; then those that are ready and still compile."),
    },
    parts={diffusion_model.WorkerStart: ModelStart},
)
class ModelWorkers(ResponseModel):
    """Workers by what they do."""


NOT_SHOWN = {
    "conditions": "for kubectl; what a client needs of them is in `available`, `reason` and `message`",
    "pipeline": "what jobs get of it is in `defaults` and `limits`, what they may ask for in `tasks`",
    "selector": "for autoscalers, by the scale subresource",
    "template_hash": "for the operator: which worker template the status speaks of",
    "observed_generation": "for controllers: which spec the status speaks of",
}
"""The fields of a DiffusionModel's status that no view shows, and why."""


@view_of(
    diffusion_model.DiffusionModelStatus,
    documented={
        "workers": FieldInfo(),
        "queued": FieldInfo(description="Jobs that wait for a worker, as the operator counted last."),
    },
    parts={diffusion_model.WorkerCounts: ModelWorkers},
    without=NOT_SHOWN,
)
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
    tasks: list[Task]
    """What it makes images of, for example ``image-to-image``; empty until a worker has loaded it."""
    adapters: list[ModelAdapter]
    """LoRA adapters that a job of it can name."""


class OpenAIModel(ResponseModel):
    """A model as OpenAI's clients read it."""

    id: Annotated[str, Field(examples=["stable-diffusion-v1-5"])]
    """Its name."""
    object: Literal["model"] = "model"
    created: int
    """Seconds since the epoch."""
    owned_by: str
    """The namespace that it is of."""


class ModelDetail(ModelView, OpenAIModel):
    """A model, also as OpenAI's clients read it."""


class ModelList(ResponseModel):
    """The models of this namespace: in full, and as OpenAI's clients read them."""

    models: list[ModelView]
    object: Literal["list"] = "list"
    data: list[OpenAIModel]

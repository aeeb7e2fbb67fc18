"""What clients send and get of adapters."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.fields import FieldInfo

from kubediffusion.api.derived import RequestModel, ResponseModel, request_of, view_of
from kubediffusion.resources.adapters import AppliedAdapter, JobAdapter

EXAMPLE_ADAPTER = "line-drawing"


@request_of(
    JobAdapter,
    documented={
        # No examples: a request that is made of the document's would name an adapter that is not there.
        "name": FieldInfo(description="One of ``GET /v1/adapters``, of the job's model."),
        "scale": FieldInfo(
            description="How strongly it counts: 0 is not at all, 1 as it was trained; the adapter's own scale when "
            "absent.",
        ),
    },
)
class AdapterChoice(RequestModel):
    """An adapter that the job's images are made with."""


@view_of(AppliedAdapter)
class AppliedAdapterView(ResponseModel):
    """An adapter that images were made with."""


class ModelAdapter(ResponseModel):
    """An adapter of a model."""

    name: Annotated[str, Field(examples=[EXAMPLE_ADAPTER])]
    """What ``adapters`` of a job names."""
    scale: float
    """How strongly it counts where a job does not say."""
    trigger_words: list[str]
    """Words that it was trained with, to put into the prompt."""
    ready: bool
    """Whether a worker holds it now. Of one that none holds, the next job that names it has one load it."""
    reason: str | None
    """Why, for programs: ``Loaded``, ``NotLoaded``, or why it cannot be; null while the operator has not said."""
    message: str | None
    rank: int | None
    """The largest rank of its layers; null until a worker has loaded it."""
    digest: str | None
    """SHA-256 of its weights' file; null until a worker has loaded it."""


class AdapterView(ModelAdapter):
    """An adapter that jobs can name."""

    model: str
    """The model that it is for."""


class AdapterList(ResponseModel):
    """The adapters of this namespace, by name."""

    adapters: list[AdapterView]

"""What clients send and get of the images that jobs are made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.fields import FieldInfo

from kubediffusion.api.derived import RequestModel, ResponseModel, request_of, view_of
from kubediffusion.resources.generation_job import InputRole, JobInput

EXAMPLE_INPUT = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"


@request_of(
    JobInput,
    documented={
        "role": FieldInfo(
            description="``image``: the job begins from it. ``mask``: white where that is painted anew, black where "
            "its pixels stay.",
            examples=[InputRole.IMAGE],
        ),
        "id": FieldInfo(description="What ``POST /v1/inputs`` answered.", examples=[EXAMPLE_INPUT]),
    },
)
class InputImage(RequestModel):
    """An image that the job is made of."""


@view_of(JobInput)
class InputImageView(ResponseModel):
    """An image that the job was made of."""


class StoredInputView(ResponseModel):
    """An image that was stored."""

    id: Annotated[str, Field(examples=[EXAMPLE_INPUT])]
    """SHA-256 of the bytes in storage: what ``inputs`` of a job names."""
    width: int
    """Pixels."""
    height: int
    """Pixels."""
    bytes: int
    """Size of the PNG in storage."""

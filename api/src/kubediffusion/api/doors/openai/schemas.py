"""What OpenAI's clients get: images, models and errors in the form of https://platform.openai.com/docs/api-reference."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from kubediffusion.api.derived import ResponseModel


class OpenAIErrorDetail(ResponseModel):
    """What went wrong."""

    message: str
    """For people: the field, the reason and the remedy."""
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    param: str | None
    """The field that is refused."""
    code: str | None
    """A word for programs; of a job that failed its own code."""


class OpenAIErrorBody(ResponseModel):
    """An error in the form of OpenAI's."""

    error: OpenAIErrorDetail


class OpenAIImage(ResponseModel):
    """One image: its bytes or its address, as ``response_format`` asks."""

    b64_json: str | None = None
    """The image in base64."""
    url: str | None = None
    """Presigned address of the PNG in storage, valid for a limited time."""


class OpenAIImages(ResponseModel):
    """Generated images in the form of OpenAI's."""

    created: int
    """Seconds since the epoch."""
    background: Literal["opaque"]
    output_format: Literal["png", "jpeg", "webp"]
    quality: Literal["auto"]
    size: Annotated[str, Field(examples=["512x512"])]
    usage: dict[str, Any]
    """Zeroes: diffusion models count steps, not tokens."""
    data: list[OpenAIImage]

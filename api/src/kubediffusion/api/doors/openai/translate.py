"""OpenAI's images API over the same jobs: its request, its response and its stream. Pure.

The fields are those of https://platform.openai.com/docs/api-reference/images/create. Whatever else a GenerationJob
takes may stand beside them in snake_case, as ``extra_body`` of OpenAI's client sends it; other fields are ignored, as
clients send what newer models of OpenAI know.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from kubediffusion.api.derived import StrictNumbers, request_of
from kubediffusion.api.doors.common import FieldNames, around_images
from kubediffusion.api.encoding import Encoding, OutputFormat
from kubediffusion.api.errors import ApiError, InvalidRequestError, problem
from kubediffusion.api.job_cache.records import StoredImage
from kubediffusion.api.schemas import EXAMPLE_PROMPT, NOT_AT_DOORS, SPEC_PARTS, JobRequest
from kubediffusion.resources import generation_job

SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")

OWN_NAMES = {"prompt": "prompt", "model": "model", "num_images": "n", "width": "size", "height": "size"}
"""The fields of a job that have a name of OpenAI's here, by their own."""

FIELD_NAMES = FieldNames(OWN_NAMES)

COMPLETED = "image_generation.completed"
"""The event of a stream that carries an image."""


class ResponseFormat(StrEnum):
    """How an image is handed out."""

    B64_JSON = "b64_json"
    URL = "url"


class Background(StrEnum):
    """What is behind the image's subject."""

    AUTO = "auto"
    OPAQUE = "opaque"
    TRANSPARENT = "transparent"


class OpenAIRequest(StrictNumbers):
    """What OpenAI's clients say of the images that they want, and how they are handed out."""

    model_config = ConfigDict(extra="ignore", use_attribute_docstrings=True, from_attributes=True)

    prompt: Annotated[str, Field(examples=[EXAMPLE_PROMPT])]
    """What the image shows."""
    model: str | None = None
    """A DiffusionModel, one of ``GET /v1/models``; the default model when absent."""
    n: Annotated[int, Field(ge=1)] | None = None
    """Images to generate, up to the model's limit; 1 when absent."""
    size: Annotated[str, Field(examples=["512x512"])] | None = None
    """``WIDTHxHEIGHT`` in pixels, or ``auto`` for the model's own size."""
    quality: str | None = None
    """Taken and without effect: ``num_inference_steps`` is what makes a diffusion model more careful."""
    background: Background | None = None
    """``transparent`` is refused: the models draw opaque images."""
    response_format: ResponseFormat | None = None
    """``b64_json``, the default, or ``url``: a presigned address in storage, valid for a limited time."""
    output_format: OutputFormat | None = None
    """How the image is encoded; ``png``, as it was stored, when absent."""
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    """Quality of ``jpeg`` and ``webp`` in percent; 100 when absent."""
    stream: bool | None = None
    """Whether the answer is a stream of server-sent events, which keeps proxies from losing patience."""
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = None
    """Taken and without effect: the stream has finished images only."""

    @property
    def encoding(self) -> Encoding:
        """How the images are encoded."""
        quality = 100 if self.output_compression is None else self.output_compression
        return Encoding(self.output_format or OutputFormat.PNG, quality)

    @property
    def as_url(self) -> bool:
        """Whether addresses are handed out instead of images."""
        return self.response_format is ResponseFormat.URL


@request_of(
    generation_job.GenerationJobSpec,
    parts=SPEC_PARTS,
    without=NOT_AT_DOORS | OWN_NAMES.keys(),
)
class ImageGenerationRequest(OpenAIRequest):
    """What to draw, as OpenAI's clients say it. ``prompt`` alone is enough; unknown fields are ignored."""


def job_request(request: OpenAIRequest, deadline_seconds: int) -> JobRequest:
    """Build the request of a job.

    Args:
        request: What the client sent.
        deadline_seconds: After which nobody waits for the job any more; it ends then, unless the client says
            ``active_deadline_seconds`` itself.

    Raises:
        InvalidRequestError: A field has a value that cannot be had.
    """
    problems = []
    width = height = None
    if request.size not in {None, "auto"}:
        if size := SIZE.fullmatch(request.size or ""):
            width, height = int(size[1]), int(size[2])
        else:
            problems.append(problem("size", "It must be WIDTHxHEIGHT in pixels, such as 512x512, or auto"))
    if request.background is Background.TRANSPARENT:
        problems.append(problem("background", "The models draw opaque images; send auto or opaque, or leave it out"))
    if request.as_url and request.encoding.format is not OutputFormat.PNG:
        message = "Storage holds PNG files; ask for png, or for response_format b64_json"
        problems.append(problem("output_format", message))
    if request.as_url and request.stream:
        problems.append(problem("response_format", "A stream carries images; ask for b64_json, or do not stream"))
    if problems:
        raise InvalidRequestError(problems)
    taken = type(request).model_fields.keys() & JobRequest.model_fields.keys() - OWN_NAMES.keys()
    fields = {name: getattr(request, name) for name in taken}
    if fields["active_deadline_seconds"] is None:
        fields["active_deadline_seconds"] = deadline_seconds
    own = {"prompt": request.prompt, "model": request.model, "num_images": request.n, "width": width, "height": height}
    return FIELD_NAMES.job_request({**fields, **own})


def openai_error(error: ApiError) -> tuple[int, dict[str, Any]]:
    """Return status and body of an error as OpenAI has them.

    Its clients choose their exception by the status: 400 for what is wrong with the request, 401 for any key that is
    not valid, 404 for a model that does not exist. See https://platform.openai.com/docs/guides/error-codes.
    """
    status, param, message = error.status, None, error.detail
    code: str | None = None
    if isinstance(message, list):
        # One field is named by the form; the others are in the message.
        param = next((str(entry["loc"][-1]) for entry in message if len(entry["loc"]) > 1), None)
        code = "model_not_found" if param == "model" else "invalid_value"
        message = "; ".join(
            entry["msg"] if len(entry["loc"]) == 1 else f"{entry['loc'][-1]}: {entry['msg']}" for entry in message
        )
    match status:
        case 401 | 403:
            status, kind, code = 401, "invalid_request_error", "invalid_api_key"
        case 422:
            status, kind = (404 if code == "model_not_found" else 400), "invalid_request_error"
        case 429:
            kind, code = "rate_limit_error", "rate_limit_exceeded"
        case _:
            kind = "invalid_request_error" if status < 500 else "server_error"
    return status, {"error": {"message": message, "type": kind, "param": param, "code": error.code or code}}


def response_fields(image: StoredImage, encoding: OutputFormat) -> dict[str, Any]:
    """Build what a response and each event of a stream say of the images."""
    return {
        "background": Background.OPAQUE,
        "output_format": encoding,
        "quality": "auto",
        "size": f"{image.width}x{image.height}",
    }


USAGE = {
    "input_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    "output_tokens": 0,
    "total_tokens": 0,
}
"""Clients read it without looking whether it is there; diffusion models count steps, not tokens."""


def document_parts(created: int, images: Sequence[StoredImage], encoding: OutputFormat) -> list[bytes]:
    """Serialise the response without its images.

    Returns:
        What comes before the first image's base64, between each two, and after the last.
    """
    fields = {"created": created, **response_fields(images[0], encoding), "usage": USAGE}
    return around_images(fields, "data", len(images), '{"b64_json":"', '"}')


def document_with_urls(created: int, images: Sequence[StoredImage], urls: Sequence[str]) -> dict[str, Any]:
    """Build the response with the images' addresses."""
    fields = response_fields(images[0], OutputFormat.PNG)
    return {"created": created, **fields, "usage": USAGE, "data": [{"url": url} for url in urls]}


def event_parts(kind: str, created: int, image: StoredImage, encoding: OutputFormat) -> tuple[bytes, bytes]:
    """Serialise what comes before and after an image's base64 in the event of this kind that carries it."""
    fields = {"type": kind, "created_at": created, **response_fields(image, encoding), "usage": USAGE}
    head = f"event: {kind}\ndata: {json.dumps(fields)[:-1]}"
    return head.encode() + b',"b64_json":"', b'"}\n\n'


def error_event(error: ApiError) -> bytes:
    """Serialise an error that comes when the response has begun."""
    return f"event: error\ndata: {json.dumps(openai_error(error)[1])}\n\n".encode()

"""``edits`` of OpenAI's images API: its form, and what its mask means. Pure.

The fields are those of https://platform.openai.com/docs/api-reference/images/createEdit, and what a GenerationJob takes
beside them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image
from pydantic_core import from_json

from kubediffusion.api.acceleration_schemas import Acceleration
from kubediffusion.api.derived import request_of
from kubediffusion.api.doors.common import FieldNames, validated
from kubediffusion.api.doors.openai.translate import OWN_NAMES, OpenAIRequest
from kubediffusion.api.errors import InvalidRequestError, problem
from kubediffusion.api.forms import Form, FormFile
from kubediffusion.api.schemas import NOT_AT_DOORS
from kubediffusion.resources import generation_job

FIELD_NAMES = FieldNames({**OWN_NAMES, "inputs": "image"})

COMPLETED = "image_edit.completed"
"""The event of a stream that carries an image."""

IMAGE_FIELDS = frozenset({"image", "image[]", "image[0]"})
"""What clients call the image, alone or as the first of several."""


@request_of(
    generation_job.GenerationJobSpec,
    parts={generation_job.Acceleration: Acceleration},
    # No adapters: a form has no objects in lists.
    without=NOT_AT_DOORS | OWN_NAMES.keys() | {"inputs", "adapters"},
)
class ImageEditRequest(OpenAIRequest):
    """What to make of an image, as OpenAI's clients say it; unknown fields are ignored."""


class Edit(NamedTuple):
    """An edit that is asked for: the fields, the image and the mask."""

    request: ImageEditRequest
    image: bytes
    mask: bytes | None


def edit_of(form: Form) -> Edit:
    """Build the request of a form.

    Raises:
        InvalidRequestError: It is not valid.
    """
    # What was left empty in a form was not filled in.
    fields = {name: value for name, value in form.tree().items() if value != "" or name == "prompt"}
    if isinstance(text := fields.get("acceleration"), str):
        # An object of a form is JSON where its parts are no fields of their own, as OpenAPI has it.
        with contextlib.suppress(ValueError):
            fields["acceleration"] = from_json(text)
    request = validated(ImageEditRequest, fields)
    images = [file for file in form.files if file.field.startswith("image")]
    masks = [file for file in form.files if file.field == "mask"]
    problems = []
    if not images:
        problems.append(problem("image", "It is missing: send a PNG, JPEG or WebP as a file of the form", "missing"))
    if len(images) > 1:
        problems.append(problem("image", f"One image is taken, and here are {len(images)}: there are no references"))
    if len(masks) > 1:
        problems.append(problem("mask", "One mask is taken"))
    problems += [problem(name, "It cannot be had here; leave it out") for name in _others(form.files)]
    if problems:
        raise InvalidRequestError(problems)
    return Edit(request, images[0].data, masks[0].data if masks else None)


def _others(files: Sequence[FormFile]) -> list[str]:
    return sorted({file.field[:100] for file in files if file.field != "mask" and not file.field.startswith("image")})


def edited(mask: Image.Image) -> Image.Image:
    """Return a mask as jobs have it, white where OpenAI's is fully transparent: there the image is edited.

    Raises:
        InvalidRequestError: It is nowhere.
    """
    if mask.mode == "RGBA":
        white = mask.getchannel("A").point(lambda alpha: 255 if alpha == 0 else 0)
        if white.getextrema() != (0, 0):
            return white
    message = "The mask has no fully transparent pixels, and those are what is edited"
    raise InvalidRequestError([problem("mask", message, "image_refused")])

"""What to generate, from the words of whoever asks to the fields of a job's spec. Pure.

Only short words for common fields are known here. Any other field goes to the server by its own name, and the server
says what it does not take: a new field of a job needs no edit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kubediffusion.client.errors import FieldProblem, InvalidRequestError

if TYPE_CHECKING:
    from kubediffusion.client.views import JobView
    from kubediffusion.resources.generation_job import GenerationJobSpec

Spec = dict[str, Any]
"""The fields of a job's spec by their names in snake_case, as the HTTP API takes them."""

Size = str | tuple[int, int]
"""``"512x768"``, or width and height; one number is a square."""

SHORT_WORDS: Mapping[str, str] = {
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "count": "num_images",
    "negative": "negative_prompt",
}
"""Short words for common fields."""

NOT_REPEATED = {"cancel", "suspend"}
"""Fields of a job that another one like it does not take over."""

_CAMEL = re.compile(r"(?<=[a-z0-9])([A-Z])")


def spec_of(prompt: str | GenerationJobSpec, fields: Mapping[str, Any], size: Size | None = None) -> Spec:
    """Build the spec of a job.

    Args:
        prompt: What the image shows; or a whole spec, which the fields change.
        fields: Fields by their names in snake_case or by a short word; those that are None are left out.
        size: Width and height.

    Raises:
        InvalidRequestError: The size cannot be read.
    """
    spec: Spec = {"prompt": prompt} if isinstance(prompt, str) else fields_of(prompt)
    spec |= {SHORT_WORDS.get(name, name): value for name, value in fields.items() if value is not None}
    if size is not None:
        spec["width"], spec["height"] = parse_size(size)
    return spec


def spec_again(job: JobView, fields: Mapping[str, Any], size: Size | None = None) -> Spec:
    """Build the spec of a job like another one.

    Args:
        job: The other one; its seed is taken over as well, the one that was drawn if none was asked for.
        fields: What is different, as in :func:`spec_of`.
        size: Another width and height.
    """
    ran = job.parameters.seed if job.parameters else job.request.seed
    return spec_of(
        job.request, {"seed": ran, **{name: value for name, value in fields.items() if value is not None}}, size
    )


def fields_of(spec: GenerationJobSpec) -> Spec:
    """Return the fields of a job's spec that another job like it takes over."""
    return spec.model_dump(mode="json", exclude_none=True, exclude=NOT_REPEATED)


def parse_size(size: Size) -> tuple[int, int]:
    """Return width and height, in pixels.

    Raises:
        InvalidRequestError: The size cannot be read.
    """
    if not isinstance(size, str):
        return size
    if (found := re.fullmatch(r"(\d+)(?:\s*[xX*]\s*(\d+))?", size.strip())) is None:
        raise InvalidRequestError([FieldProblem("size", f"{size!r} is no size; write 512x768, or 512 for a square")])
    return int(found[1]), int(found[2] or found[1])


def parse_adapter(text: str) -> dict[str, Any]:
    """Return an adapter as a job names it, from ``NAME`` or ``NAME:SCALE``.

    Raises:
        InvalidRequestError: The scale is no number.
    """
    name, colon, scale = text.partition(":")
    if not colon:
        return {"name": name}
    try:
        return {"name": name, "scale": float(scale)}
    except ValueError:
        message = f"{text!r} has no number after its colon; write NAME or NAME:SCALE, as in line-drawing:0.8"
        raise InvalidRequestError([FieldProblem("adapters", message)]) from None


def set_field(spec: Spec, assignment: str) -> None:
    """Set a field of a spec as the command line writes it: ``spec.acceleration.featureCaching.interval=3``.

    Args:
        spec: The spec, which is changed.
        assignment: The path of the field, in camelCase as in manifests or in snake_case, with or without ``spec.``
            before it; and its value in YAML.

    Raises:
        InvalidRequestError: There is no ``=`` in it, its value is no YAML, or a part of the path is no object.
    """
    import yaml

    path, equals, text = assignment.partition("=")
    names = [snake_case(name) for name in path.strip().removeprefix("spec.").split(".")]
    if not equals or not all(names):
        raise InvalidRequestError([FieldProblem("set", f"{assignment!r} is no assignment; write field=value")])
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InvalidRequestError([FieldProblem(".".join(names), f"{text!r} is not valid YAML")]) from None
    place = spec
    for name in names[:-1]:
        place = place.setdefault(name, {})
        if not isinstance(place, dict):
            raise InvalidRequestError([FieldProblem(".".join(names), f"{name} has a value that has no fields")])
    place[SHORT_WORDS.get(names[-1], names[-1])] = value


def snake_case(name: str) -> str:
    """Return the name that the HTTP API has for a field of a manifest: ``numImages`` is ``num_images``."""
    return _CAMEL.sub(r"_\1", name).lower()

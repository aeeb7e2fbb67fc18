"""What a worker that has loaded a model knows of its pipeline: what a job gets that names nothing, and what it may ask.

A worker tells it in a condition of its Pod, and the operator keeps it in the model's status, so that jobs are resolved
and refused by it also while no worker has the model.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from functools import lru_cache
from typing import Annotated

from pydantic import Field

from kubediffusion.resources.generation_job import (
    DEFAULT_GUIDANCE,
    DEFAULT_STEPS,
    Guidance,
    InputRole,
    JobInput,
    Scheduler,
    Steps,
)
from kubediffusion.resources.schema import Schema
from kubediffusion.resources.texts import MAX_REASON, cut_to

Positive = Annotated[int, Field(ge=1)]


class Task(StrEnum):
    """What an image is made of, by the pipeline tags of the Hugging Face Hub."""

    TEXT_TO_IMAGE = "text-to-image"
    """Of the prompt alone."""
    IMAGE_TO_IMAGE = "image-to-image"
    """Of the prompt and an image."""
    INPAINTING = "inpainting"
    """Of the prompt and an image, where a mask says."""


def task_of(inputs: Iterable[JobInput]) -> Task:
    """Return the task of a job with these inputs."""
    roles = {given.role for given in inputs}
    if InputRole.MASK in roles:
        return Task.INPAINTING
    return Task.IMAGE_TO_IMAGE if InputRole.IMAGE in roles else Task.TEXT_TO_IMAGE


class PipelineDefaults(Schema):
    """What a job gets where neither it nor the model's spec says otherwise."""

    num_inference_steps: Steps = DEFAULT_STEPS
    """Denoising steps."""
    guidance_scale: Guidance = DEFAULT_GUIDANCE
    """Guidance scale."""
    width: Positive | None = None
    """Pixels; absent where only an image shows it."""
    height: Positive | None = None
    """Pixels; absent where only an image shows it."""


class PipelineFacts(Schema):
    """What is known of a model's pipeline once a worker has loaded it."""

    name: Annotated[str, Field(max_length=MAX_REASON), cut_to(MAX_REASON)]
    """The diffusers class."""
    defaults: PipelineDefaults = PipelineDefaults()
    """What a job gets where neither it nor the model's spec says otherwise."""
    size_multiple: Positive | None = None
    """Width and height must be multiples of so many pixels; absent where that is not known."""
    prompt_tokens: Positive | None = None
    """Tokens of a prompt that every text encoder takes, their marks included; absent where none has a limit."""
    guidance: bool = True
    """Whether guidanceScale has an effect."""
    negative_prompt: bool = True
    """Whether negativePrompt can have an effect."""
    schedulers: tuple[Scheduler, ...] = ()
    """The noise schedulers that run it, of those that a job can name."""
    tasks: tuple[Task, ...] = ()
    """What it makes images of; absent where that is not known."""
    adapters: bool | None = None
    """Whether its images can be made with adapters; absent where that is not known."""

    def to_json(self) -> str:
        """Serialise for the worker's Pod."""
        return self.model_dump_json(by_alias=True, exclude_none=True)


@lru_cache(maxsize=256)
def facts_from_json(text: str) -> PipelineFacts | None:
    """Parse what a worker told of its pipeline; None where it is something else, as workers may run anybody's code."""
    try:
        return PipelineFacts.model_validate_json(text)
    except ValueError:
        return None

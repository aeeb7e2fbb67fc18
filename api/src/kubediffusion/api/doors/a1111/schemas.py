"""What clients of AUTOMATIC1111's web UI get: images, samplers, models and errors in the form of its ``/sdapi/v1``."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from kubediffusion.api.derived import ResponseModel


class A1111ErrorBody(ResponseModel):
    """An error in the form of the web UI's."""

    error: str
    """What kind of error."""
    detail: str | list[dict[str, Any]]
    """For people, or the refused fields: ``loc``, ``msg`` and ``type``."""
    body: str = ""
    errors: str
    """For people: the field, the reason and the remedy."""


class A1111Images(ResponseModel):
    """Generated images."""

    parameters: dict[str, Any]
    """The request as it was understood."""
    info: str
    """What was made, as JSON in a text: prompts, seeds, sizes, and the text of each image in ``infotexts``."""
    images: list[str]
    """PNGs in base64. Each has the text in its chunk ``parameters``, beside the recipe that it was stored with."""


class A1111State(ResponseModel):
    """What is being done."""

    skipped: bool = False
    interrupted: bool = False
    job: str
    """The job that runs; empty when none does."""
    job_count: int
    """Unfinished jobs."""
    job_timestamp: str = ""
    job_no: int = 0
    sampling_step: int
    sampling_steps: int


class A1111Progress(ResponseModel):
    """How far the oldest job that runs is."""

    progress: float
    """From 0 to 1; 0 when none runs."""
    eta_relative: float
    """Seconds that it still takes, if it goes on so."""
    state: A1111State
    current_image: str | None = None
    """A small PNG in base64, once there is one: what the image will look like, roughly."""
    textinfo: None = None


class A1111Sampler(ResponseModel):
    """A sampler."""

    name: Annotated[str, Field(examples=["Euler a"])]
    aliases: list[str]
    """The scheduler's class in diffusers."""
    options: dict[str, str] = {}  # noqa: RUF012 - pydantic copies it


class A1111Scheduler(ResponseModel):
    """A schedule of the noise."""

    name: str = "automatic"
    label: str = "Automatic"
    aliases: list[str] | None = None
    default_rho: float = -1
    need_inner_model: bool = False


class A1111Model(ResponseModel):
    """A DiffusionModel as a checkpoint."""

    title: str
    """Its name, for ``override_settings.sd_model_checkpoint``."""
    model_name: str
    hash: None = None
    sha256: None = None
    filename: str
    config: None = None


class A1111Lora(ResponseModel):
    """A LoRAAdapter."""

    name: Annotated[str, Field(examples=["line-drawing"])]
    """What ``<lora:NAME:SCALE>`` in a prompt names."""
    alias: str
    path: str
    """Its name again: where it lies is not told."""
    metadata: dict[str, Any]
    """The model that it is for, and its trigger words."""


class A1111Options(ResponseModel):
    """The settings that clients ask for."""

    sd_model_checkpoint: str | None
    """The model of requests that name none; null where there is none."""
    sd_checkpoint_hash: str = ""
    samples_format: str = "png"

"""What the worker asks of an engine, and what an engine answers: typed values, no torch.

The unit of work is one image. An engine is given a batch of images of one shape and tells a monitor about each of them
as it goes: its steps, and its end. That fits a static batch through a pipeline's own call, where all images end
together, and an engine that fills the slots of a running batch between two steps.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass, field
from typing import Protocol

from kubediffusion.resources.errors import JobFailure


class BadModelError(Exception):
    """The model cannot be loaded, and a restart would not change that. The message says why and names the remedy."""


class EngineLostError(Exception):
    """The engine cannot be used any more, for example after a CUDA error: only a new process helps."""


@dataclass(frozen=True)
class Shape:
    """What images must have in common to run in one batch.

    Attributes:
        steps: Denoising steps.
        guidance: Classifier-free guidance scale.
        width: Pixels; None for the pipeline's own size.
        height: Pixels; None for the pipeline's own size.
        scheduler: diffusers class; None for the pipeline's own.
        deterministic: Runs in a fixed shape, so that the same bytes come out on every attempt.
    """

    steps: int
    guidance: float
    width: int | None = None
    height: int | None = None
    scheduler: str | None = None
    deterministic: bool = False


@dataclass(frozen=True)
class Ticket:
    """Names one image within the worker.

    Attributes:
        uid: The job.
        attempt: The binding of the job.
        index: The image within the job.
    """

    uid: str
    attempt: int
    index: int


@dataclass(frozen=True)
class ImageTask:
    """One image to make.

    Attributes:
        ticket: Its name.
        prompt: What it shows.
        negative_prompt: What it should not show; None is not the same as an empty text for every pipeline.
        seed: Seed of its noise.
        shape: What it must share with its batch.
    """

    ticket: Ticket
    prompt: str = field(repr=False)
    negative_prompt: str | None = field(repr=False)
    seed: int
    shape: Shape


@dataclass(frozen=True)
class Picture:
    """One image that is ready.

    Attributes:
        width: Pixels.
        height: Pixels.
        rgb: ``height * width * 3`` bytes, row by row.
        scheduler: The diffusers class that was used.
        flagged: The safety checker flagged it; it is blank.
        warnings: What the reader should know, for example that the prompt was cut.
    """

    width: int
    height: int
    rgb: bytes = field(repr=False)
    scheduler: str
    flagged: bool = False
    warnings: tuple[str, ...] = ()


Outcome = Picture | JobFailure
"""How an image ends."""


class Monitor(Protocol):
    """Who an engine reports to. Every method is called from the engine's thread and must not block."""

    def wanted(self, ticket: Ticket) -> bool:
        """Tell whether anybody still wants the image; asked after every step."""

    def stepped(self, ticket: Ticket, step: int, total: int) -> None:
        """Note that ``step`` of ``total`` denoising steps are done."""

    def ended(self, ticket: Ticket, outcome: Outcome) -> None:
        """Note the end of an image. An image that is no longer wanted may end without it."""


@dataclass(frozen=True)
class EngineInfo:
    """What ran the images, for the recipe.

    Attributes:
        name: The engine.
        pipeline: The diffusers pipeline class.
        device: Kind of device, for example ``cpu`` or ``NVIDIA H100``.
        torch_dtype: Numbers that the weights are held in.
        revision: Commit or content hash of the model.
        versions: Versions of the libraries that decide pixels, by package name.
    """

    name: str
    pipeline: str
    device: str
    torch_dtype: str
    revision: str
    versions: dict[str, str]


class Engine(Protocol):
    """Makes images. Used from one thread only."""

    @property
    def info(self) -> EngineInfo:
        """What this engine is."""

    def run(self, tasks: tuple[ImageTask, ...], monitor: Monitor) -> None:
        """Make the images of one batch, all of one shape, and tell the monitor how each ends.

        Returns when every image has ended or is no longer wanted.

        Raises:
            EngineLostError: The process must end; images that have not ended were not made.
        """


def described(error: BaseException) -> dict[str, object]:
    """Give an error's type and traceback for a log line, without its text: that may quote a prompt."""
    return {"error": type(error).__name__, "traceback": traceback.format_tb(error.__traceback__)}

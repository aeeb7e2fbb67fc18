"""What an image is asked for with, and what it ends with. Values that can be pickled; no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

from kubediffusion.resources.failures import JobFailure
from kubediffusion.resources.generation_job import Acceleration, Parameters
from kubediffusion.resources.pipeline_facts import Task
from kubediffusion.worker.engine.adapters import ImageAdapter


@dataclass(frozen=True)
class SamplingParameters:
    """What decides how an image is computed, apart from its prompts and its seed.

    Attributes:
        steps: Denoising steps.
        guidance: Classifier-free guidance scale.
        width: Pixels; None for the pipeline's own size.
        height: Pixels; None for the pipeline's own size.
        scheduler: diffusers class; None for the pipeline's own.
        deterministic: Runs in a fixed shape, so that the same bytes come out on every attempt.
        acceleration: Speed for quality; None for none.
        prompt_weighting: Whether weights in prompts are heeded, and long ones encoded in chunks.
        strength: How much of an input image is made anew, 0 to 1; None where there is none.
    """

    steps: int
    guidance: float
    width: int | None = None
    height: int | None = None
    scheduler: str | None = None
    deterministic: bool = False
    acceleration: Acceleration | None = None
    prompt_weighting: bool = False
    strength: float | None = None

    @classmethod
    def of(cls, parameters: Parameters) -> Self:
        """Return what a job's recipe says of it."""
        return cls(
            steps=parameters.num_inference_steps,
            guidance=parameters.guidance_scale,
            width=parameters.width,
            height=parameters.height,
            scheduler=parameters.scheduler,
            deterministic=parameters.deterministic,
            acceleration=parameters.acceleration,
            prompt_weighting=bool(parameters.prompt_weighting),
            strength=parameters.strength,
        )

    def __str__(self) -> str:
        """Return its values, under the word by which those who read the worker's log know them."""
        return f"Shape{repr(self).removeprefix(type(self).__name__)}"


@dataclass(frozen=True)
class ImageId:
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
class InputImage:
    """An image that another is made of, in the size of the one that is made.

    Attributes:
        id: Hash of the bytes that it was decoded from.
        width: Pixels.
        height: Pixels.
        pixels: Row by row, ``height * width * 3`` bytes of RGB, or ``height * width`` of a mask.
    """

    id: str
    width: int
    height: int
    pixels: bytes = field(repr=False)


@dataclass(frozen=True)
class InputImages:
    """What an image is made of beside its prompts.

    Attributes:
        image: What it begins from.
        mask: Where it is painted anew: 0 keeps a pixel, 255 does not; None for everywhere.
    """

    image: InputImage
    mask: InputImage | None = None

    @property
    def task(self) -> Task:
        """What is asked for with them."""
        return Task.IMAGE_TO_IMAGE if self.mask is None else Task.INPAINTING


@dataclass(frozen=True)
class ImageRequest:
    """One image to make.

    Attributes:
        id: Its name.
        prompt: What it shows.
        negative_prompt: What it should not show; None is not the same as an empty text for every pipeline.
        seed: Seed of its noise.
        sampling: How it is computed.
        inputs: Images that it is made of; None for none.
        adapters: What is added to the model's weights for it.
    """

    id: ImageId
    prompt: str = field(repr=False)
    negative_prompt: str | None = field(repr=False)
    seed: int
    sampling: SamplingParameters
    inputs: InputImages | None = None
    adapters: tuple[ImageAdapter, ...] = ()

    @property
    def task(self) -> Task:
        """What is asked for."""
        return Task.TEXT_TO_IMAGE if self.inputs is None else self.inputs.task


@dataclass(frozen=True)
class ImageOutput:
    """One image that is ready.

    Attributes:
        width: Pixels.
        height: Pixels.
        rgb: ``height * width * 3`` bytes, row by row.
        scheduler: The diffusers class that was used.
        flagged: The safety checker flagged it; it is blank.
        warnings: What the reader should know, for example that the prompt was cut.
        engine: What made it, where that is not what :class:`EngineInfo` names.
    """

    width: int
    height: int
    rgb: bytes = field(repr=False)
    scheduler: str
    flagged: bool = False
    warnings: tuple[str, ...] = ()
    engine: str | None = None


@dataclass(frozen=True)
class ImagePreview:
    """What an image that is being made will look like, roughly.

    Attributes:
        width: Pixels, far fewer than the image's.
        height: Pixels.
        rgb: ``height * width * 3`` bytes, row by row.
    """

    width: int
    height: int
    rgb: bytes = field(repr=False)


Outcome = ImageOutput | JobFailure
"""How an image ends."""

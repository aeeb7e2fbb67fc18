"""The pipelines that make images of images, of the weights that a text-to-image pipeline holds.

diffusers has for many classes another whose call takes an image, and one whose call takes a mask too: they are built of
the components that are loaded, so that one set of weights serves all tasks.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from typing import Any

import diffusers
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kubediffusion.resources.pipeline_facts import Task
from kubediffusion.worker.engine import InputImages
from kubediffusion.worker.engine.interface import described
from kubediffusion.worker.families.input_images import as_pillow

logger = logging.getLogger(__name__)

_PIPELINES: Mapping[Task, tuple[str, frozenset[str]]] = {
    Task.IMAGE_TO_IMAGE: ("Img2ImgPipeline", frozenset({"image", "strength"})),
    Task.INPAINTING: ("InpaintPipeline", frozenset({"image", "mask_image", "strength"})),
}
"""How diffusers calls the pipeline of a task, and what its call must take. ``AutoPipelineForImage2Image`` would
import every pipeline that there is, which takes a worker's start seconds."""

_INPAINTED_CHANNELS = 4
"""Channels of the latents that diffusers' inpainting pipelines of UNets take."""

KEPT_BELOW = 128
"""Value of a mask below which a pixel is kept: diffusers rounds masks there."""


def task_pipeline_class(pipeline: type[Any], task: Task) -> type[Any] | None:
    """Return the class of a task for a text-to-image pipeline's class; None where diffusers has none that fits."""
    suffix, needed = _PIPELINES[task]
    name = pipeline.__name__
    found: type[Any] | None = getattr(diffusers, name.removesuffix("Pipeline") + suffix, None)
    if not name.endswith("Pipeline") or found is None:
        return None
    return found if needed <= inspect.signature(found.__call__).parameters.keys() else None


def task_pipeline(pipeline: Any, task: Task) -> Any | None:
    """Build the pipeline of a task of a pipeline's components; None where diffusers has none, or none that fits.

    Not by ``from_pipe``, which would turn all components into one kind of numbers.
    """
    kind = task_pipeline_class(type(pipeline), task)
    if kind is None or not _fits(pipeline, task):
        return None
    known = {**pipeline.config, **pipeline.components}
    # By default there is a watermark where its library is installed.
    known["add_watermarker"] = getattr(pipeline, "watermark", None) is not None
    taken = inspect.signature(kind.__init__).parameters
    try:
        built = kind(**{name: value for name, value in known.items() if name in taken})
    except Exception as error:  # noqa: BLE001 - the model's other tasks go on
        logger.warning("there is no pipeline for %s", task, extra=described(error))
        return None
    built.set_progress_bar_config(disable=True)
    return built


def tasks_of(pipeline: Any) -> tuple[Task, ...]:
    """Return what a text-to-image pipeline can make images of."""
    found = (
        task for task in _PIPELINES if task_pipeline_class(type(pipeline), task) is not None and _fits(pipeline, task)
    )
    return (Task.TEXT_TO_IMAGE, *found)


def _fits(pipeline: Any, task: Task) -> bool:
    """Return whether the call of a task's pipeline takes a model: with a mask, UNets of other latents are refused."""
    unet = getattr(pipeline, "unet", None)
    return task is not Task.INPAINTING or unet is None or unet.config.in_channels == _INPAINTED_CHANNELS


def input_arguments(inputs: InputImages, strength: float, steps: int, parameters: frozenset[str]) -> dict[str, Any]:
    """Return the arguments that the call of a task's pipeline takes for its inputs.

    Args:
        inputs: The inputs.
        strength: How much is made anew.
        steps: Denoising steps. One is made in any case, where the call itself refuses a strength that leaves none.
        parameters: What the call takes.
    """
    image = inputs.image
    arguments: dict[str, Any] = {
        "image": as_pillow(image),
        "strength": min(max(strength, (1 + 1e-6) / steps), 1.0),
        "width": image.width,
        "height": image.height,
    }
    if inputs.mask is not None:
        arguments["mask_image"] = as_pillow(inputs.mask)
    return {name: value for name, value in arguments.items() if name in parameters}


def with_kept_pixels(made: Any, inputs: InputImages) -> Any:
    """Put the input's own pixels into an image where the mask keeps them: the VAE changes those, too.

    Args:
        made: ``[height, width, 3]``: 0 to 255, or floating-point numbers from 0 to 1.
        inputs: The inputs.
    """
    if inputs.mask is None:
        return made
    pixels: NDArray[Any] = np.asarray(made)
    size = (pixels.shape[1], pixels.shape[0])
    kept = np.asarray(_in_size(as_pillow(inputs.mask), size)) < KEPT_BELOW
    original = np.asarray(_in_size(as_pillow(inputs.image), size))
    if pixels.dtype != np.uint8:
        original = original.astype(pixels.dtype) / 255
    return np.where(kept[..., None], original, pixels[..., :3])


def _in_size(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return an image in a size: a pipeline that rounds sizes makes another than the input was given in."""
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)

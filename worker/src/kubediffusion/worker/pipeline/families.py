"""What the engine must know of a pipeline's class that the class does not say itself: two families of UNet pipelines.

Everything here repeats, for one image, what the pipeline's ``__call__`` does before and after its loop; a test compares
the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import diffusers
import torch

from kubediffusion.worker.engine import ImageTask
from kubediffusion.worker.pipeline.encoding import TextEncoding

Conditions = dict[str, torch.Tensor]
"""What the UNet is told of one image, by the name of its argument: ``[rows, ...]``, where the rows are, with
classifier-free guidance, the negative prompt's and the prompt's, else the prompt's alone."""

HIDDEN_STATES = "encoder_hidden_states"
"""The condition that every UNet takes; the others go by ``added_cond_kwargs``."""


@dataclass(frozen=True)
class Frame:
    """What images of one batch share.

    Attributes:
        width: Pixels.
        height: Pixels.
        guided: Whether classifier-free guidance is on: two rows an image.
        deterministic: Computed alone and always in the same way.
    """

    width: int
    height: int
    guided: bool
    deterministic: bool = False


class Family(Protocol):
    """One class of pipelines.

    Attributes:
        from_start: Whether its call tells the scheduler that it begins at the first step.
        upcasts: Whether its call decodes in float32 where the VAE's configuration says so.
    """

    from_start: bool
    upcasts: bool

    def conditions(self, task: ImageTask, frame: Frame) -> Conditions:
        """Encode an image's prompts."""

    def unscaled(self, latents: torch.Tensor) -> torch.Tensor:
        """Turn the denoiser's latents into the VAE's."""


class StableDiffusion:
    """Stable Diffusion 1 and 2: one text encoder.

    Args:
        pipeline: The pipeline, on its device.
    """

    from_start = False
    upcasts = False

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self._encoding = TextEncoding(pipeline)

    def conditions(self, task: ImageTask, frame: Frame) -> Conditions:
        """Encode an image's prompts: see :meth:`Family.conditions`."""
        prompt = self._encoding.of(task.prompt, plain=frame.deterministic)
        if not frame.guided:
            return {HIDDEN_STATES: prompt}
        negative = self._encoding.of(task.negative_prompt or "", plain=frame.deterministic)
        return {HIDDEN_STATES: torch.cat([negative, prompt])}

    def unscaled(self, latents: torch.Tensor) -> torch.Tensor:
        """Turn the denoiser's latents into the VAE's."""
        unscaled: torch.Tensor = latents / self._pipeline.vae.config.scaling_factor
        return unscaled


class StableDiffusionXL:
    """Stable Diffusion XL: two text encoders, and conditions for the image's size.

    Args:
        pipeline: The pipeline, on its device.
    """

    from_start = True
    upcasts = True

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline

    def conditions(self, task: ImageTask, frame: Frame) -> Conditions:
        """Encode an image's prompts and its size: see :meth:`Family.conditions`."""
        prompt, negative, pooled, negative_pooled = self._pipeline.encode_prompt(
            prompt=[task.prompt],
            device=self._pipeline.device,
            do_classifier_free_guidance=frame.guided,
            negative_prompt=None if task.negative_prompt is None else [task.negative_prompt],
        )
        encoder = self._pipeline.text_encoder_2
        # No crop, and made for the size that it has.
        size = (frame.height, frame.width)
        sizes = self._pipeline._get_add_time_ids(  # noqa: SLF001 - what the call uses
            size,
            (0, 0),
            size,
            dtype=prompt.dtype,
            text_encoder_projection_dim=int(pooled.shape[-1]) if encoder is None else encoder.config.projection_dim,
        ).to(prompt.device)
        if not frame.guided:
            return {HIDDEN_STATES: prompt, "text_embeds": pooled, "time_ids": sizes}
        return {
            HIDDEN_STATES: torch.cat([negative, prompt]),
            "text_embeds": torch.cat([negative_pooled, pooled]),
            "time_ids": torch.cat([sizes, sizes]),
        }

    def unscaled(self, latents: torch.Tensor) -> torch.Tensor:
        """Turn the denoiser's latents into the VAE's, whose own mean and deviation some models give by channel."""
        config = self._pipeline.vae.config
        unscaled: torch.Tensor = latents / config.scaling_factor
        mean, deviation = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
        if mean is None or deviation is None:
            return unscaled
        return unscaled * latents.new_tensor(deviation).view(1, -1, 1, 1) + latents.new_tensor(mean).view(1, -1, 1, 1)


_FAMILIES: dict[str, type[StableDiffusion] | type[StableDiffusionXL]] = {
    "StableDiffusionPipeline": StableDiffusion,
    "StableDiffusionXLPipeline": StableDiffusionXL,
}


def family_of(pipeline: Any) -> Family | None:
    """Give the family of a pipeline, or None for one that the engine does not know.

    A subclass has a call of its own. A UNet that is told the guidance scale (a distilled one), or more of an image than
    its size, and a watermark, are left to the pipeline's call.
    """
    name = type(pipeline).__name__
    # Looked up by name: importing diffusers' classes before its loggers are quiet writes to the log.
    if name not in _FAMILIES or type(pipeline) is not getattr(diffusers, name):
        return None
    unet = pipeline.unet.config
    if any(unet[told] is not None for told in ("time_cond_proj_dim", "encoder_hid_dim_type", "class_embed_type")):
        return None
    expected = "text_time" if name == "StableDiffusionXLPipeline" else None
    if unet.addition_embed_type != expected or getattr(pipeline, "watermark", None) is not None:
        return None
    return _FAMILIES[name](pipeline)

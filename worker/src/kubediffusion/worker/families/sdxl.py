"""Stable Diffusion XL: two text encoders, and conditioning on the image's size."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from kubediffusion.worker.engine import BatchKey, ImageRequest
from kubediffusion.worker.families.base import Conditioning
from kubediffusion.worker.families.unet import HIDDEN_STATES, UNetFamily


class StableDiffusionXL(UNetFamily):
    """``StableDiffusionXLPipeline``: see :class:`ModelFamily`."""

    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusionXLPipeline",)
    upcasts: ClassVar[bool] = True
    addition_embed_type: ClassVar[str | None] = "text_time"

    @classmethod
    def mismatch(cls, pipeline: Any) -> str | None:
        """Refuse what every UNet family refuses, and a watermark, which the pipeline's call puts on the pixels."""
        if getattr(pipeline, "watermark", None) is not None:
            return "it puts a watermark on its images"
        return super().mismatch(pipeline)

    def encode(self, request: ImageRequest, key: BatchKey) -> Conditioning:
        """Encode an image's prompts, ``[rows, tokens, channels]``, pooled too, ``[rows, channels]``, and its size."""
        prompt, negative, pooled, negative_pooled = self.pipeline.encode_prompt(
            prompt=[request.prompt],
            device=self.device,
            do_classifier_free_guidance=key.guided,
            negative_prompt=None if request.negative_prompt is None else [request.negative_prompt],
        )
        encoder = self.pipeline.text_encoder_2
        # No crop, and made for the size that it has.
        size = (key.height, key.width)
        sizes = self.pipeline._get_add_time_ids(  # noqa: SLF001 - what the call uses
            size,
            (0, 0),
            size,
            dtype=prompt.dtype,
            text_encoder_projection_dim=int(pooled.shape[-1]) if encoder is None else encoder.config.projection_dim,
        ).to(prompt.device)
        if not key.guided:
            return {HIDDEN_STATES: prompt, "text_embeds": pooled, "time_ids": sizes}
        return {
            HIDDEN_STATES: torch.cat([negative, prompt]),
            "text_embeds": torch.cat([negative_pooled, pooled]),
            "time_ids": torch.cat([sizes, sizes]),
        }

    def vae_input(self, latents: torch.Tensor, _key: BatchKey) -> torch.Tensor:
        """Scale latents to the VAE's, whose own mean and deviation some models give by channel."""
        config = self.pipeline.vae.config
        scaled: torch.Tensor = latents / config.scaling_factor
        mean, deviation = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
        if mean is None or deviation is None:
            return scaled
        return scaled * latents.new_tensor(deviation).view(1, -1, 1, 1) + latents.new_tensor(mean).view(1, -1, 1, 1)

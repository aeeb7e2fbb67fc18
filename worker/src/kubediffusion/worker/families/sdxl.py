"""Stable Diffusion XL: two text encoders, and conditioning on the image's size."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from kubediffusion.worker.engine import BatchKey, ImageRequest
from kubediffusion.worker.families.base import Conditioning
from kubediffusion.worker.families.prompt_weighting import WeightedTokens, marked, weighted
from kubediffusion.worker.families.unet import HIDDEN_STATES, UNetFamily

_POOLED = 2
"""Dimensions of a pooled encoding: image and channel."""


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
        if self.weighs(request, key):
            prompt, negative, pooled, negative_pooled = self._weighted(request, key)
        else:
            prompt, negative, pooled, negative_pooled = self._as_they_are(request.prompt, request.negative_prompt, key)
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

    def _as_they_are(self, prompt: str, negative: str | None, key: BatchKey) -> tuple[torch.Tensor, ...]:
        encoded: tuple[torch.Tensor, ...] = self.pipeline.encode_prompt(
            prompt=[prompt],
            device=self.device,
            do_classifier_free_guidance=key.guided,
            negative_prompt=None if negative is None else [negative],
        )
        return encoded

    def _weighted(self, request: ImageRequest, key: BatchKey) -> tuple[torch.Tensor, ...]:
        """Encode an image's prompts with their weights: what ``encode_prompt`` returns."""
        given, negative = self._weighting.tokens(request.prompt), request.negative_prompt
        without = self._weighting.tokens(negative or "")
        if self.chunks(key) == 1 and not given.weights and not (key.guided and without.weights):
            return self._as_they_are(given.text, None if negative is None else without.text, key)
        prompt, pooled = self._row(given, self.chunks(key))
        if negative is None and self.pipeline.config.force_zeros_for_empty_prompt:
            return prompt, torch.zeros_like(prompt), pooled, torch.zeros_like(pooled)
        unwanted, unwanted_pooled = self._row(without, self.chunks(key))
        return prompt, unwanted, pooled, unwanted_pooled

    def _row(self, prompt: WeightedTokens, chunks: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode a prompt, ``[1, tokens, channels]``, and pooled by its first chunk: ``[1, channels]``."""
        pipeline = self.pipeline
        pairs = [(pipeline.tokenizer, pipeline.text_encoder), (pipeline.tokenizer_2, pipeline.text_encoder_2)]
        encoders = [pair for pair in pairs if pair[1] is not None]
        parts, pooled = [], None
        for number in range(chunks):
            tokens, weights = prompt.chunk(number)
            hidden = []
            for tokenizer, encoder in encoders:
                output = encoder(marked(tokens, tokenizer, self.device), output_hidden_states=True)
                if pooled is None and output[0].dim() == _POOLED:
                    pooled = output[0]
                hidden.append(weighted(output.hidden_states[-2], weights))
            parts.append(torch.cat(hidden, dim=-1))
        if pooled is None:
            raise RuntimeError("no text encoder gives a pooled encoding")
        dtype = encoders[-1][1].dtype
        return torch.cat(parts, dim=1).to(dtype), pooled.to(dtype)

    def from_vae(self, latents: torch.Tensor) -> torch.Tensor:
        """Scale the VAE's latents to the denoiser's: the reverse of :meth:`vae_input`."""
        config = self.pipeline.vae.config
        mean, deviation = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
        if mean is None or deviation is None:
            return super().from_vae(latents)
        shifted = latents - latents.new_tensor(mean).view(1, -1, 1, 1)
        scaled: torch.Tensor = shifted * config.scaling_factor / latents.new_tensor(deviation).view(1, -1, 1, 1)
        return scaled

    def vae_input(self, latents: torch.Tensor, _key: BatchKey) -> torch.Tensor:
        """Scale latents to the VAE's, whose own mean and deviation some models give by channel."""
        config = self.pipeline.vae.config
        scaled: torch.Tensor = latents / config.scaling_factor
        mean, deviation = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
        if mean is None or deviation is None:
            return scaled
        return scaled * latents.new_tensor(deviation).view(1, -1, 1, 1) + latents.new_tensor(mean).view(1, -1, 1, 1)

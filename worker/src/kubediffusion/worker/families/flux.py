"""FLUX.1: guidance embedded in the denoiser (dev), none (schnell), or classifier-free (where nothing was distilled)."""

from __future__ import annotations

from typing import ClassVar

import torch

from kubediffusion.worker.engine import BatchKey, GuidanceKind, ImageRequest
from kubediffusion.worker.families.base import Conditioning, Defaults, noise
from kubediffusion.worker.families.flow import FlowFamily
from kubediffusion.worker.families.input_images import ImageToImageFamily

TOKENS = 512
"""Tokens of the T5 encoder: the default of the pipeline's call."""


class Flux(FlowFamily, ImageToImageFamily):
    """``FluxPipeline``: see :class:`ModelFamily`."""

    pipelines: ClassVar[tuple[str, ...]] = ("FluxPipeline",)
    defaults: ClassVar[Defaults] = Defaults(28, 3.5)
    distilled: ClassVar[Defaults | None] = Defaults(4, 0.0)

    def is_distilled(self) -> bool:
        """Return whether it is distilled to few steps (schnell): not told a scale, nor its schedule shifted by size."""
        shifts = self.pipeline.scheduler.config.get("use_dynamic_shifting", False)
        return not (self.denoiser.config.guidance_embeds or shifts)

    def guidance(self, request: ImageRequest) -> GuidanceKind:
        """Return what ``guidanceScale`` does: it is embedded where the transformer takes it.

        A transformer that takes none is distilled to few steps, or it was not distilled at all, and then the scale is
        classifier-free guidance's: ``true_cfg_scale`` of the call.
        """
        if self.denoiser.config.guidance_embeds:
            return GuidanceKind.EMBEDDED
        if self.is_distilled():
            return GuidanceKind.NONE
        return super().guidance(request)

    def encode(self, request: ImageRequest, key: BatchKey) -> Conditioning:
        """Encode an image's prompts: T5's ``[rows, tokens, channels]``, and CLIP's pooled ``[rows, channels]``."""
        texts = [request.negative_prompt or "", request.prompt] if key.guided else [request.prompt]
        prompts, pooled, _ = self.pipeline.encode_prompt(
            prompt=texts, prompt_2=None, device=self.device, max_sequence_length=TOKENS
        )
        return {"prompts": prompts, "pooled": pooled}

    def start(self, request: ImageRequest, key: BatchKey) -> torch.Tensor:
        """Make an image's noise, packed: ``[1, tokens, 4 * channels]``."""
        height, width = self.grid(key)
        channels = self.denoiser.config.in_channels // 4
        return self.packed(noise((channels, 2 * height, 2 * width), request.seed, self.denoiser_dtype))

    def packed(self, latents: torch.Tensor) -> torch.Tensor:
        """Arrange latents as tokens of two by two: ``[1, tokens, 4 * channels]``."""
        packed: torch.Tensor = self.pipeline._pack_latents(  # noqa: SLF001 - what the call uses
            latents, *latents.shape
        )
        return packed

    def shared(self, key: BatchKey) -> Conditioning:
        """Return the rotary ids of text and image: ``[tokens, 3]`` each."""
        height, width = self.grid(key)
        dtype = self.pipeline.text_encoder.dtype if self.pipeline.text_encoder is not None else self.denoiser_dtype
        image_ids = self.pipeline._prepare_latent_image_ids(  # noqa: SLF001 - what the call uses
            1, height, width, self.device, self.denoiser_dtype
        )
        return {"txt_ids": torch.zeros(TOKENS, 3, device=self.device, dtype=dtype), "img_ids": image_ids}

    def denoise(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        guidance: torch.Tensor,
        told: Conditioning,
        shared: Conditioning,
        _key: BatchKey,
    ) -> torch.Tensor:
        """Call the transformer: see :meth:`ModelFamily.denoise`."""
        output: torch.Tensor = self.denoiser(
            hidden_states=latents,
            timestep=timesteps.to(latents.dtype) / 1000,
            guidance=guidance if self.denoiser.config.guidance_embeds else None,
            pooled_projections=told["pooled"],
            encoder_hidden_states=told["prompts"],
            txt_ids=shared["txt_ids"],
            img_ids=shared["img_ids"],
            return_dict=False,
        )[0]
        return output

    def vae_input(self, latents: torch.Tensor, key: BatchKey) -> torch.Tensor:
        """Unpack an image's latents, and scale them to the VAE's: ``[1, channels, height, width]``."""
        unpacked = self.pipeline._unpack_latents(  # noqa: SLF001 - what the call uses
            latents, key.height, key.width, self.pipeline.vae_scale_factor
        )
        return super().vae_input(unpacked, key)

"""Chroma: FLUX.1's latents without embedded guidance, T5 alone, most of its padding masked."""

from __future__ import annotations

from typing import ClassVar

import torch

from kubediffusion.worker.engine import BatchKey, GuidanceKind, ImageRequest
from kubediffusion.worker.families.base import Conditioning, Defaults, ModelFamily
from kubediffusion.worker.families.flux import TOKENS, Flux


class Chroma(Flux):
    """``ChromaPipeline``: see :class:`ModelFamily`."""

    pipelines: ClassVar[tuple[str, ...]] = ("ChromaPipeline",)
    defaults: ClassVar[Defaults] = Defaults(35, 5.0)
    distilled: ClassVar[Defaults | None] = None

    def guidance(self, request: ImageRequest) -> GuidanceKind:
        """Return what ``guidanceScale`` does: classifier-free guidance above 1."""
        return ModelFamily.guidance(self, request)

    def encode(self, request: ImageRequest, key: BatchKey) -> Conditioning:
        """Encode an image's prompts, ``[rows, tokens, channels]``, and which tokens are heeded: ``[rows, tokens]``."""
        prompt, _, mask, negative, _, negative_mask = self.pipeline.encode_prompt(
            prompt=[request.prompt],
            negative_prompt=[request.negative_prompt or ""],
            do_classifier_free_guidance=key.guided,
            device=self.device,
            max_sequence_length=TOKENS,
        )
        if not key.guided:
            return {"prompts": prompt, "masks": mask}
        return {"prompts": torch.cat([negative, prompt]), "masks": torch.cat([negative_mask, mask])}

    def denoise(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        _guidance: torch.Tensor,
        told: Conditioning,
        shared: Conditioning,
        _key: BatchKey,
    ) -> torch.Tensor:
        """Call the transformer: see :meth:`ModelFamily.denoise`."""
        image = torch.ones(latents.shape[:2], device=latents.device, dtype=torch.bool)
        output: torch.Tensor = self.denoiser(
            hidden_states=latents,
            timestep=timesteps.to(latents.dtype) / 1000,
            encoder_hidden_states=told["prompts"],
            txt_ids=shared["txt_ids"],
            img_ids=shared["img_ids"],
            attention_mask=torch.cat([told["masks"], image], dim=1),
            return_dict=False,
        )[0]
        return output

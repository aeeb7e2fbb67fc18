"""Ovis-Image: FLUX.1's latents, Qwen 3's encoding of a fixed number of tokens, which have places, and guidance."""

from __future__ import annotations

from typing import ClassVar

import torch

from kubediffusion.worker.engine import BatchKey, GuidanceKind, ImageRequest
from kubediffusion.worker.families.base import Conditioning, Defaults, ModelFamily
from kubediffusion.worker.families.flux import Flux

_TOKENS = 256
"""Tokens of a prompt, padded: the default of the pipeline's call."""


class OvisImage(Flux):
    """``OvisImagePipeline``: see :class:`ModelFamily`."""

    pipelines: ClassVar[tuple[str, ...]] = ("OvisImagePipeline",)
    defaults: ClassVar[Defaults] = Defaults(50, 5.0)
    distilled: ClassVar[Defaults | None] = None

    def guidance(self, request: ImageRequest) -> GuidanceKind:
        """Return what ``guidanceScale`` does: classifier-free guidance above 1."""
        return ModelFamily.guidance(self, request)

    def encode(self, request: ImageRequest, key: BatchKey) -> Conditioning:
        """Encode an image's prompts: ``[rows, tokens, channels]``."""
        texts = [request.negative_prompt or "", request.prompt] if key.guided else [request.prompt]
        prompts = self.pipeline.encode_prompt(
            prompt=texts, do_classifier_free_guidance=False, device=self.device, max_sequence_length=_TOKENS
        )[0]
        return {"prompts": prompts}

    def shared(self, key: BatchKey) -> Conditioning:
        """Return the rotary ids of text, which number its tokens, and of image: ``[tokens, 3]`` each."""
        ids = super().shared(key)
        places = torch.arange(_TOKENS, device=self.device, dtype=ids["txt_ids"].dtype)
        return ids | {"txt_ids": torch.stack([torch.zeros_like(places), places, places], dim=-1)}

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
        output: torch.Tensor = self.denoiser(
            hidden_states=latents,
            timestep=timesteps.to(latents.dtype) / 1000,
            encoder_hidden_states=told["prompts"],
            txt_ids=shared["txt_ids"],
            img_ids=shared["img_ids"],
            return_dict=False,
        )[0]
        return output

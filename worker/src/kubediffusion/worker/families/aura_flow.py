"""AuraFlow: plain latents, one T5 encoder, whose padding is zeros."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from kubediffusion.worker.engine import BatchKey, ImageRequest
from kubediffusion.worker.families.base import Conditioning, Defaults, ModelFamily, noise
from kubediffusion.worker.families.flow import FlowFamily

_TOKENS = 256
"""Tokens of a prompt, padded: the default of the pipeline's call."""


class AuraFlow(FlowFamily):
    """``AuraFlowPipeline``: see :class:`ModelFamily`."""

    pipelines: ClassVar[tuple[str, ...]] = ("AuraFlowPipeline",)
    dtype: ClassVar[str] = "float16"
    defaults: ClassVar[Defaults] = Defaults(50, 3.5, 1024, 1024)
    upcasts: ClassVar[bool] = True

    def size_multiple(self) -> int:
        """Return the side of a token in pixels."""
        return self.token_side()

    def encode(self, request: ImageRequest, key: BatchKey) -> Conditioning:
        """Encode an image's prompts: ``[rows, tokens, channels]``."""
        prompt, _, negative, _ = self.pipeline.encode_prompt(
            prompt=[request.prompt],
            negative_prompt=None if request.negative_prompt is None else [request.negative_prompt],
            do_classifier_free_guidance=key.guided,
            device=self.device,
            max_sequence_length=_TOKENS,
        )
        return {"prompts": torch.cat([negative, prompt]) if key.guided else prompt}

    def start(self, request: ImageRequest, key: BatchKey) -> torch.Tensor:
        """Make an image's noise: ``[1, channels, height / scale, width / scale]``."""
        scale = self.pipeline.vae_scale_factor
        size = (self.denoiser.config.in_channels, key.height // scale, key.width // scale)
        return noise(size, request.seed, self.denoiser_dtype)

    def schedule(self, scheduler: Any, key: BatchKey, steps: int) -> dict[str, Any]:
        """Return the steps alone: the scheduler spaces its sigmas."""
        return ModelFamily.schedule(self, scheduler, key, steps)

    def denoise(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        _guidance: torch.Tensor,
        told: Conditioning,
        _shared: Conditioning,
        _key: BatchKey,
    ) -> torch.Tensor:
        """Call the transformer: see :meth:`ModelFamily.denoise`."""
        output: torch.Tensor = self.denoiser(
            latents,
            encoder_hidden_states=told["prompts"],
            timestep=(timesteps / 1000).to(latents.dtype),
            return_dict=False,
        )[0]
        return output

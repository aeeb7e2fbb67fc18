"""Stable Diffusion 3 and 3.5: two CLIP encoders, and T5 where the model has it."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from kubediffusion.worker.engine import BatchKey, ImageRequest
from kubediffusion.worker.families.base import Conditioning, Defaults, noise
from kubediffusion.worker.families.flow import FlowFamily, shift_by_size
from kubediffusion.worker.families.input_images import ImageToImageFamily

_DEFAULTS_OF_35 = Defaults(28, 4.5)


class StableDiffusion3(FlowFamily, ImageToImageFamily):
    """``StableDiffusion3Pipeline``: see :class:`ModelFamily`."""

    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusion3Pipeline",)
    defaults: ClassVar[Defaults] = Defaults(28, 7.0)
    from_start: ClassVar[bool] = False

    def own_defaults(self) -> Defaults:
        """Return steps and guidance of an image whose job names none: 3.5, which normalizes queries, takes less."""
        return self.defaults if self.denoiser.config.qk_norm is None else _DEFAULTS_OF_35

    def token_side(self) -> int:
        """Return the side of a token in pixels."""
        return int(self.pipeline.vae_scale_factor * self.pipeline.patch_size)

    def size_multiple(self) -> int:
        """Return the side of a token in pixels."""
        return self.token_side()

    def encode(self, request: ImageRequest, key: BatchKey) -> Conditioning:
        """Encode an image's prompts, ``[rows, tokens, channels]``, and pooled: ``[rows, channels]``."""
        prompt, negative, pooled, negative_pooled = self.pipeline.encode_prompt(
            prompt=[request.prompt],
            prompt_2=None,
            prompt_3=None,
            negative_prompt=None if request.negative_prompt is None else [request.negative_prompt],
            do_classifier_free_guidance=key.guided,
            device=self.device,
        )
        if not key.guided:
            return {"prompts": prompt, "pooled": pooled}
        return {"prompts": torch.cat([negative, prompt]), "pooled": torch.cat([negative_pooled, pooled])}

    def start(self, request: ImageRequest, key: BatchKey) -> torch.Tensor:
        """Make an image's noise: ``[1, channels, height / scale, width / scale]``."""
        scale = self.pipeline.vae_scale_factor
        size = (self.denoiser.config.in_channels, key.height // scale, key.width // scale)
        return noise(size, request.seed, self.denoiser_dtype)

    def schedule(self, scheduler: Any, key: BatchKey, steps: int) -> dict[str, Any]:
        """Return the steps, and the shift for the image's size where the scheduler shifts by it."""
        arguments: dict[str, Any] = {"num_inference_steps": steps}
        if scheduler.config.get("use_dynamic_shifting", None):
            height, width = self.grid(key)
            arguments["mu"] = shift_by_size(scheduler, height * width, shift_range=(0.5, 1.16))
        return arguments

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
            hidden_states=latents,
            timestep=timesteps,
            encoder_hidden_states=told["prompts"],
            pooled_projections=told["pooled"],
            return_dict=False,
        )[0]
        return output

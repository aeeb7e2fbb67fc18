"""Stable Diffusion 1 and 2: one text encoder."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from kubediffusion.worker.engine import BatchKey, ImageRequest
from kubediffusion.worker.families.base import Conditioning, GraphFactory
from kubediffusion.worker.families.clip import TextEncoding
from kubediffusion.worker.families.unet import HIDDEN_STATES, UNetFamily


class StableDiffusion(UNetFamily):
    """``StableDiffusionPipeline``: see :class:`ModelFamily`."""

    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusionPipeline",)
    from_start: ClassVar[bool] = False

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        self._encoding = TextEncoding(pipeline)

    def use_graphs(self, graphed: GraphFactory) -> None:
        """Have the text encoder run from CUDA graphs."""
        self._encoding.use_graphs(graphed)

    def encode(self, request: ImageRequest, key: BatchKey) -> Conditioning:
        """Encode an image's prompts: ``[rows, tokens, channels]``."""
        prompt = self._encoding.of(request.prompt, plain=key.deterministic)
        if not key.guided:
            return {HIDDEN_STATES: prompt}
        negative = self._encoding.of(request.negative_prompt or "", plain=key.deterministic)
        return {HIDDEN_STATES: torch.cat([negative, prompt])}

    def vae_input(self, latents: torch.Tensor, _key: BatchKey) -> torch.Tensor:
        """Scale latents to the VAE's: ``[1, channels, height, width]``."""
        scaled: torch.Tensor = latents / self.pipeline.vae.config.scaling_factor
        return scaled

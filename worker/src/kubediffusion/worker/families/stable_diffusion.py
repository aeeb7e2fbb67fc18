"""Stable Diffusion 1 and 2: one text encoder."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch

from kubediffusion.worker.engine import BatchKey, ImageRequest
from kubediffusion.worker.families.base import Conditioning, GraphFactory
from kubediffusion.worker.families.clip import TextEncoding
from kubediffusion.worker.families.prompt_weighting import marked, weighted
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
        by_weights = partial(self._weighted, key=key)
        encoded = by_weights if self.weighs(request, key) else partial(self._encoding.of, plain=key.deterministic)
        if not key.guided:
            return {HIDDEN_STATES: encoded(request.prompt)}
        return {HIDDEN_STATES: torch.cat([encoded(request.negative_prompt or ""), encoded(request.prompt)])}

    def _weighted(self, text: str, key: BatchKey) -> torch.Tensor:
        """Encode a prompt with its weights, in as many chunks as the key's images have."""
        known, chunks = self._weighting.tokens(text), self.chunks(key)
        if chunks == 1 and not known.weights:
            return self._encoding.of(known.text, plain=key.deterministic)
        parts = []
        for number in range(chunks):
            tokens, weights = known.chunk(number)
            ids = marked(tokens, self.pipeline.tokenizer, self.device)
            parts.append(weighted(self._encoding.of_tokens(ids, plain=key.deterministic), weights))
        return torch.cat(parts, dim=1)

    def from_vae(self, latents: torch.Tensor) -> torch.Tensor:
        """Scale the VAE's latents to the denoiser's: ``[1, channels, height, width]``."""
        scaled: torch.Tensor = latents * self.pipeline.vae.config.scaling_factor
        return scaled

    def vae_input(self, latents: torch.Tensor, _key: BatchKey) -> torch.Tensor:
        """Scale latents to the VAE's: ``[1, channels, height, width]``."""
        scaled: torch.Tensor = latents / self.pipeline.vae.config.scaling_factor
        return scaled

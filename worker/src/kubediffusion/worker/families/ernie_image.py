"""ERNIE-Image: one text encoder whose output varies in length and has no mask, latents patched by channel."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch

from kubediffusion.worker.engine import BatchKey, GuidanceKind, ImageRequest
from kubediffusion.worker.families.base import Conditioning, Defaults, ModelFamily, noise
from kubediffusion.worker.families.row_layout import RowLayout
from kubediffusion.worker.families.text import TokenCounts, bucket, padded

_BUCKET = 64
"""Tokens by which prompts that share a batch may differ at most."""

_MOST_TOKENS = 4096
"""The most tokens of a prompt, where the tokenizer names no limit."""

_EPSILON = 1e-5
"""Added to the variance in the VAE's normalization, as the pipeline's call does."""


class ErnieImage(ModelFamily):
    """``ErnieImagePipeline``: see :class:`ModelFamily`."""

    pipelines: ClassVar[tuple[str, ...]] = ("ErnieImagePipeline",)
    defaults: ClassVar[Defaults] = Defaults(50, 4.0, 1024, 1024)
    from_start: ClassVar[bool] = False

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        tokenizer = copy.deepcopy(pipeline.tokenizer)
        self._most = min(int(tokenizer.model_max_length), _MOST_TOKENS)
        self._counts = TokenCounts(lambda text: len(tokenizer(text, truncation=True, padding=False).input_ids))

    @classmethod
    def mismatch(cls, pipeline: Any) -> str | None:
        """Refuse a model that rewrites prompts: it draws words from the process's own random numbers."""
        return "it rewrites prompts" if getattr(pipeline, "pe", None) is not None else None

    def size_multiple(self) -> int:
        """Return the side of a patched latent in pixels."""
        return int(self.pipeline.vae_scale_factor)

    def text_length(self, request: ImageRequest, guidance: GuidanceKind) -> int:
        """Return how many tokens the batch holds for each prompt: those of the longer one, rounded up."""
        texts = [request.prompt, request.negative_prompt or ""]
        used = texts if guidance is GuidanceKind.CFG else texts[:1]
        return bucket(max(map(self._counts.of, used)), _BUCKET, self._most)

    def encode(self, request: ImageRequest, key: BatchKey) -> Conditioning:
        """Encode an image's prompts, ``[rows, tokens, channels]``, and count their tokens: ``[rows]``."""
        texts = [request.negative_prompt or "", request.prompt] if key.guided else [request.prompt]
        rows = self.pipeline.encode_prompt(texts, self.device)
        return {
            "prompts": torch.cat([padded(row[None].to(self.denoiser_dtype), key.text_length) for row in rows]),
            "tokens": torch.tensor([len(row) for row in rows], device=self.device),
        }

    def start(self, request: ImageRequest, key: BatchKey) -> torch.Tensor:
        """Make an image's noise: ``[1, channels, height / scale, width / scale]``."""
        scale = self.size_multiple()
        size = (self.denoiser.config.in_channels, key.height // scale, key.width // scale)
        return noise(size, request.seed, self.denoiser_dtype)

    def schedule(self, _scheduler: Any, _key: BatchKey, steps: int) -> dict[str, Any]:
        """Return sigmas that fall from 1 to ``1 / steps``."""
        return {"sigmas": torch.linspace(1.0, 0.0, steps + 1)[:-1]}

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
            timestep=timesteps.to(latents.dtype),
            text_bth=told["prompts"],
            text_lens=told["tokens"],
            return_dict=False,
        )[0]
        return output

    def row_layout(self, layer: str) -> RowLayout:
        """Return where a layer has a step's rows: behind the tokens, within the blocks but for attention."""
        return RowLayout.SECOND if ".mlp." in layer or layer == "final_linear" else RowLayout.FIRST

    def vae_input(self, latents: torch.Tensor, _key: BatchKey) -> torch.Tensor:
        """Undo the VAE's normalization, and take patches apart: ``[1, channels, height, width]``."""
        vae = self.pipeline.vae
        mean = vae.bn.running_mean.view(1, -1, 1, 1).to(latents.device, latents.dtype)
        deviation = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + _EPSILON).to(latents.device, latents.dtype)
        unpatched: torch.Tensor = self.pipeline._unpatchify_latents(  # noqa: SLF001 - what the call uses
            latents * deviation + mean
        )
        return unpatched

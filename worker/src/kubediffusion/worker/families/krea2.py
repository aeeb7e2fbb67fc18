"""Krea 2: a text encoder of which several layers are used, guidance added to the prompt's output, Qwen-Image's VAE."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from kubediffusion.worker.engine import BatchKey, ImageRequest
from kubediffusion.worker.families.base import Conditioning, Defaults, noise
from kubediffusion.worker.families.flow import FlowFamily, shift_by_size
from kubediffusion.worker.families.qwen_image import scaled_by_channel
from kubediffusion.worker.families.row_layout import RowLayout

_TOKENS = 512
"""Tokens of a prompt, padded: the default of the pipeline's call."""

_DISTILLED_SHIFT = 1.15
"""Shift of a model that is distilled to few steps, at every size: from ``Krea2Pipeline.__call__``."""


class Krea2(FlowFamily):
    """``Krea2Pipeline``: see :class:`ModelFamily`."""

    pipelines: ClassVar[tuple[str, ...]] = ("Krea2Pipeline",)
    defaults: ClassVar[Defaults] = Defaults(28, 4.5, 1024, 1024)
    distilled: ClassVar[Defaults | None] = Defaults(8, 0.0, 1024, 1024)
    guided_above: ClassVar[int] = 0

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        suffix = pipeline.tokenizer(pipeline.prompt_template_encode_suffix).input_ids
        # The prompt is padded to what the suffix leaves of its place.
        self._text_tokens = _TOKENS - pipeline.prompt_template_encode_num_suffix_tokens + len(suffix)

    def is_distilled(self) -> bool:
        """Return whether it is distilled to few steps, as its configuration says."""
        return bool(self.pipeline.config.is_distilled)

    def encode(self, request: ImageRequest, key: BatchKey) -> Conditioning:
        """Encode an image's prompts: ``[rows, tokens, layers, channels]``, and which tokens are there."""
        texts = [request.negative_prompt or "", request.prompt] if key.guided else [request.prompt]
        prompts, masks = self.pipeline.encode_prompt(prompt=texts, device=self.device, max_sequence_length=_TOKENS)
        return {"prompts": prompts, "masks": masks}

    def start(self, request: ImageRequest, key: BatchKey) -> torch.Tensor:
        """Make an image's noise, packed: ``[1, tokens, channels]``."""
        patch = self.pipeline.patch_size
        height, width = (patch * side for side in self.grid(key))
        channels = self.denoiser.config.in_channels // patch**2
        latents = noise((channels, height, width), request.seed, self.denoiser_dtype)
        packed: torch.Tensor = self.pipeline._pack_latents(  # noqa: SLF001 - what the call uses
            latents, 1, channels, height, width
        )
        return packed

    def token_side(self) -> int:
        """Return the side of a token in pixels."""
        return int(self.pipeline.vae_scale_factor * self.pipeline.patch_size)

    def grid(self, key: BatchKey) -> tuple[int, int]:
        """Return the height and width in tokens, rounded up as the pipeline's call rounds them."""
        side = self.token_side()
        return -(-key.height // side), -(-key.width // side)

    def shift(self, scheduler: Any, key: BatchKey, _steps: int) -> float:
        """Return the shift for the image's size, unless the model is distilled."""
        if self.is_distilled():
            return _DISTILLED_SHIFT
        height, width = self.grid(key)
        return shift_by_size(scheduler, height * width, tokens_range=(256, 6400))

    def shared(self, key: BatchKey) -> Conditioning:
        """Return the rotary ids of text and image: ``[tokens, 3]``."""
        height, width = self.grid(key)
        return {"ids": self.pipeline.prepare_position_ids(self._text_tokens, height, width, self.device)}

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
            encoder_hidden_states=told["prompts"],
            timestep=(timesteps / self.pipeline.scheduler.config.num_train_timesteps).to(latents.dtype),
            position_ids=shared["ids"],
            encoder_attention_mask=told["masks"],
            return_dict=False,
        )[0]
        return output

    def row_layout(self, layer: str) -> RowLayout:
        """Return where a layer has a step's rows: some attend to the text encoder's layers, by token."""
        return RowLayout.FLATTENED if layer.startswith("text_fusion.layerwise_blocks.") else RowLayout.FIRST

    def guide(self, without: torch.Tensor, given: torch.Tensor, guidance: torch.Tensor) -> torch.Tensor:
        """Add guidance to the output for the prompt: a scale of 0 is none."""
        return given + guidance * (given - without)

    def vae_input(self, latents: torch.Tensor, key: BatchKey) -> torch.Tensor:
        """Unpack an image's latents, and scale them by channel: ``[1, channels, 1, height, width]``."""
        side = self.token_side()
        height, width = self.grid(key)
        unpacked = self.pipeline._unpack_latents(latents, height * side, width * side)  # noqa: SLF001 - as above
        return scaled_by_channel(unpacked, self.pipeline.vae)

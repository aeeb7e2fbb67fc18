"""What the families of UNet pipelines have in common, feature caching included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from kubediffusion.worker.engine import BatchKey, GuidanceKind, ImageRequest
from kubediffusion.worker.families import features
from kubediffusion.worker.families.base import Conditioning, Defaults, folded, noise, per_image, rows_of
from kubediffusion.worker.families.input_images import ImageToImageFamily
from kubediffusion.worker.families.prompt_weighting import PromptWeighting
from kubediffusion.worker.prompts import TextEncoder

HIDDEN_STATES = "encoder_hidden_states"
"""The conditioning that every UNet takes; all else goes by ``added_cond_kwargs``."""


class UNetFamily(ImageToImageFamily):
    """A family whose denoiser is a ``UNet2DConditionModel``: see :class:`ModelFamily`."""

    component: ClassVar[str] = "unet"
    dtype: ClassVar[str] = "float16"
    defaults: ClassVar[Defaults] = Defaults(50, 7.5)
    addition_embed_type: ClassVar[str | None] = None
    """What the UNet of such a pipeline is told beside its prompts, by diffusers' name."""
    weighs_prompts: ClassVar[bool] = True
    by_blocks: ClassVar[bool] = False

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        # SDXL's refiner has the second alone.
        self._weighting = PromptWeighting(pipeline, pipeline.tokenizer or pipeline.tokenizer_2)

    @classmethod
    def mismatch(cls, pipeline: Any) -> str | None:
        """Refuse a UNet that is told the guidance scale (a distilled one), or more of an image than its size."""
        unet = pipeline.unet.config
        for told in ("time_cond_proj_dim", "encoder_hid_dim_type", "class_embed_type"):
            if unet[told] is not None:
                return f"its UNet has {told}"
        if unet.addition_embed_type != cls.addition_embed_type:
            return f"its UNet has addition_embed_type {unet.addition_embed_type}"
        return None

    def text_length(self, request: ImageRequest, guidance: GuidanceKind) -> int:
        """Return the tokens of all chunks of prompts that are longer than the encoder; 0 for what it takes whole."""
        if not request.sampling.prompt_weighting:
            return 0
        chunks = self._weighting.chunks(request, guided=guidance is GuidanceKind.CFG)
        return chunks * self._weighting.length if chunks > 1 else 0

    def weighs(self, request: ImageRequest, key: BatchKey) -> bool:
        """Return whether an image's prompts are encoded with weights and in chunks; all of a key with chunks are."""
        return request.sampling.prompt_weighting or key.text_length > 0

    def chunks(self, key: BatchKey) -> int:
        """Return how many chunks the prompts of a key's images take."""
        return max(key.text_length // self._weighting.length, 1)

    def cut(self, request: ImageRequest, encoders: Sequence[TextEncoder]) -> list[str]:
        """Return a warning for each prompt of which a part is not encoded: see :meth:`ModelFamily.cut`."""
        if not request.sampling.prompt_weighting:
            return super().cut(request, encoders)
        return self._weighting.cut_warnings(request)

    def size_grid(self) -> int:
        """Return the side of a latent in pixels."""
        return int(self.pipeline.vae_scale_factor)

    def start(self, request: ImageRequest, key: BatchKey) -> torch.Tensor:
        """Make an image's noise: ``[1, channels, height / scale, width / scale]``."""
        scale = self.pipeline.vae_scale_factor
        size = (self.denoiser.config.in_channels, key.height // scale, key.width // scale)
        return noise(size, request.seed, self.denoiser_dtype)

    def begin_step(self, steps: int, strength: float) -> int:
        """Return the first step that is made of an input image; these pipelines round the steps that are made down."""
        return min(steps - min(int(steps * strength), steps), steps - 1)

    def denoise(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        _guidance: torch.Tensor,
        told: Conditioning,
        _shared: Conditioning,
        _key: BatchKey,
    ) -> torch.Tensor:
        """Call the UNet: see :meth:`ModelFamily.denoise`."""
        prompts, added = _split(told)
        output: torch.Tensor = self.denoiser(
            latents, timesteps, encoder_hidden_states=prompts, added_cond_kwargs=added, return_dict=False
        )[0]
        return output

    def caches_features(self) -> bool:
        """Return whether the UNet consists of blocks that :mod:`.features` knows."""
        return features.divisible(self.denoiser)

    def features_shape(self, latents: torch.Size) -> tuple[int, ...]:
        """Return the shape of one row's features, ``[channels, height, width]``, for latents of a shape."""
        return features.features_shape(self.denoiser, latents)

    def predict_refresh(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        guidance: torch.Tensor,
        slot: Conditioning,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Predict as :meth:`predict` does, and return the deep layers' features too: ``[images, rows, ...]``."""
        output, kept = features.whole(self.denoiser, *self._rows(latents, timesteps, slot))
        return self._guided(output, len(latents), guidance), kept.reshape(-1, len(latents), *kept.shape[1:]).transpose(
            0, 1
        )

    def predict_reuse(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        guidance: torch.Tensor,
        slot: Conditioning,
        kept: torch.Tensor,
    ) -> torch.Tensor:
        """Predict with features of an earlier step, ``[images, rows, ...]``: only the outermost layers compute."""
        rows = self._rows(latents, timesteps, slot)
        output = features.shallow(self.denoiser, *rows, kept.transpose(0, 1).flatten(0, 1))
        return self._guided(output, len(latents), guidance)

    def _rows(
        self, latents: torch.Tensor, timesteps: torch.Tensor, slot: Conditioning
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Conditioning | None]:
        rows = rows_of(slot)
        inputs = torch.cat([latents] * rows).to(self.denoiser_dtype)
        return (inputs, torch.cat([timesteps] * rows), *_split(folded(slot)))

    def _guided(self, output: torch.Tensor, images: int, guidance: torch.Tensor) -> torch.Tensor:
        output = output.float()
        if len(output) == images:
            return output
        without, given = output.chunk(2)
        return self.guide(without, given, per_image(guidance, given))


def _split(told: Conditioning) -> tuple[torch.Tensor, Conditioning | None]:
    added = {name: tensor for name, tensor in told.items() if name != HIDDEN_STATES}
    return told[HIDDEN_STATES], added or None

"""FLUX.2, whose guidance is embedded, and FLUX.2 klein, whose guidance is classifier-free or, distilled, none."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

from kubediffusion.worker.engine import BatchKey, GuidanceKind, ImageRequest
from kubediffusion.worker.families.base import Conditioning, Defaults, ModelFamily, noise
from kubediffusion.worker.families.flow import FlowFamily

_TOKENS = 512
"""Tokens of a prompt, padded: the default of the pipeline's call."""


class Flux2(FlowFamily):
    """``Flux2Pipeline``: see :class:`ModelFamily`."""

    pipelines: ClassVar[tuple[str, ...]] = ("Flux2Pipeline",)
    defaults: ClassVar[Defaults] = Defaults(50, 4.0)
    takes_negative: ClassVar[bool] = False

    def guidance(self, _request: ImageRequest) -> GuidanceKind:
        """Return what ``guidanceScale`` does: it is embedded, as an input of the transformer."""
        return GuidanceKind.EMBEDDED

    def encode(self, request: ImageRequest, key: BatchKey) -> Conditioning:
        """Encode an image's prompts: ``[rows, tokens, channels]``. There is no negative prompt but the empty one."""
        texts = ["", request.prompt] if key.guided else [request.prompt]
        prompts, _ = self.pipeline.encode_prompt(prompt=texts, device=self.device, max_sequence_length=_TOKENS)
        return {"prompts": prompts}

    def start(self, request: ImageRequest, key: BatchKey) -> torch.Tensor:
        """Make an image's noise, packed: ``[1, tokens, channels]``."""
        latents = noise((self.denoiser.config.in_channels, *self.grid(key)), request.seed, self.denoiser_dtype)
        packed: torch.Tensor = self.pipeline._pack_latents(latents)  # noqa: SLF001 - what the call uses
        return packed

    def shift(self, _scheduler: Any, key: BatchKey, steps: int) -> float:
        """Return the shift for the image's size and the number of steps."""
        height, width = self.grid(key)
        return float(compute_empirical_mu(image_seq_len=height * width, num_steps=steps))

    def shared(self, key: BatchKey) -> Conditioning:
        """Return the rotary ids of text and image: ``[1, tokens, 4]`` each."""
        text_ids = self.pipeline._prepare_text_ids(torch.empty(1, _TOKENS, 1))  # noqa: SLF001 - what the call uses
        return {"txt_ids": text_ids.to(self.device), "img_ids": self._image_ids(key)}

    def denoise(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        guidance: torch.Tensor,
        told: Conditioning,
        shared: Conditioning,
        key: BatchKey,
    ) -> torch.Tensor:
        """Call the transformer: see :meth:`ModelFamily.denoise`."""
        output: torch.Tensor = self.denoiser(
            hidden_states=latents,
            timestep=timesteps.to(latents.dtype) / 1000,
            guidance=guidance if key.guidance is GuidanceKind.EMBEDDED else None,
            encoder_hidden_states=told["prompts"],
            txt_ids=shared["txt_ids"].expand(len(latents), -1, -1),
            img_ids=shared["img_ids"].expand(len(latents), -1, -1),
            return_dict=False,
        )[0]
        return output

    def vae_input(self, latents: torch.Tensor, key: BatchKey) -> torch.Tensor:
        """Unpack an image's latents, and undo the VAE's normalization: ``[1, channels, height, width]``."""
        vae = self.pipeline.vae
        unpacked = self.pipeline._unpack_latents_with_ids(latents, self._image_ids(key))  # noqa: SLF001 - as above
        mean = vae.bn.running_mean.view(1, -1, 1, 1).to(unpacked.device, unpacked.dtype)
        variance = vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps
        scaled = unpacked * torch.sqrt(variance).to(unpacked.device, unpacked.dtype) + mean
        unpatched: torch.Tensor = self.pipeline._unpatchify_latents(scaled)  # noqa: SLF001 - as above
        return unpatched

    def _image_ids(self, key: BatchKey) -> torch.Tensor:
        ids: torch.Tensor = self.pipeline._prepare_latent_ids(torch.empty(1, 1, *self.grid(key)))  # noqa: SLF001
        return ids.to(self.device)


class Flux2Klein(Flux2):
    """``Flux2KleinPipeline``: see :class:`ModelFamily`."""

    pipelines: ClassVar[tuple[str, ...]] = ("Flux2KleinPipeline",)
    distilled: ClassVar[Defaults | None] = Defaults(4, 1.0)

    def is_distilled(self) -> bool:
        """Return whether it is distilled to few steps, as its configuration says."""
        return bool(self.pipeline.config.is_distilled)

    def guidance(self, request: ImageRequest) -> GuidanceKind:
        """Return what ``guidanceScale`` does: nothing where the model is distilled."""
        if self.is_distilled():
            return GuidanceKind.NONE
        return ModelFamily.guidance(self, request)
